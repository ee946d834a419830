//! Reads against checksums: a byte that is not what was written is never given on.
//!
//! Each block of a file has its own checksum, so that a read of a few KiB reads one block more at most, not a chunk.

use crate::{CHUNK, sidecar::Sidecar, unreadable::Unreadable};
use bytes::Bytes;
use larder_core::checksum::{Joined, crc32c};
use larder_io::buffers::Buffer;
use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

/// Smallest block: half of what the kernel reads ahead by default.
const SMALLEST: u64 = 64 << 10;
/// Checksums of one file: 1 MiB of them, as long as blocks can grow. A file of 16 GiB has its first larger blocks.
const MOST: u64 = 1 << 18;

/// Block size of an object: a power of two, no larger than a chunk.
pub(crate) fn block_size(size: u64) -> u64 {
    size.div_ceil(MOST).next_power_of_two().clamp(SMALLEST, CHUNK)
}

/// Blocks that hold a range.
pub(crate) fn covering(size: u64, range: &Range<u64>) -> Range<usize> {
    let block = block_size(size);
    if range.is_empty() { 0..0 } else { (range.start / block) as usize..range.end.min(size).div_ceil(block) as usize }
}

fn extent(size: u64, block: usize) -> Range<u64> {
    let (len, n) = (block_size(size), block as u64);
    n * len..size.min((n + 1) * len)
}

/// Checksums of the blocks of some bytes that begin at a border of blocks.
pub(crate) fn crcs(size: u64, bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(block_size(size) as usize).map(crc32c).collect()
}

/// Bytes of a file that were compared with their checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Exactly the range that was asked for.
    pub bytes: Bytes,
    /// Their CRC-32C; as far as whole blocks go it is the one that they were written with.
    pub crc32c: u32,
}

impl Checked {
    /// Of bytes that were on no disk.
    #[must_use]
    pub fn of(bytes: Bytes) -> Self {
        Self { crc32c: crc32c(&bytes), bytes }
    }
}

/// Reads a range; `crcs` are those of the blocks that hold it. Blocks.
pub(crate) fn read(file: &File, size: u64, range: &Range<u64>, crcs: &[u32]) -> Result<Checked, Unreadable> {
    if range.is_empty() {
        return Ok(Checked::of(Bytes::new()));
    }
    let blocks = covering(size, range);
    let whole = extent(size, blocks.start).start..extent(size, blocks.end - 1).end;
    let mut buf = Buffer::new((whole.end - whole.start) as usize);
    file.read_exact_at(buf.as_mut(), whole.start)?;
    let mut joined = Joined::default();
    for n in blocks.clone() {
        let (at, want) = (extent(size, n), crcs[n - blocks.start]);
        let bytes = &buf.as_ref()[(at.start - whole.start) as usize..(at.end - whole.start) as usize];
        same(bytes, &at, want)?;
        joined = join(joined, want, bytes, &at, range);
    }
    let from = (range.start - whole.start) as usize;
    let bytes = buf.freeze().slice(from..from + (range.end - range.start) as usize);
    Ok(Checked { bytes, crc32c: joined.crc32c() })
}

/// Bytes of a file as they lie on the disk, compared with nothing. Whoever gets them MUST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchecked {
    /// Exactly the range that was asked for.
    pub bytes: Bytes,
    /// The CRC-32C that they were written with.
    pub crc32c: u32,
}

impl From<Checked> for Unchecked {
    fn from(Checked { bytes, crc32c }: Checked) -> Self {
        Self { bytes, crc32c }
    }
}

/// Are these whole blocks, so that their checksum is known without a look at them?
pub(crate) fn are_whole(size: u64, range: &Range<u64>) -> bool {
    let block = block_size(size);
    range.start.is_multiple_of(block) && (range.end.is_multiple_of(block) || range.end == size)
}

/// Reads a range of whole blocks. Blocks.
pub(crate) fn read_unchecked(file: &File, sidecar: &Sidecar, range: &Range<u64>) -> Result<Unchecked, Unreadable> {
    let mut buf = Buffer::new((range.end - range.start) as usize);
    file.read_exact_at(buf.as_mut(), range.start)?;
    Ok(Unchecked { bytes: buf.freeze(), crc32c: sum(file, sidecar, range)? })
}

/// Compares whole blocks that were read elsewhere; `start` is a border of blocks, and `crcs` are those from there on.
pub(crate) fn compare(size: u64, start: u64, bytes: &[u8], crcs: &[u32]) -> Result<(), Unreadable> {
    let blocks = covering(size, &(start..start + bytes.len() as u64));
    for n in blocks.clone() {
        let at = extent(size, n);
        same(&bytes[(at.start - start) as usize..(at.end - start) as usize], &at, crcs[n - blocks.start])?;
    }
    Ok(())
}

fn same(block: &[u8], at: &Range<u64>, want: u32) -> Result<(), Unreadable> {
    let got = crc32c(block);
    if got == want { Ok(()) } else { Err(Unreadable::Rotten { start: at.start, end: at.end, got, want }) }
}

