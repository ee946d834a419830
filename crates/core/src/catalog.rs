//! The catalog: file format of a snapshot.
//!
//! ```text
//! 0        header, 4096 bytes: magic, version, counts, offsets; its own CRC in the last 4 bytes
//! 4096     entries, 48 bytes each; the children of a folder are contiguous and sorted by name; entry 0 is the root
//! ...      strings: names, versions, the origin
//! ...      CRC-32C of each section (49,152 bytes of entries and strings), then nothing
//! ```
//!
//! All numbers are little-endian. Position in the file + 1 = inode number, so a nodeid means the same in every process and
//! after every restart. Lookup is a binary search in a range, readdir a slice. A section is verified each time it is
//! loaded; the file is read by pread through a few cached sections, never mapped: a failing disk must be an error, not a
//! SIGBUS. The digest that names a snapshot is BLAKE3 over the whole file; equal listings give equal files.

mod build;
mod read;

use crate::checksum::crc32c;

pub use build::{Builder, Listed, Skipped};
pub use read::{Catalog, CatalogError, Entry, Kind, ReadAt};

const MAGIC: &[u8; 8] = b"LARDRCAT";
const VERSION: u32 = 1;
const HEADER: u64 = 4096;
const ENTRY: usize = 48;
/// 1024 entries: no entry lies across a border; small enough that one lookup reads little.
const SECTION: usize = 1024 * ENTRY;
const KIND_DIR: u8 = 1;
const KIND_FILE: u8 = 2;

/// Longest name a directory entry may have on Linux.
pub const NAME_MAX: usize = 255;
/// Longest path: what PATH_MAX leaves for it, the final NUL taken off.
pub const PATH_MAX: usize = 4095;

/// Names a snapshot: BLAKE3 of the catalog file, 64 hex digits.
#[must_use]
pub fn digest(file: &[u8]) -> String {
    blake3::hash(file).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn listed(path: &str, size: u64) -> Listed {
        Listed { path: path.into(), size, mtime_ns: 7, version: format!("\"{path}\"") }
    }

    fn build(files: &[(&str, u64)]) -> (Vec<u8>, Vec<Skipped>) {
        let mut b = Builder::new("s3://b/p/");
        for (p, s) in files {
            b.push(listed(p, *s));
        }
        b.finish()
    }

    fn open(bytes: Vec<u8>) -> Catalog<Vec<u8>> {
        let c = Catalog::open(bytes).unwrap();
        c.verify().unwrap();
        c
    }

    #[test]
    fn lookup_and_readdir_see_the_tree() {
        let (bytes, skipped) = build(&[("b/x", 1), ("a", 2), ("b/y/z", 3), ("b c", 4), ("empty/", 0)]);
        assert!(skipped.is_empty(), "{skipped:?}");
        let c = open(bytes);
        assert_eq!((c.files(), c.bytes()), (4, 10));
        let names: Vec<String> = c.children(0).unwrap().map(|i| c.name(i).unwrap()).collect();
        assert_eq!(names, ["a", "b", "b c", "empty"]);
        let b = c.lookup(0, "b").unwrap().unwrap();
        let z = c.lookup(c.lookup(b, "y").unwrap().unwrap(), "z").unwrap().unwrap();
        assert_eq!(c.path(z).unwrap(), "b/y/z");
        assert_eq!(c.version(z).unwrap(), "\"b/y/z\"");
        assert_eq!(c.entry(z).unwrap().size(), 3);
        assert_eq!(c.lookup(0, "nothing").unwrap(), None);
        let e = c.lookup(0, "empty").unwrap().unwrap();
        assert_eq!(c.children(e).unwrap().count(), 0);
        assert_eq!(c.origin().unwrap(), "s3://b/p/");
    }

    #[test]
    fn keys_no_file_system_can_hold_are_left_out_and_named() {
        let long = "n".repeat(256);
        let (bytes, skipped) = build(&[
            ("ok", 1),
            ("a//b", 1),
            ("../x", 1),
            ("a/./b", 1),
            (&long, 1),
            ("f", 5),
            ("f/g", 6),
            ("nul\0", 1),
            ("d/", 3),
        ]);
        let c = open(bytes);
        let mut paths: Vec<_> = c.file_indices().unwrap().map(|i| c.path(i.unwrap()).unwrap()).collect();
        paths.sort();
        assert_eq!(paths, ["f/g", "ok"]);
        let mut left: Vec<_> = skipped.iter().map(|s| s.key.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["../x", "a/./b", "a//b", "d/", "f", &long, "nul\0"]);
    }

    #[test]
    fn an_empty_listing_is_a_root_folder() {
        let (bytes, _) = build(&[]);
        let c = open(bytes);
        assert_eq!(c.files(), 0);
        assert_eq!(c.children(0).unwrap().count(), 0);
    }

    #[test]
    fn the_order_of_the_listing_does_not_matter() {
        assert_eq!(digest(&build(&[("a", 1), ("b/c", 2)]).0), digest(&build(&[("b/c", 2), ("a", 1)]).0));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let files: Vec<(String, u64)> = (0..2000).map(|i| (format!("d{}/f{i}", i % 7), i)).collect();
        let refs: Vec<(&str, u64)> = files.iter().map(|(p, s)| (p.as_str(), *s)).collect();
        let (bytes, _) = build(&refs);
        for pos in [0, 9, 20, 50, 91, 95, 4096, 5000, 60_000, bytes.len() - 1] {
            let mut broken = bytes.clone();
            broken[pos] ^= 4;
            let noticed = Catalog::open(broken).map_or(true, |c| c.verify().is_err());
            assert!(noticed, "byte {pos} of {}", bytes.len());
        }
        for len in [0, 10, 4095, 4096, 50_000, bytes.len() - 1] {
            assert!(Catalog::open(bytes[..len].to_vec()).map_or(true, |c| c.verify().is_err()), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn what_was_listed_is_found(raw in proptest::collection::btree_map("[a-c](/[a-c ]{1,2}){0,3}", 0u64..1000, 0..60)) {
            let mut b = Builder::new("s3://b/");
            for (p, s) in &raw { b.push(listed(p, *s)); }
            let (bytes, skipped) = b.finish();
            let c = open(bytes);
            let mut found = BTreeMap::new();
            for i in c.file_indices().unwrap() {
                let i = i.unwrap();
                found.insert(c.path(i).unwrap(), c.entry(i).unwrap().size());
            }
            for s in &skipped {
                let folder = format!("{}/", s.key);
                prop_assert!(raw.keys().any(|p| p.starts_with(&folder)), "{}", s.key);
            }
            let expected: BTreeMap<_, _> =
                raw.iter().filter(|(p, _)| !skipped.iter().any(|s| s.key == **p)).map(|(p, s)| (p.clone(), *s)).collect();
            prop_assert_eq!(&found, &expected);
            for p in expected.keys() {
                let mut at = 0;
                for part in p.split('/') { at = c.lookup(at, part).unwrap().unwrap(); }
                prop_assert_eq!(&c.path(at).unwrap(), p);
            }
        }
    }
}
