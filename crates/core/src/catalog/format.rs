//! Where what lies in a catalog file.

pub(super) use crate::checksum::crc32c;

use super::{CatalogError, NAME_MAX, Sizes, VERSION_MAX};

pub(super) const MAGIC: &[u8; 8] = b"LARDRCAT";
/// Raised with every change of the format. A catalog of another version is not read; the origin is listed again.
pub const VERSION: u32 = 2;
pub(super) const HEADER: u64 = 4096;
pub(super) const ENTRY: usize = 32;
/// Entries of a section: with names and versions of usual lengths it has 5 to 7 KiB, so that one lookup in a cold cache reads
/// little.
pub(super) const ENTRIES: u64 = 64;
/// Folders of a section.
pub(super) const FOLDERS: u64 = 512;
/// A row of the table: offset (8), length (4), CRC-32C (4).
pub(super) const ROW: usize = 16;
/// Longest entry section there can be.
pub(super) const SECTION_MAX: usize = ENTRIES as usize * (ENTRY + NAME_MAX + VERSION_MAX);

const SIZES_AT: usize = 256;

/// The first 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub entries: u64,
    pub folders: u64,
    pub body_end: u64,
    pub origin_len: u32,
    pub origin_crc: u32,
    pub body: [u8; 32],
    pub table: [u8; 32],
    pub sizes: Sizes,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut h = Vec::with_capacity(HEADER as usize);
        h.extend_from_slice(MAGIC);
        h.extend_from_slice(&VERSION.to_le_bytes());
        h.extend_from_slice(&self.origin_len.to_le_bytes());
        for n in [self.entries, self.folders, self.body_end] {
            h.extend_from_slice(&n.to_le_bytes());
        }
        h.extend_from_slice(&self.origin_crc.to_le_bytes());
        h.extend_from_slice(&self.body);
        h.extend_from_slice(&self.table);
        h.resize(SIZES_AT, 0);
        self.sizes.encode(&mut h);
        h.resize(HEADER as usize - 4, 0);
        let crc = crc32c(&h);
        h.extend_from_slice(&crc.to_le_bytes());
        h
    }

    pub fn decode(h: &[u8; HEADER as usize]) -> Result<Self, CatalogError> {
        if &h[..8] != MAGIC {
            return Err(CatalogError::Header("no catalog"));
        }
        if u32_at(h, 8) != VERSION {
            return Err(CatalogError::Version(u32_at(h, 8)));
        }
        if u32_at(h, h.len() - 4) != crc32c(&h[..h.len() - 4]) {
            return Err(CatalogError::Header("header does not match its checksum"));
        }
        let header = Self {
            origin_len: u32_at(h, 12),
            entries: u64_at(h, 16),
            folders: u64_at(h, 24),
            body_end: u64_at(h, 32),
            origin_crc: u32_at(h, 40),
            body: *array_at(h, 44),
            table: *array_at(h, 76),
            sizes: Sizes::decode(array_at(h, SIZES_AT)),
        };
        let counted = header.folders.checked_add(header.sizes.all().files) == Some(header.entries);
        if !counted || header.folders == 0 || header.first_section() > header.body_end || header.file_len().is_none() {
            return Err(CatalogError::Header("numbers in the header contradict each other"));
        }
        Ok(header)
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> Option<u64> {
        self.sections().checked_mul(ROW as u64)?.checked_add(self.body_end)
    }

    pub fn first_section(&self) -> u64 {
        HEADER + u64::from(self.origin_len)
    }

    pub fn entry_sections(&self) -> u64 {
        self.entries.div_ceil(ENTRIES)
    }

    /// Entry sections have the first numbers, folder sections those behind them.
    pub fn sections(&self) -> u64 {
        self.entry_sections() + self.folders.div_ceil(FOLDERS)
    }

    /// How many entries or folders there are in a section.
    pub fn rows_of(&self, section: u64) -> u64 {
        match section.checked_sub(self.entry_sections()) {
            None => (self.entries - section * ENTRIES).min(ENTRIES),
            Some(section) => (self.folders - section * FOLDERS).min(FOLDERS),
        }
    }
}

/// Where a section lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub start: u64,
    pub len: u32,
    pub crc: u32,
}

impl Row {
    pub fn encode(self) -> [u8; ROW] {
        let mut row = [0; ROW];
        row[..8].copy_from_slice(&self.start.to_le_bytes());
        row[8..12].copy_from_slice(&self.len.to_le_bytes());
        row[12..].copy_from_slice(&self.crc.to_le_bytes());
        row
    }

    pub fn decode(row: &[u8; ROW]) -> Self {
        Self { start: u64_at(row, 0), len: u32_at(row, 8), crc: u32_at(row, 12) }
    }
}

/// MUST lie within the bytes, like all that follow.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().unwrap_or(&[0; N])
}
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*array_at(bytes, at))
}
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*array_at(bytes, at))
}
