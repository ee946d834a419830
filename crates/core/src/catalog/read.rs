//! Catalog bytes → entries, names, lookups.

use super::{ENTRY, HEADER, KIND_DIR, KIND_FILE, MAGIC, SECTION, VERSION, crc32c};
use crate::key::ObjectKey;
use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Where a catalog is read from.
pub trait ReadAt {
    /// Fills `buf` from `offset` on; MUST fail when there are not so many bytes.
    ///
    /// # Errors
    /// The disk's.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Bytes there are.
    ///
    /// # Errors
    /// The disk's.
    fn len(&self) -> io::Result<u64>;
    /// No bytes at all?
    ///
    /// # Errors
    /// The disk's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = usize::try_from(offset).ok().and_then(|o| o.checked_add(buf.len()));
        match end.and_then(|end| self.get(end - buf.len()..end)) {
            Some(s) => {
                buf.copy_from_slice(s);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    fn len(&self) -> io::Result<u64> {
        Ok(Self::len(self) as u64)
    }
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// What can be wrong with a catalog file.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be read.
    #[error("read catalog: {0}")]
    Io(#[from] io::Error),
    /// Not ours, cut short, or written by a newer Larder.
    #[error("catalog is not usable: {0}")]
    Header(&'static str),
    /// Bytes changed after the file was written.
    #[error("catalog section {0} does not match its checksum")]
    Section(u64),
    /// A number points outside of the file.
    #[error("catalog entry {0} is not consistent")]
    Entry(u64),
}

/// File or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file.
    File,
}

/// One file or folder.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Position of the folder it lies in; the root's is 0.
    pub parent: u64,
    /// File or folder.
    pub kind: Kind,
    a: u64,
    b: u64,
    name: (u64, u16),
    version: (u64, u16),
}

impl Entry {
    /// Bytes of a file; 0 of a folder.
    #[must_use]
    pub fn size(&self) -> u64 {
        if self.kind == Kind::File { self.a } else { 0 }
    }
    /// Nanoseconds since 1970; 0 of a folder.
    #[must_use]
    pub fn mtime_ns(&self) -> i64 {
        if self.kind == Kind::File { self.b.cast_signed() } else { 0 }
    }
}

/// Sections held in memory, 48 KiB each; the slot is section number modulo this.
const SLOTS: usize = 64;

type Slot = Mutex<Option<(u64, Arc<[u8]>)>>;

/// An opened catalog. Shared between threads; memory does not depend on its size.
pub struct Catalog<R> {
    file: R,
    entries: u64,
    files: u64,
    dirs: u64,
    bytes: u64,
    strings_off: u64,
    body_end: u64,
    origin_len: u64,
    slots: Box<[Slot]>,
}

impl<R> std::fmt::Debug for Catalog<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl<R: ReadAt> Catalog<R> {
    /// Checks the header, the sizes and the table of checksums; entries are checked as they are read.
    ///
    /// # Errors
    /// A file that is not a catalog of this version, whole.
    pub fn open(file: R) -> Result<Self, CatalogError> {
        let mut h = [0u8; HEADER as usize];
        if file.len()? < HEADER {
            return Err(CatalogError::Header("shorter than its header"));
        }
        file.read_exact_at(&mut h, 0)?;
        if &h[..8] != MAGIC {
            return Err(CatalogError::Header("no catalog"));
        }
        if u32_at(&h, 8) != VERSION || u32_at(&h, 12) as usize != SECTION {
            return Err(CatalogError::Header("written by another version of Larder"));
        }
        if u32_at(&h, h.len() - 4) != crc32c(&h[..h.len() - 4]) {
            return Err(CatalogError::Header("header does not match its checksum"));
        }
        let [entries, files, dirs, bytes, strings_off, strings_len, body_end, origin_len] =
            std::array::from_fn(|i| u64_at(&h, 16 + 8 * i));
        let sections = (body_end.saturating_sub(HEADER)).div_ceil(SECTION as u64);
        let consistent = entries >= 1
            && entries.checked_mul(ENTRY as u64).and_then(|n| n.checked_add(HEADER)) == Some(strings_off)
            && strings_off.checked_add(strings_len) == Some(body_end)
            && origin_len <= strings_len
            && sections.checked_mul(4).and_then(|n| n.checked_add(body_end)) == Some(file.len()?);
        if !consistent {
            return Err(CatalogError::Header("not as long as its header says"));
        }
        // The table of checksums itself, in pieces: its size grows with the catalog.
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let (mut at, end) = (body_end, body_end + sections * 4);
        let mut buf = vec![0u8; SECTION];
        while at < end {
            let n = (end - at).min(SECTION as u64) as usize;
            file.read_exact_at(&mut buf[..n], at)?;
            crc.update(&buf[..n]);
            at += n as u64;
        }
        if crc.finalize() as u32 != u32_at(&h, 80) {
            return Err(CatalogError::Header("table of checksums does not match its checksum"));
        }
        let slots = (0..SLOTS).map(|_| Mutex::new(None)).collect();
        Ok(Self { file, entries, files, dirs, bytes, strings_off, body_end, origin_len, slots })
    }

    /// Reads and checks every section.
    ///
    /// # Errors
    /// The first section that is not as it was written.
    pub fn verify(&self) -> Result<(), CatalogError> {
        let sections = (self.body_end - HEADER).div_ceil(SECTION as u64);
        (0..sections).try_for_each(|s| self.section(s).map(drop))
    }

    /// Files in the snapshot.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files
    }
    /// Folders, the root among them.
    #[must_use]
    pub fn dirs(&self) -> u64 {
        self.dirs
    }
    /// Sum of the sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Files and folders.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The source's URI with its prefix.
    ///
    /// # Errors
    /// A section that cannot be read.
    pub fn origin(&self) -> Result<String, CatalogError> {
        self.string(0, (0, u16::try_from(self.origin_len).map_err(|_| CatalogError::Header("origin too long"))?))
    }

    /// The entry at a position.
    ///
    /// # Errors
    /// A section that cannot be read, a position that is none.
    pub fn entry(&self, index: u64) -> Result<Entry, CatalogError> {
        if index >= self.entries {
            return Err(CatalogError::Entry(index));
        }
        let at = index * ENTRY as u64;
        let section = self.section(at / SECTION as u64)?;
        let e = &section[(at % SECTION as u64) as usize..][..ENTRY];
        let kind = match e[44] {
            KIND_DIR => Kind::Dir,
            KIND_FILE => Kind::File,
            _ => return Err(CatalogError::Entry(index)),
        };
        Ok(Entry {
            parent: u64_at(e, 0),
            kind,
            a: u64_at(e, 16),
            b: u64_at(e, 24),
            name: (u64_at(e, 8), u16_at(e, 40)),
            version: (u64_at(e, 32), u16_at(e, 42)),
        })
    }

    /// Name of the entry at a position; the root's is empty.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn name(&self, index: u64) -> Result<String, CatalogError> {
        self.string(index, self.entry(index)?.name)
    }

