//! Entries in order → catalog file, front to back.

use super::{
    VERSION_MAX,
    format::{ENTRIES, ENTRY, FOLDERS, HEADER, Header, ROW, Row, crc32c},
    section::{KIND_DIR, KIND_FILE},
    sizes::Sizes,
};
use std::io::{self, Seek, SeekFrom, Write};

/// Writes a catalog. Memory: one section, and 16 bytes for each 64 entries.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    at: u64,
    body: blake3::Hasher,
    origin: (u32, u32),
    entries: u64,
    folders: u64,
    sizes: Sizes,
    /// The section that is being filled.
    fixed: Vec<u8>,
    strings: Vec<u8>,
    /// Where the children of folders begin, of the folder section that is being filled.
    firsts: Vec<u8>,
    entry_rows: Vec<Row>,
    folder_rows: Vec<Row>,
}

/// A finished catalog.
#[derive(Debug)]
pub struct Written<W> {
    /// Where it was written to.
    pub sink: W,
    /// Names the snapshot.
    pub digest: String,
    /// Files in it.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Files and folders.
    pub entries: u64,
    /// Bytes of the catalog.
    pub len: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// `origin` is the source's URI with its prefix; it is part of every object key.
    ///
    /// # Errors
    /// Those of the sink, as everywhere here.
    pub fn new(sink: W, origin: &str) -> io::Result<Self> {
        let origin_len = u32::try_from(origin.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut writer = Self {
            sink,
            at: HEADER,
            body: blake3::Hasher::new(),
            origin: (origin_len, crc32c(origin.as_bytes())),
            entries: 0,
            folders: 0,
            sizes: Sizes::default(),
            fixed: Vec::with_capacity(ENTRIES as usize * ENTRY),
            strings: Vec::new(),
            firsts: Vec::new(),
            entry_rows: Vec::new(),
            folder_rows: Vec::new(),
        };
        writer.sink.write_all(&[0; HEADER as usize])?;
        writer.append(origin.as_bytes())?;
        writer.folder(0, b"")?;
        Ok(writer)
    }

    /// Entries written so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// A folder; gives its position.
    pub(super) fn folder(&mut self, parent: u64, name: &[u8]) -> io::Result<u64> {
        let rank = self.folders;
        self.folders += 1;
        self.entry(parent, name, KIND_DIR, rank, 0, b"")
    }

    /// A file; gives its position.
    pub(super) fn file(&mut self, parent: u64, name: &[u8], size: u64, mtime_ns: i64, version: &[u8]) -> io::Result<u64> {
        self.sizes.add(size);
        self.entry(parent, name, KIND_FILE, size, mtime_ns, version)
    }

    /// The children of the next folder begin here. MUST be said once for each folder, in the order of their positions.
    pub(super) fn begin_children(&mut self) -> io::Result<()> {
        self.firsts.extend_from_slice(&self.entries.to_le_bytes());
        if self.firsts.len() as u64 > FOLDERS * 8 {
            self.flush_folders()?;
            self.firsts.extend_from_slice(&self.entries.to_le_bytes());
        }
        Ok(())
    }

    /// Writes what is left, then the header.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(mut self) -> io::Result<Written<W>> {
        if !self.fixed.is_empty() {
            self.flush_entries()?;
        }
        // Where the children of the last folder end.
        self.firsts.extend_from_slice(&self.entries.to_le_bytes());
        if self.firsts.len() > 8 {
            self.flush_folders()?;
        }
        let mut table = blake3::Hasher::new();
        let rows = self.entry_rows.iter().chain(&self.folder_rows);
        for rows in rows.map(|r| r.encode()).collect::<Vec<_>>().chunks(4096) {
            let piece = rows.concat();
            table.update(&piece);
            self.sink.write_all(&piece)?;
        }
        let header = Header {
            entries: self.entries,
            folders: self.folders,
            body_end: self.at,
            origin_len: self.origin.0,
            origin_crc: self.origin.1,
            body: *self.body.finalize().as_bytes(),
            table: *table.finalize().as_bytes(),
            sizes: self.sizes.clone(),
        };
        let encoded = header.encode();
        self.sink.seek(SeekFrom::Start(0))?;
        self.sink.write_all(&encoded)?;
        self.sink.flush()?;
        let all = self.sizes.all();
        let sections = (self.entry_rows.len() + self.folder_rows.len()) as u64;
        Ok(Written {
            sink: self.sink,
            digest: super::digest(&encoded),
            files: all.files,
            bytes: all.bytes,
            entries: self.entries,
            len: self.at + sections * ROW as u64,
        })
    }

    fn entry(&mut self, parent: u64, name: &[u8], kind: u8, a: u64, b: i64, version: &[u8]) -> io::Result<u64> {
        let (Ok(name_len), Ok(version_len)) = (u8::try_from(name.len()), u8::try_from(version.len())) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("name or version over {VERSION_MAX} bytes")));
        };
        if self.fixed.len() as u64 == ENTRIES * ENTRY as u64 {
            self.flush_entries()?;
        }
        self.fixed.extend_from_slice(&parent.to_le_bytes());
        self.fixed.extend_from_slice(&a.to_le_bytes());
        self.fixed.extend_from_slice(&b.to_le_bytes());
        self.fixed.extend_from_slice(&(self.strings.len() as u32).to_le_bytes());
        self.fixed.extend_from_slice(&[name_len, version_len, kind, 0]);
        self.strings.extend_from_slice(name);
        self.strings.extend_from_slice(version);
        self.entries += 1;
        Ok(self.entries - 1)
    }

    fn flush_entries(&mut self) -> io::Result<()> {
        let mut section = std::mem::take(&mut self.fixed);
        section.append(&mut self.strings);
        let row = self.section(&section)?;
        self.entry_rows.push(row);
        section.clear();
        self.fixed = section;
        Ok(())
    }

    fn flush_folders(&mut self) -> io::Result<()> {
        let firsts = std::mem::take(&mut self.firsts);
        let row = self.section(&firsts)?;
        self.folder_rows.push(row);
        Ok(())
    }

    fn section(&mut self, bytes: &[u8]) -> io::Result<Row> {
        let row = Row { start: self.at, len: bytes.len() as u32, crc: crc32c(bytes) };
        self.append(bytes)?;
        Ok(row)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.body.update(bytes);
        self.sink.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
