//! CRC-32C: the checksum of everything that Larder keeps or sends.

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use std::{collections::HashMap, sync::LazyLock};

/// The checksum of some bytes.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // A 32-bit algorithm: the upper half is zero.
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

/// The checksum of bytes that come piece by piece: each is looked at when it comes, while it is in the processor's cache.
#[derive(Debug)]
pub struct Running(crc_fast::Digest);

impl Default for Running {
    fn default() -> Self {
        Self(crc_fast::Digest::new(Crc32Iscsi))
    }
}

impl Running {
    /// Adds bytes at the end.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn crc32c(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// The checksum of bytes that follow each other, from those of the parts: what was summed once is not read again for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined(u32);

impl Joined {
    /// Adds a part of this checksum and length at the end.
    #[must_use]
    pub fn then(self, crc: u32, len: u64) -> Self {
        let Some(shift) = SHIFTS.get(&len) else {
            return Self(crc_fast::checksum_combine(Crc32Iscsi, self.0.into(), crc.into(), len) as u32);
        };
        let shifted = (0..32).filter(|bit| self.0 >> bit & 1 == 1).fold(0, |sum, bit| sum ^ shift[bit]);
        Self(shifted ^ crc)
    }

    /// The checksum of all parts.
    #[must_use]
    pub fn crc32c(self) -> u32 {
        self.0
    }
}

/// What a part of so many bytes behind it does to each bit of a checksum. Joining is linear, so these 32 values tell all of it;
/// computing them anew costs more than the checksum of 64 KiB. Lengths: the powers of two from 64 KiB to 4 MiB.
static SHIFTS: LazyLock<HashMap<u64, [u32; 32]>> = LazyLock::new(|| {
    let shift = |len| std::array::from_fn(|bit| crc_fast::checksum_combine(Crc32Iscsi, 1 << bit, 0, len) as u32);
    (16..=22).map(|exponent| 1 << exponent).map(|len| (len, shift(len))).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_piece_by_piece_have_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..300_000_u64).map(|i| (i * 31 + (i >> 9)) as u8).collect();
        for piece in [1, 7, 4096, 100_000, bytes.len()] {
            let mut running = Running::default();
            bytes.chunks(piece).for_each(|b| running.add(b));
            assert_eq!(running.crc32c(), crc32c(&bytes), "{piece}");
        }
        assert_eq!(Running::default().crc32c(), crc32c(b""));
    }

    #[test]
    fn joined_parts_have_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..(3 << 17) + 77_u64).map(|i| (i * 31 + (i >> 9)) as u8).collect();
        for part in [1 << 16, 1 << 17, 1000, bytes.len()] {
            let joined = bytes.chunks(part).fold(Joined::default(), |j, p| j.then(crc32c(p), p.len() as u64));
            assert_eq!(joined.crc32c(), crc32c(&bytes), "{part}");
        }
        assert_eq!(Joined::default().crc32c(), crc32c(b""));
    }
}
