//! The sidecar beside a complete file. All numbers little-endian.
//!
//! ```text
//! 0   magic "LARDRMET"     8   version u32      12  block size u32
//! 16  size u64             24  blocks u32       28  CRC-32C of bytes 0..28 and of the table
//! 32  CRC-32C of each block, 4 bytes each
//! ```
//!
//! The checksum of a chunk, of any range cut at blocks, and of the whole file follow from the table (`larder_core::checksum`).

use crate::{blocks::block_size, unreadable::Unreadable};
use larder_core::checksum::crc32c;
use std::{fs, path::Path};

const MAGIC: &[u8; 8] = b"LARDRMET";
const VERSION: u32 = 2;
const HEADER: usize = 32;

/// Largest sidecar that is read: that of an object of 5 TiB, S3's limit, with room. A larger file is not one of ours.
const LONGEST: u64 = 8 << 20;

/// What a complete file was written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    pub size: u64,
    /// One of each block.
    pub crcs: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("sidecar is not usable: {0}")]
pub(crate) struct Unusable(&'static str);

/// Reads a sidecar. Blocks.
pub(crate) fn load(path: &Path) -> Result<Sidecar, Unreadable> {
    if fs::metadata(path)?.len() > LONGEST {
        return Err(Unreadable::Sidecar(Unusable("too long")));
    }
    Sidecar::decode(&fs::read(path)?).map_err(Unreadable::Sidecar)
}

/// A number in a table.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Sidecar {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 4 * self.crcs.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(block_size(self.size) as u32).to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&(self.crcs.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        self.crcs.iter().for_each(|c| out.extend_from_slice(&c.to_le_bytes()));
        let crc = own_crc(&out);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err(Unusable("no sidecar"));
        }
        let u32_at = |at: usize| u32_at(bytes, at);
        let size = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
        if u32_at(8) != VERSION || u64::from(u32_at(12)) != block_size(size) {
            return Err(Unusable("written by another version of Larder"));
        }
        let count = u32_at(24) as usize;
        if size.div_ceil(block_size(size)) != count as u64 || bytes.len() != HEADER + 4 * count {
            return Err(Unusable("not as long as its header says"));
        }
        if u32_at(28) != own_crc(bytes) {
            return Err(Unusable("does not match its checksum"));
        }
        Ok(Self { size, crcs: (0..count).map(|i| u32_at(HEADER + 4 * i)).collect() })
    }
}

impl Sidecar {
    /// For the fuzzer: bytes with the magic, version, block size and checksum that the rest of them should have.
    pub fn with_checksum(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= HEADER {
            let size = u64::from(u32_at(&bytes, 16)) | u64::from(u32_at(&bytes, 20)) << 32;
            bytes[..8].copy_from_slice(MAGIC);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            bytes[12..16].copy_from_slice(&(block_size(size) as u32).to_le_bytes());
            let crc = own_crc(&bytes);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }
}

fn own_crc(bytes: &[u8]) -> u32 {
    use larder_core::checksum::Joined;
    let (head, table) = (&bytes[..28], &bytes[HEADER..]);
    Joined::default().then(crc32c(head), head.len() as u64).then(crc32c(table), table.len() as u64).crc32c()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_every_flipped_byte_is_noticed() {
        for (size, n) in [(0, 0), (1, 1), (1 << 16, 1), ((1 << 16) + 1, 2)] {
            let sidecar = Sidecar { size, crcs: vec![0xdead_beef; n] };
            let bytes = sidecar.encode();
            assert_eq!(Sidecar::decode(&bytes), Ok(sidecar));
            for i in 0..bytes.len() {
                let mut broken = bytes.clone();
                broken[i] ^= 1;
                assert!(Sidecar::decode(&broken).is_err(), "byte {i}");
                assert!(Sidecar::decode(&bytes[..i]).is_err(), "cut at {i}");
            }
        }
    }
}