    /// Version of a file (its ETag at the origin).
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn version(&self, index: u64) -> Result<String, CatalogError> {
        self.string(index, self.entry(index)?.version)
    }

    /// Positions of what lies in a folder, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::entry`]; a file has no children.
    pub fn children(&self, dir: u64) -> Result<Range<u64>, CatalogError> {
        let e = self.entry(dir)?;
        let end = e.a.checked_add(e.b).filter(|end| *end <= self.entries);
        match (e.kind, end) {
            (Kind::Dir, Some(end)) => Ok(e.a..end),
            _ => Err(CatalogError::Entry(dir)),
        }
    }

    /// Position of the child with this name.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn lookup(&self, dir: u64, name: &str) -> Result<Option<u64>, CatalogError> {
        let Range { mut start, mut end } = self.children(dir)?;
        while start < end {
            let mid = start + (end - start) / 2;
            match self.name(mid)?.as_str().cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(mid)),
                std::cmp::Ordering::Less => start = mid + 1,
                std::cmp::Ordering::Greater => end = mid,
            }
        }
        Ok(None)
    }

    /// Path of the entry, relative to the root; the root's is empty.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn path(&self, index: u64) -> Result<String, CatalogError> {
        let mut parts = Vec::new();
        let mut at = index;
        while at != 0 {
            let e = self.entry(at)?;
            // Parents come before their children: no loop, whatever the file says.
            if e.parent >= at {
                return Err(CatalogError::Entry(at));
            }
            parts.push(self.string(at, e.name)?);
            at = e.parent;
        }
        parts.reverse();
        Ok(parts.join("/"))
    }

    /// Name of a file's content in every cache.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn object_key(&self, index: u64) -> Result<ObjectKey, CatalogError> {
        let e = self.entry(index)?;
        Ok(ObjectKey::new(&self.origin()?, &self.path(index)?, &self.string(index, e.version)?, e.size()))
    }

    /// Positions of all files.
    ///
    /// # Errors
    /// Each item may be a section that cannot be read.
    pub fn file_indices(&self) -> Result<impl Iterator<Item = Result<u64, CatalogError>> + '_, CatalogError> {
        Ok((0..self.entries).filter_map(|i| match self.entry(i) {
            Ok(e) if e.kind == Kind::File => Some(Ok(i)),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        }))
    }

    fn string(&self, index: u64, (off, len): (u64, u16)) -> Result<String, CatalogError> {
        let from = self.strings_off.checked_add(off).filter(|f| f.checked_add(len.into()).is_some_and(|e| e <= self.body_end));
        let mut at = from.ok_or(CatalogError::Entry(index))? - HEADER;
        let mut out = Vec::with_capacity(len.into());
        while out.len() < usize::from(len) {
            let section = self.section(at / SECTION as u64)?;
            let part = &section[(at % SECTION as u64) as usize..];
            let n = part.len().min(usize::from(len) - out.len());
            out.extend_from_slice(&part[..n]);
            at += n as u64;
        }
        String::from_utf8(out).map_err(|_| CatalogError::Entry(index))
    }

    fn section(&self, number: u64) -> Result<Arc<[u8]>, CatalogError> {
        let slot = &self.slots[(number % SLOTS as u64) as usize];
        if let Some((n, s)) = &*slot.lock().unwrap_or_else(PoisonError::into_inner)
            && *n == number
        {
            return Ok(Arc::clone(s));
        }
        let at = HEADER + number * SECTION as u64;
        let mut buf = vec![0u8; (self.body_end - at).min(SECTION as u64) as usize];
        self.file.read_exact_at(&mut buf, at)?;
        let mut crc = [0u8; 4];
        self.file.read_exact_at(&mut crc, self.body_end + number * 4)?;
        if crc32c(&buf) != u32::from_le_bytes(crc) {
            return Err(CatalogError::Section(number));
        }
        let section: Arc<[u8]> = buf.into();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, Arc::clone(&section)));
        Ok(section)
    }
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
