use super::{format::HEADER, *};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

fn listed(path: &str, size: u64) -> Listed {
    Listed { path: path.into(), size, mtime_ns: 7, version: format!("\"{path}\"").chars().take(40).collect() }
}

fn build(files: &[(&str, u64)]) -> (Vec<u8>, Vec<Skipped>) {
    let mut b = Builder::new("s3://b/p/");
    for (p, s) in files {
        b.push(listed(p, *s));
    }
    b.finish()
}

/// So many files in seven folders, one of which has more than a section holds.
fn many(files: u64) -> Vec<u8> {
    let files: Vec<(String, u64)> = (0..files).map(|i| (format!("d{}/f{i:05}", i % 7), i)).collect();
    let refs: Vec<(&str, u64)> = files.iter().map(|(p, s)| (p.as_str(), *s)).collect();
    build(&refs).0
}

fn open(bytes: Vec<u8>) -> Catalog<Vec<u8>> {
    let c = Catalog::open(bytes).unwrap();
    c.verify().unwrap();
    c
}

/// Is something wrong with these bytes, whoever looks? Never panics.
fn noticed(bytes: Vec<u8>, digest: &str) -> bool {
    let mut arrival = Arrival::new();
    let arrived = bytes.chunks(1000).try_for_each(|piece| arrival.update(piece)).and_then(|()| arrival.finish(digest));
    let opened = Catalog::open_as(bytes, digest);
    // What is read of a file that nobody has verified whole is right, or an error.
    if let Ok(c) = &opened {
        for i in 0..c.entries().min(300) {
            let _ = (c.entry(i), c.path(i), c.children(i), c.object_key(i), c.lookup(i, "f00017"));
        }
    }
    let read = opened.and_then(|c| c.verify());
    assert_eq!(arrived.is_err(), read.is_err(), "{arrived:?} {read:?}");
    read.is_err()
}

#[test]
fn lookup_and_readdir_see_the_tree() {
    let (bytes, skipped) = build(&[("b/x", 1), ("a", 2), ("b/y/z", 3), ("b c", 4), ("empty/", 0)]);
    assert!(skipped.is_empty(), "{skipped:?}");
    let c = open(bytes);
    assert_eq!((c.files(), c.bytes(), c.dirs()), (4, 10, 4));
    let names: Vec<String> = c.children(0).unwrap().map(|i| c.name(i).unwrap()).collect();
    assert_eq!(names, ["a", "b", "b c", "empty"]);
    let b = c.lookup(0, "b").unwrap().unwrap();
    let z = c.lookup(c.lookup(b, "y").unwrap().unwrap(), "z").unwrap().unwrap();
    assert_eq!(c.path(z).unwrap(), "b/y/z");
    assert_eq!(c.version(z).unwrap(), "\"b/y/z\"");
    let e = c.entry(z).unwrap();
    assert_eq!((e.size(), e.mtime_ns()), (3, 7));
    assert_eq!(c.lookup(0, "nothing").unwrap(), None);
    assert!(c.children(z).is_err());
    let e = c.lookup(0, "empty").unwrap().unwrap();
    assert_eq!(c.children(e).unwrap().count(), 0);
    assert_eq!(c.lookup(e, "x").unwrap(), None);
    assert_eq!(c.origin(), "s3://b/p/");
}

#[test]
fn keys_no_file_system_can_hold_are_left_out_and_named() {
    let long = "n".repeat(256);
    let (bytes, skipped) =
        build(&[("ok", 1), ("a//b", 1), ("../x", 1), ("a/./b", 1), (&long, 1), ("f", 5), ("f/g", 6), ("nul\0", 1), ("d/", 3)]);
    let c = open(bytes);
    let mut paths: Vec<_> = c.file_indices().map(|i| c.path(i.unwrap()).unwrap()).collect();
    paths.sort();
    assert_eq!(paths, ["f/g", "ok"]);
    let mut left: Vec<_> = skipped.iter().map(|s| s.key.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["../x", "a/./b", "a//b", "d/", "f", &long, "nul\0"]);
}