/// Adds the part of a block that lies in the range.
fn join(joined: Joined, crc: u32, block: &[u8], at: &Range<u64>, range: &Range<u64>) -> Joined {
    let part = at.start.max(range.start)..at.end.min(range.end);
    if part == *at {
        return joined.then(crc, at.end - at.start);
    }
    let bytes = &block[(part.start - at.start) as usize..(part.end - at.start) as usize];
    joined.then(crc32c(bytes), bytes.len() as u64)
}

/// The checksum of a range of a complete file; reads no more than the two blocks at its ends. Blocks.
pub(crate) fn sum(file: &File, sidecar: &Sidecar, range: &Range<u64>) -> Result<u32, Unreadable> {
    let mut joined = Joined::default();
    for n in covering(sidecar.size, range) {
        let at = extent(sidecar.size, n);
        joined = if at.start >= range.start && at.end <= range.end {
            joined.then(sidecar.crcs[n], at.end - at.start)
        } else {
            let part = at.start.max(range.start)..at.end.min(range.end);
            let part = read(file, sidecar.size, &part, &sidecar.crcs[n..=n])?;
            joined.then(part.crc32c, part.bytes.len() as u64)
        };
    }
    Ok(joined.crc32c())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> (File, Vec<u8>, Sidecar) {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + (i >> 16)) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let crcs = crcs(size, &bytes);
        (file, bytes, Sidecar { size, crcs })
    }

    fn ranges(size: u64) -> Vec<Range<u64>> {
        let cuts = [0, 1, SMALLEST - 1, SMALLEST, SMALLEST + 9, 2 * SMALLEST, size - 1, size];
        cuts.iter().flat_map(|a| cuts.iter().map(move |b| *a..*b)).filter(|r| r.start <= r.end).collect()
    }

    #[test]
    fn every_range_is_read_with_its_own_checksum() {
        let size = 3 * SMALLEST + 100;
        let (file, bytes, sidecar) = file(size);
        for range in ranges(size) {
            let wanted = &bytes[range.start as usize..range.end as usize];
            let got = read(&file, size, &range, &sidecar.crcs[covering(size, &range)]).unwrap();
            assert!(got.bytes == wanted && got.crc32c == crc32c(wanted), "{range:?}");
            assert_eq!(sum(&file, &sidecar, &range).unwrap(), crc32c(wanted), "{range:?}");
        }
    }

    #[test]
    fn a_flipped_bit_fails_exactly_the_reads_of_its_block() {
        let size = 3 * SMALLEST + 100;
        for at in [0, SMALLEST - 1, SMALLEST, size - 1] {
            let (file, bytes, sidecar) = file(size);
            file.write_all_at(&[bytes[at as usize] ^ 4], at).unwrap();
            for range in ranges(size).into_iter().filter(|r| !r.is_empty()) {
                let hit = covering(size, &range).contains(&((at / SMALLEST) as usize));
                let got = read(&file, size, &range, &sidecar.crcs[covering(size, &range)]);
                assert_eq!(matches!(got, Err(Unreadable::Rotten { .. })), hit, "{range:?} {got:?}");
            }
        }
    }

    #[test]
    fn what_an_earlier_read_left_in_a_buffer_is_given_to_nobody() {
        let size = 2 * SMALLEST;
        let (whole, _, sidecar) = file(size);
        let reads = |file: &File| read(file, size, &(0..size), &sidecar.crcs);
        for missing in [1, SMALLEST, size] {
            drop(reads(&whole).unwrap());
            let (cut, ..) = file(size);
            cut.set_len(size - missing).unwrap();
            assert!(matches!(reads(&cut), Err(Unreadable::Disk(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof));
        }
    }

    #[test]
    fn whole_blocks_are_given_as_they_lie_there_with_the_checksum_they_were_written_with() {
        let size = 3 * SMALLEST + 100;
        let (file, bytes, sidecar) = file(size);
        file.write_all_at(&[bytes[5] ^ 4], 5).unwrap();
        for range in ranges(size).into_iter().filter(|range| are_whole(size, range)) {
            let wanted = &bytes[range.start as usize..range.end as usize];
            let got = read_unchecked(&file, &sidecar, &range).unwrap();
            assert_eq!(got.crc32c, crc32c(wanted), "{range:?}");
            assert_eq!(got.bytes == wanted, !range.contains(&5), "{range:?}");
        }
        assert!(are_whole(size, &(SMALLEST..size)) && are_whole(size, &(0..2 * SMALLEST)));
        assert!(!are_whole(size, &(1..size)) && !are_whole(size, &(0..SMALLEST - 1)) && !are_whole(size, &(0..size - 1)));
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn bytes_without_a_checksum_are_given_to_nobody() {
        let size = 2 * SMALLEST;
        let (file, _, sidecar) = file(size);
        let _ = read(&file, size, &(0..size), &sidecar.crcs[..1]);
    }

    #[test]
    fn tables_stay_short_and_blocks_within_chunks() {
        for size in [0, 1, CHUNK, 16 << 30, (16 << 30) + 1, 1 << 40, 5 << 40] {
            let block = block_size(size);
            assert!(CHUNK.is_multiple_of(block), "{size}");
            assert!(size.div_ceil(block) <= MOST || block == CHUNK, "{size}");
        }
        assert_eq!((block_size(16 << 30), block_size((16 << 30) + 1)), (64 << 10, 128 << 10));
    }
}
