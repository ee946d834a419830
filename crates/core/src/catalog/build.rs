//! Listing → catalog bytes.

use super::{ENTRY, HEADER, KIND_DIR, KIND_FILE, MAGIC, NAME_MAX, PATH_MAX, SECTION, VERSION, crc32c};
use std::collections::VecDeque;

/// One object as the origin listed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the source's prefix, `/` between the parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// What a later read is made conditional on (the ETag).
    pub version: String,
}

/// A key that is left out of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to the source's prefix.
    pub key: String,
    /// Why, for people.
    pub reason: &'static str,
}

/// Collects a listing in any order and writes the catalog.
///
/// Memory: the listing itself. (A builder that spills to disk can replace this one without changing the format.)
#[derive(Debug)]
pub struct Builder {
    origin: String,
    files: Vec<Listed>,
    skipped: Vec<Skipped>,
}

impl Builder {
    /// `origin` is the source's URI with its prefix; it is part of every object key.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), files: Vec::new(), skipped: Vec::new() }
    }

    /// Takes one object in, or notes why it cannot be a file.
    pub fn push(&mut self, file: Listed) {
        match check(&file) {
            Ok(()) => self.files.push(file),
            Err(reason) => self.skip(file.path, reason),
        }
    }

    /// Notes a key that did not even come as far as [`Self::push`].
    pub fn skip(&mut self, key: String, reason: &'static str) {
        self.skipped.push(Skipped { key, reason });
    }

    /// Objects taken in so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Nothing taken in yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The catalog file, and what was left out of it.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Vec<Skipped>) {
        // With '/' before every other byte, what lies in a folder is contiguous and folders come in the order of their names.
        let order = |s: &str| s.bytes().map(|b| if b == b'/' { 0 } else { b }).collect::<Vec<u8>>();
        self.files.sort_by_cached_key(|f| order(&f.path));
        self.files.dedup_by(|a, b| a.path == b.path);

        let mut entries: Vec<u8> = Vec::with_capacity(self.files.len() * (ENTRY + 8));
        let mut strings: Vec<u8> = Vec::new();
        let (mut files, mut dirs, mut bytes) = (0u64, 1u64, 0u64);

        strings.extend_from_slice(self.origin.as_bytes());
        let origin_len = strings.len();
        push_entry(&mut entries, &Raw { parent: 0, name: (0, 0), a: 0, b: 0, version: (0, 0), kind: KIND_DIR });

        // Folders in breadth-first order: (its entry, range of its files, length of its path).
        let mut queue = VecDeque::from([(0u64, 0..self.files.len(), 0usize)]);
        while let Some((dir, range, depth)) = queue.pop_front() {
            let first = (entries.len() / ENTRY) as u64;
            let mut i = range.start;
            while i < range.end {
                let rest = &self.files[i].path[depth..];
                if rest.is_empty() {
                    // The marker object of this folder itself ("dir/").
                    i += 1;
                    continue;
                }
                let name = rest.split('/').next().unwrap_or(rest);
                let name_at = (strings.len() as u64, name.len());
                let end = depth + name.len();
                let group_end = i + self.files[i..range.end].iter().take_while(|f| in_group(&f.path[depth..], name)).count();
                let is_dir = self.files[group_end - 1].path.len() > end;
                if is_dir && self.files[i].path.len() == end {
                    self.skipped.push(Skipped { key: self.files[i].path.clone(), reason: "is also a folder" });
                    i += 1;
                }
                strings.extend_from_slice(name.as_bytes());
                let index = (entries.len() / ENTRY) as u64;
                if is_dir {
                    push_entry(&mut entries, &Raw { parent: dir, name: name_at, a: 0, b: 0, version: (0, 0), kind: KIND_DIR });
                    queue.push_back((index, i..group_end, end + 1));
                    dirs += 1;
                } else {
                    let f = &self.files[i];
                    let version = (strings.len() as u64, f.version.len());
                    strings.extend_from_slice(f.version.as_bytes());
                    push_entry(
                        &mut entries,
                        &Raw { parent: dir, name: name_at, a: f.size, b: f.mtime_ns, version, kind: KIND_FILE },
                    );
                    files += 1;
                    bytes += f.size;
                }
                i = group_end;
            }
            let count = (entries.len() / ENTRY) as u64 - first;
            let at = dir as usize * ENTRY;
            entries[at + 16..at + 24].copy_from_slice(&first.to_le_bytes());
            entries[at + 24..at + 32].copy_from_slice(&count.to_le_bytes());
        }

        let count = (entries.len() / ENTRY) as u64;
        let strings_off = HEADER + entries.len() as u64;
        let strings_len = strings.len() as u64;
        let mut body = entries;
        body.append(&mut strings);
        let crcs: Vec<u8> = body.chunks(SECTION).flat_map(|s| crc32c(s).to_le_bytes()).collect();

        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(SECTION as u32).to_le_bytes());
        for n in [count, files, dirs, bytes, strings_off, strings_len, HEADER + body.len() as u64, origin_len as u64] {
            header.extend_from_slice(&n.to_le_bytes());
        }
        header.extend_from_slice(&crc32c(&crcs).to_le_bytes());
        header.resize(HEADER as usize - 4, 0);
        let crc = crc32c(&header);
        header.extend_from_slice(&crc.to_le_bytes());

        header.append(&mut body);
        header.extend_from_slice(&crcs);
        (header, self.skipped)
    }
}

struct Raw {
    parent: u64,
    name: (u64, usize),
    a: u64,
    b: i64,
    version: (u64, usize),
    kind: u8,
}

fn push_entry(out: &mut Vec<u8>, e: &Raw) {
    out.extend_from_slice(&e.parent.to_le_bytes());
    out.extend_from_slice(&e.name.0.to_le_bytes());
    out.extend_from_slice(&e.a.to_le_bytes());
    out.extend_from_slice(&e.b.to_le_bytes());
    out.extend_from_slice(&e.version.0.to_le_bytes());
    out.extend_from_slice(&(e.name.1 as u16).to_le_bytes());
    out.extend_from_slice(&(e.version.1 as u16).to_le_bytes());
    out.extend_from_slice(&[e.kind, 0, 0, 0]);
}

fn in_group(rest: &str, name: &str) -> bool {
    rest.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/'))
}

fn check(file: &Listed) -> Result<(), &'static str> {
    let path = match file.path.strip_suffix('/') {
        Some(_) if file.size > 0 => return Err("ends in / and has content"),
        Some(p) => p,
        None => &file.path,
    };
    if path.is_empty() {
        return Err("has no name");
    }
    if path.len() > PATH_MAX {
        return Err("is longer than 4095 bytes");
    }
    if file.version.len() > usize::from(u16::MAX) {
        return Err("has a version longer than 65535 bytes");
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("has an empty part (//)");
        }
        if part == "." || part == ".." {
            return Err("has a part . or ..");
        }
        if part.len() > NAME_MAX {
            return Err("has a part longer than 255 bytes");
        }
        if part.contains('\0') {
            return Err("has a NUL byte");
        }
    }
    Ok(())
}
