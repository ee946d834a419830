//! The journal of an unfinished file: which chunks were written, and with which checksums.
//!
//! ```text
//! 0   magic "LARDRMAP"   8  version u32   12  CRC-32C of the other 20 bytes   16  size u64
//! 24  records: chunk u32, CRC-32C of each of its blocks, CRC-32C of the record
//! ```
//!
//! A record is appended when its chunk was written, and nothing is synced: after a crash of the process both are there, after a
//! loss of power either may be missing. So what a process finds is compared with its checksums before it counts.

use crate::{
    CHUNK,
    blocks::{block_size, covering},
    chunk_range, chunks, layout,
    sidecar::u32_at,
};
use larder_core::{checksum::crc32c, key::ObjectKey};
use larder_io::replace::{PowerLoss, Readers, replace};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

const MAGIC: &[u8; 8] = b"LARDRMAP";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// Objects of one chunk have no journal: an unfinished one has nothing worth keeping.
pub(super) fn is_kept(size: u64) -> bool {
    size > CHUNK
}

/// What was found of an unfinished file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    pub size: u64,
    /// Chunks and the checksums of their blocks.
    pub chunks: Vec<(u64, Vec<u32>)>,
}

/// Blocks.
pub(super) fn create(dir: &Path, key: &ObjectKey, size: u64) -> io::Result<()> {
    fs::write(layout::journal(dir, key), header(size))
}

fn header(size: u64) -> Vec<u8> {
    let mut header = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4], &size.to_le_bytes()].concat();
    let crc = header_crc(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

fn header_crc(header: &[u8]) -> u32 {
    crc32c(&[&header[..12], &header[16..HEADER]].concat())
}

/// Adds a chunk; one call of the kernel, so that chunks that land at the same moment do not mix. Blocks.
pub(crate) fn append(dir: &Path, key: &ObjectKey, chunk: u64, crcs: &[u32]) -> io::Result<()> {
    File::options().append(true).open(layout::journal(dir, key))?.write_all(&record_of(chunk, crcs))
}

fn record_of(chunk: u64, crcs: &[u32]) -> Vec<u8> {
    let mut record = (chunk as u32).to_le_bytes().to_vec();
    crcs.iter().for_each(|crc| record.extend_from_slice(&crc.to_le_bytes()));
    record.extend_from_slice(&crc32c(&record).to_le_bytes());
    record
}

/// Reads it as far as it is whole, and cuts off the rest, so that what is added later can be read. Blocks.
pub(crate) fn load(dir: &Path, key: &ObjectKey) -> Option<Journal> {
    let path = layout::journal(dir, key);
    let bytes = fs::read(&path).ok()?;
    let (journal, whole) = decode(&bytes)?;
    if whole < bytes.len() {
        File::options().write(true).open(&path).and_then(|f| f.set_len(whole as u64)).ok()?;
    }
    Some(journal)
}

/// Writes it anew; so what it does not tell of is not there after a loss of power either. Blocks.
pub(super) fn write(dir: &Path, key: &ObjectKey, journal: &Journal) -> io::Result<()> {
    let mut bytes = header(journal.size);
    journal.chunks.iter().for_each(|(n, crcs)| bytes.extend(record_of(*n, crcs)));
    replace(&layout::journal(dir, key), &bytes, Readers::Usual, PowerLoss::KeepsNew)
}

pub(crate) fn decode(bytes: &[u8]) -> Option<(Journal, usize)> {
    let header = bytes.get(..HEADER)?;
    if &header[..8] != MAGIC || u32_at(header, 8) != VERSION || u32_at(header, 12) != header_crc(header) {
        return None;
    }
    let size = u64::from(u32_at(header, 16)) | u64::from(u32_at(header, 20)) << 32;
    let (mut journal, mut at) = (Journal { size, chunks: Vec::new() }, HEADER);
    while let Some((chunk, crcs, len)) = record(size, &bytes[at..]) {
        journal.chunks.push((chunk, crcs));
        at += len;
    }
    Some((journal, at))
}

fn record(size: u64, bytes: &[u8]) -> Option<(u64, Vec<u32>, usize)> {
    let chunk = u64::from(u32_at(bytes.get(..4)?, 0));
    if chunk >= chunks(size) {
        return None;
    }
    let blocks = covering(size, &chunk_range(size, chunk)).len();
    debug_assert!(blocks as u64 <= CHUNK / block_size(size));
    let end = 4 + 4 * blocks;
    let whole = bytes.get(..end + 4)?;
    (crc32c(&whole[..end]) == u32_at(whole, end))
        .then(|| (chunk, (0..blocks).map(|n| u32_at(whole, 4 + 4 * n)).collect(), end + 4))
}

/// For the fuzzer: with the magic and the checksums that the rest of the bytes should have.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some(header) = bytes.get_mut(..HEADER) else { return bytes };
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = header_crc(header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    let size = u64::from(u32_at(header, 16)) | u64::from(u32_at(header, 20)) << 32;
    let mut rest = &mut bytes[HEADER..];
    while let Some(chunk) = rest.first_chunk().map(|chunk| u64::from(u32::from_le_bytes(*chunk))).filter(|n| *n < chunks(size))
    {
        let end = 4 + 4 * covering(size, &chunk_range(size, chunk)).len();
        let Some((record, behind)) = rest.split_at_mut_checked(end + 4) else { break };
        let crc = crc32c(&record[..end]);
        record[end..].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_is_cut_or_damaged_anywhere_gives_what_was_whole_before() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(layout::fill_folder(dir.path())).unwrap();
        let (key, size) = (ObjectKey::new("o", "p", "v", 1), 2 * CHUNK + 100);
        create(dir.path(), &key, size).unwrap();
        let records = [(1, vec![7; 64]), (2, vec![9; 1]), (0, vec![8; 64])];
        for (chunk, crcs) in &records {
            append(dir.path(), &key, *chunk, crcs).unwrap();
        }
        assert_eq!(load(dir.path(), &key), Some(Journal { size, chunks: records.to_vec() }));
        let path = layout::journal(dir.path(), &key);
        let bytes = fs::read(&path).unwrap();
        let ends = [HEADER, HEADER + 264, HEADER + 264 + 12, HEADER + 264 + 12 + 264];
        assert_eq!(ends[3], bytes.len());
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 16;
            for broken in [&bytes[..at], &flipped] {
                fs::write(&path, broken).unwrap();
                let got = load(dir.path(), &key);
                let whole = ends.iter().filter(|end| **end <= at).count().checked_sub(1);
                assert_eq!(got.map(|j| j.chunks), whole.map(|n| records[..n].to_vec()), "{at}");
                if whole.is_some() {
                    append(dir.path(), &key, 0, &[8; 64]).unwrap();
                    assert_eq!(load(dir.path(), &key).unwrap().chunks.last(), Some(&records[2]), "{at}");
                }
            }
        }
    }
}
