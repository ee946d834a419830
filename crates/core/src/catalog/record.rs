//! Lines of a listing, in a form that sorts itself.

use super::{NAME_MAX, PATH_MAX, SIZE_MAX, VERSION_MAX};

/// One object as the origin listed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the source's prefix, `/` between the parts; ends in `/` for a folder's own marker.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// What a later read is made conditional on (the ETag).
    pub version: String,
}

impl Listed {
    /// Can there be a file like this?
    ///
    /// # Errors
    /// Why not, for people.
    pub fn check(&self) -> Result<(), &'static str> {
        let path = match self.path.strip_suffix('/') {
            Some(_) if self.size > 0 => return Err("ends in / and has content"),
            Some(path) => path,
            None => &self.path,
        };
        if path.is_empty() {
            return Err("has no name");
        }
        if path.len() > PATH_MAX {
            return Err("is longer than 4095 bytes");
        }
        if self.size > SIZE_MAX {
            return Err("is larger than 1 PiB");
        }
        if self.version.len() > VERSION_MAX {
            return Err("has a version longer than 255 bytes");
        }
        if path.contains('\0') || self.version.contains('\0') {
            return Err("has a NUL byte");
        }
        path.split('/').try_for_each(|part| match part {
            "" => Err("has an empty part (//)"),
            "." | ".." => Err("has a part . or .."),
            _ if part.len() > NAME_MAX => Err("has a part longer than 255 bytes"),
            _ => Ok(()),
        })
    }
}

const FOLDER: u8 = 1;
const FILE: u8 = 2;
const DEPTH: usize = 2;
/// mtime and size of a file.
const NUMBERS: usize = 16;
/// Length of the path.
const TAIL: usize = 2;

/// A file or a folder as bytes. Compared as bytes they come in the order of the catalog: by depth, then folder by folder, then
/// by name; of two with one path the folder first, then the newer file.
///
/// ```text
/// depth (2) │ path, NUL for / │ NUL │ kind │ file only: newness (8), size (8), version │ length of the path (2)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    /// Bytes that [`Records`] made.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// With NUL between the parts.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        let len = usize::from(u16::from_be_bytes([self.0[self.0.len() - 2], self.0[self.0.len() - 1]]));
        &self.0[DEPTH..DEPTH + len]
    }

    /// As the origin has it.
    #[must_use]
    pub fn key(&self) -> String {
        String::from_utf8_lossy(self.path()).replace('\0', "/")
    }

    /// Path of the folder it lies in, and its name.
    pub(super) fn split(&self) -> (&'a [u8], &'a [u8]) {
        let path = self.path();
        path.iter().rposition(|b| *b == 0).map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]))
    }

    pub(super) fn is_folder(&self) -> bool {
        self.0[DEPTH + self.path().len() + 1] == FOLDER
    }

    pub(super) fn file(&self) -> FileFacts<'a> {
        let facts = &self.0[DEPTH + self.path().len() + 2..];
        let number = |at: usize| u64::from_be_bytes(*facts[at..].first_chunk().unwrap_or(&[0; 8]));
        FileFacts { mtime_ns: (!number(0) ^ SIGN).cast_signed(), size: number(8), version: &facts[NUMBERS..facts.len() - TAIL] }
    }
}

pub(super) struct FileFacts<'a> {
    pub size: u64,
    pub mtime_ns: i64,
    pub version: &'a [u8],
}

const SIGN: u64 = 1 << 63;

/// Makes the records of a listing: one for each file, and one for each folder whenever the listing comes into it.
#[derive(Clone, Debug, Default)]
pub struct Records {
    last: String,
    buffer: Vec<u8>,
}

impl Records {
    /// Gives the records of one object, which has passed [`Listed::check`].
    pub fn of<E>(&mut self, file: &Listed, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let common = self.last.bytes().zip(file.path.bytes()).take_while(|(a, b)| a == b).count();
        for (at, _) in file.path.match_indices('/').filter(|(at, _)| *at >= common) {
            self.begin(&file.path[..at], FOLDER);
            self.end(at);
            each(&self.buffer)?;
        }
        if !file.path.ends_with('/') {
            self.begin(&file.path, FILE);
            let newness = !(file.mtime_ns.cast_unsigned() ^ SIGN);
            self.buffer.extend_from_slice(&newness.to_be_bytes());
            self.buffer.extend_from_slice(&file.size.to_be_bytes());
            self.buffer.extend_from_slice(file.version.as_bytes());
            self.end(file.path.len());
            each(&self.buffer)?;
        }
        self.last.clone_from(&file.path);
        Ok(())
    }

    fn begin(&mut self, path: &str, kind: u8) {
        let depth = path.bytes().filter(|b| *b == b'/').count() as u16;
        self.buffer.clear();
        self.buffer.extend_from_slice(&depth.to_be_bytes());
        self.buffer.extend(path.bytes().map(|b| if b == b'/' { 0 } else { b }));
        self.buffer.extend_from_slice(&[0, kind]);
    }

    fn end(&mut self, path: usize) {
        self.buffer.extend_from_slice(&(path as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(paths: &[&str]) -> Vec<Vec<u8>> {
        let (mut records, mut out) = (Records::default(), Vec::new());
        for (i, path) in paths.iter().enumerate() {
            let file = Listed { path: (*path).into(), size: i as u64, mtime_ns: -(i as i64), version: format!("v{i}") };
            let all: Result<(), ()> = records.of(&file, |r| {
                out.push(r.to_vec());
                Ok(())
            });
            all.unwrap();
        }
        out
    }

    #[test]
    fn a_size_that_cannot_be_is_no_file() {
        let of = |size| Listed { path: "a".into(), size, mtime_ns: 0, version: "v".into() }.check();
        assert_eq!(of(SIZE_MAX), Ok(()));
        for size in [SIZE_MAX + 1, i64::MAX.cast_unsigned(), u64::MAX] {
            assert_eq!(of(size), Err("is larger than 1 PiB"));
        }
    }

    #[test]
    fn bytes_sort_by_depth_then_folder_then_name() {
        let mut sorted = records(&["b c/x", "b/x", "b/y/z", "a", "b d", "b/x!"]);
        sorted.sort();
        let keys: Vec<_> = sorted.iter().map(|r| Record::new(r).key()).collect();
        assert_eq!(keys, ["a", "b", "b", "b c", "b d", "b/x", "b/x!", "b/y", "b c/x", "b/y/z"]);
    }

    #[test]
    fn a_file_is_what_was_listed_and_the_newest_comes_first() {
        let mut all = records(&["d/f", "d/f"]);
        all.sort();
        let files: Vec<_> = all.iter().map(|r| Record::new(r)).filter(|r| !r.is_folder()).collect();
        assert_eq!(files[0].split(), (&b"d"[..], &b"f"[..]));
        let facts = files[0].file();
        assert_eq!((facts.size, facts.mtime_ns, facts.version), (0, 0, &b"v0"[..]));
        assert_eq!(files[1].file().mtime_ns, -1);
    }

    #[test]
    fn a_folder_is_named_once_as_long_as_the_listing_stays_in_it() {
        let folders = |paths| records(paths).iter().filter(|r| Record::new(r).is_folder()).count();
        assert_eq!(folders(&["a/b/1", "a/b/2", "a/b/3"]), 2);
        assert_eq!(folders(&["a/b", "a/b/c"]), 2);
        assert_eq!(folders(&["a/", "a/b", "c/"]), 2);
    }
}