#[test]
fn an_empty_listing_is_a_root_folder() {
    let c = open(build(&[]).0);
    assert_eq!((c.files(), c.dirs(), c.entries()), (0, 1, 1));
    assert_eq!(c.children(0).unwrap().count(), 0);
    assert_eq!(c.lookup(0, "x").unwrap(), None);
}

#[test]
fn the_order_of_the_listing_does_not_matter_nor_does_what_is_listed_twice() {
    let digest_of = |files| digest(&build(files).0);
    let expected = digest_of(&[("a", 1), ("b/c", 2), ("b/d", 3)]);
    assert_eq!(digest_of(&[("b/d", 3), ("a", 1), ("b/c", 2), ("a", 1)]), expected);
    assert_ne!(digest_of(&[("b/d", 3), ("a", 1), ("b/c", 3)]), expected);
}

#[test]
fn of_an_object_that_changed_while_it_was_listed_the_newer_one_counts() {
    let mut b = Builder::new("s3://b/");
    for (mtime_ns, size) in [(5, 1), (9, 2), (-3, 3)] {
        b.push(Listed { path: "f".into(), size, mtime_ns, version: "v".into() });
    }
    let (bytes, skipped) = b.finish();
    let c = open(bytes);
    assert_eq!((c.files(), c.entry(1).unwrap().size()), (1, 2));
    assert!(skipped.is_empty());
}

#[test]
fn every_name_of_a_large_folder_is_found_and_no_other() {
    let c = open(many(5000));
    let dir = c.lookup(0, "d3").unwrap().unwrap();
    for i in (0..5000).step_by(13) {
        let found = c.lookup(dir, &format!("f{i:05}")).unwrap();
        assert_eq!(found.is_some(), i % 7 == 3, "{i}");
        if let Some(found) = found {
            assert_eq!(c.path(found).unwrap(), format!("d3/f{i:05}"));
        }
    }
    for other in ["", "f", "f00000x", "f99999", "z"] {
        assert_eq!(c.lookup(dir, other).unwrap(), None, "{other}");
    }
}

#[test]
fn a_scan_gives_what_single_entries_say_from_wherever_it_begins() {
    let c = open(many(1000));
    for start in [0, 1, 63, 64, 500, c.entries()] {
        let (mut scan, mut index) = (c.scan(start..u64::MAX), start);
        while let Some(scanned) = scan.next().unwrap() {
            assert_eq!((scanned.index, scanned.name), (index, c.name(index).unwrap().as_str()));
            assert_eq!(scanned.entry.size(), c.entry(index).unwrap().size());
            index += 1;
        }
        assert_eq!(index, c.entries());
    }
}

#[test]
fn more_folders_than_a_section_holds() {
    for folders in [511, 512, 513, 1024, 1500] {
        let paths: Vec<String> = (0..folders - 1).map(|i| format!("{i:04}/x")).collect();
        let refs: Vec<(&str, u64)> = paths.iter().map(|p| (p.as_str(), 1)).collect();
        let c = open(build(&refs).0);
        assert_eq!(c.dirs(), folders as u64);
        for path in &paths {
            let dir = c.lookup(0, path.strip_suffix("/x").unwrap()).unwrap().unwrap();
            let file = c.lookup(dir, "x").unwrap().unwrap();
            assert_eq!(&c.path(file).unwrap(), path);
        }
    }
}

#[test]
fn the_header_says_how_large_the_files_are() {
    let c = open(build(&[("a", 100), ("b", 300 << 10), ("c", 5 << 20), ("d", 0)]).0);
    let below = |limit| (c.sizes().below(limit).files, c.sizes().below(limit).bytes);
    assert_eq!(below(256 << 10), (2, 100));
    assert_eq!(below(1 << 20), (3, 100 + (300 << 10)));
    assert_eq!(c.sizes().all().files, 4);
}

