//! Pseudo-random bytes that depend on seed and path only. Fast and incompressible; nothing more is asked of them.

use sha2::{Digest as _, Sha256};

/// The content of one file, from its start on.
pub(super) struct Content {
    state: [u64; 4],
}

impl Content {
    pub(super) fn new(seed: u64, path: &str) -> Self {
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(path).finalize();
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(digest.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self { state }
    }

    /// The next bytes. Blocks must be a multiple of eight bytes long, but for the last.
    pub(super) fn fill(&mut self, block: &mut [u8]) {
        for part in block.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }

    /// xoshiro256++.
    fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }
}

/// A number that looks random, from any number (splitmix64).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