#[test]
fn a_catalog_of_another_version_is_refused_with_its_number() {
    let (mut bytes, _) = build(&[("a", 1)]);
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    let e = Catalog::open(bytes).unwrap_err();
    assert!(matches!(e, CatalogError::Version(1)), "{e}");
    assert!(e.to_string().contains("format 1"), "{e}");
}

#[test]
fn a_catalog_is_taken_only_under_its_own_name() {
    let (bytes, _) = build(&[("a", 1)]);
    let name = digest(&bytes);
    assert_eq!(Catalog::open_as(bytes.clone(), &name).unwrap().digest(), name);
    assert!(matches!(Catalog::open_as(bytes, &"0".repeat(64)), Err(CatalogError::Digest { .. })));
}

#[test]
fn a_damaged_section_is_an_error_until_another_copy_takes_its_place() {
    let good = many(3000);
    let mut bad = good.clone();
    let at = good.len() / 2;
    bad[at] ^= 1;
    let c = Catalog::open(bad.clone()).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    c.on_damage(move |e| {
        assert!(matches!(e, CatalogError::Section(_)), "{e}");
        count.fetch_add(1, Relaxed);
    });
    let damaged: Vec<u64> = (0..c.entries()).filter(|i| c.entry(*i).is_err()).collect();
    assert!(!damaged.is_empty() && damaged.len() <= 64, "{damaged:?}");
    assert_eq!(told.load(Relaxed), damaged.len() as u64);
    assert!(matches!(c.replace(many(2999)), Err(CatalogError::Digest { .. })));
    assert!(c.entry(damaged[0]).is_err());
    c.replace(good.clone()).unwrap();
    c.verify().unwrap();
    let whole = open(good);
    for i in damaged {
        assert_eq!(c.path(i).unwrap(), whole.path(i).unwrap());
    }
}

#[test]
fn catalogs_that_are_open_at_the_same_time_do_not_mix() {
    let (a, b) = (open(build(&[("a", 1)]).0), open(build(&[("b", 1)]).0));
    for _ in 0..3 {
        assert_eq!((a.name(1).unwrap().as_str(), b.name(1).unwrap().as_str()), ("a", "b"));
    }
}

#[test]
fn every_cut_is_noticed() {
    let bytes = many(2000);
    let name = digest(&bytes);
    assert!(!noticed(bytes.clone(), &name));
    for len in [0, 10, 4095, 4096, 4097, 50_000, bytes.len() - 17, bytes.len() - 16, bytes.len() - 1] {
        assert!(noticed(bytes[..len].to_vec(), &name), "cut at {len}");
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(noticed(longer, &name));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_flipped_bit_is_noticed_and_nothing_panics(at in any::<prop::sample::Index>(), in_header in any::<bool>(), bit in 0u8..8) {
        let mut bytes = many(400);
        let name = digest(&bytes);
        let len = if in_header { HEADER as usize } else { bytes.len() };
        bytes[at.index(len)] ^= 1 << bit;
        prop_assert!(noticed(bytes, &name));
    }

    /// Whoever makes the checksums right can still not make the reader panic, loop or leave the file.
    #[test]
    fn nonsense_with_right_checksums_is_an_error_and_nothing_worse(bytes in proptest::collection::vec(any::<u8>(), 1..40), at in any::<prop::sample::Index>()) {
        let mut file = many(200);
        let body = HEADER as usize..file.len();
        let at = body.start + at.index(body.len());
        for (i, b) in bytes.iter().enumerate().take_while(|(i, _)| at + i < body.end) {
            file[at + i] = *b;
        }
        resealed(&mut file);
        if let Ok(c) = Catalog::open(file) {
            for i in 0..c.entries() {
                let _ = (c.entry(i), c.path(i), c.children(i), c.object_key(i), c.lookup(i, "f00017"));
            }
        }
    }

    #[test]
    fn what_was_listed_is_found(raw in proptest::collection::btree_map("[a-c](/[a-c ]{1,2}){0,3}/?", 0u64..3, 0..60)) {
        // The model: a file for each path, unless it is also a folder of another one.
        let refused = |path: &str, size: u64| path.ends_with('/') && size > 0;
        let is_folder = |path: &str| raw.iter().any(|(p, s)| p.starts_with(&format!("{path}/")) && !refused(p, *s));
        let model: BTreeMap<&str, u64> = raw
            .iter()
            .filter(|(p, _)| !p.ends_with('/') && !is_folder(p))
            .map(|(p, s)| (p.as_str(), *s))
            .collect();
        let mut b = Builder::new("s3://b/");
        for (p, s) in &raw { b.push(listed(p, *s)); }
        let (bytes, skipped) = b.finish();
        let c = open(bytes);
        let mut found = BTreeMap::new();
        for i in c.file_indices() {
            let i = i.unwrap();
            found.insert(c.path(i).unwrap(), c.entry(i).unwrap().size());
        }
        let expected: BTreeMap<String, u64> = model.iter().map(|(p, s)| ((*p).to_owned(), *s)).collect();
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(c.bytes(), model.values().sum::<u64>());
        for p in model.keys() {
            let mut at = 0;
            for part in p.split('/') { at = c.lookup(at, part).unwrap().unwrap(); }
            prop_assert_eq!(&c.path(at).unwrap(), p);
        }
        for s in skipped {
            prop_assert!(refused(&s.key, raw[&s.key]) || is_folder(&s.key), "{:?}", s);
        }
        // Names of a folder ascend, and each is there once.
        for dir in (0..c.entries()).filter(|i| c.entry(*i).unwrap().kind == Kind::Dir) {
            let names: Vec<String> = c.children(dir).unwrap().map(|i| c.name(i).unwrap()).collect();
            prop_assert!(names.windows(2).all(|w| w[0] < w[1]), "{:?}", names);
            for i in c.children(dir).unwrap() { prop_assert_eq!(c.entry(i).unwrap().parent, dir); }
        }
    }
}

/// Makes all checksums and hashes right again.
fn resealed(file: &mut [u8]) {
    use format::{Header, ROW, Row, array_at, crc32c};
    let mut header = Header::decode(array_at(file, 0)).unwrap();
    let table = header.body_end as usize;
    for at in (table..file.len()).step_by(ROW) {
        let row = Row::decode(array_at(file, at));
        let section = (row.start as usize).checked_add(row.len as usize).and_then(|end| file.get(row.start as usize..end));
        let crc = section.map_or(row.crc, crc32c);
        file[at..at + ROW].copy_from_slice(&Row { crc, ..row }.encode());
    }
    header.origin_crc = crc32c(&file[HEADER as usize..][..header.origin_len as usize]);
    header.body = *blake3::hash(&file[HEADER as usize..table]).as_bytes();
    header.table = *blake3::hash(&file[table..]).as_bytes();
    file[..HEADER as usize].copy_from_slice(&header.encode());
}

/// As this release writes it. A later one that reads another format lists the origin again, and must not take this one away.
const OF_THIS_RELEASE: &[u8] = include_bytes!("../../tests/formats/catalog-2");

#[test]
fn a_catalog_of_this_release_is_read_and_written_as_ever_and_one_of_another_is_refused_with_both_numbers() {
    let files = [("a", 1), ("d/b", 2), ("d/e/c", 3 << 20)];
    let written = build(&files).0;
    assert_eq!(written, OF_THIS_RELEASE);
    let catalog = open(OF_THIS_RELEASE.to_vec());
    assert_eq!(catalog.entry(catalog.lookup(0, "a").unwrap().unwrap()).unwrap().size(), 1);
    for other in [VERSION - 1, VERSION + 1] {
        let mut bytes = OF_THIS_RELEASE.to_vec();
        bytes[8..12].copy_from_slice(&other.to_le_bytes());
        for told in [Catalog::open(bytes.clone()).unwrap_err(), Arrival::new().update(&bytes).unwrap_err()] {
            let told = told.to_string();
            for part in [format!("format {other}"), format!("reads format {VERSION}"), "go back to a release".to_owned()] {
                assert!(told.contains(&part), "{part} in {told}");
            }
        }
    }
}
