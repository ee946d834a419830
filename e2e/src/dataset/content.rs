//! What is in the files: pictures, records and noise, which depend on seed, path and size only. Quickly made, and hardly
//! compressible.
//!
//! ```text
//! samples/class-07/000123.pgm   binary PGM, a picture of class 7; a comment fills the file up to its size
//! shards/shard-00000.rec        records of 4,096 bytes; the last one may be cut off:
//!                               "LRDR", label u32, number u64 (little-endian), a picture of 80 x 51 pixels
//! anything else                 noise
//! ```

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::picture::{CLASSES, Look};

/// How much is handed on at a time; a multiple of [`RECORD`].
const BLOCK: usize = 1 << 20;
const RECORD: usize = 4096;
const RECORD_HEADER: usize = 16;
const RECORD_MAGIC: &[u8; 4] = b"LRDR";
const RECORD_WIDTH: usize = 80;

/// Makes a file's content and hands it on block by block.
pub(super) fn generate(seed: u64, path: &str, size: u64, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut noise = Noise::new(seed, path);
    if let Some(class) = class_of(path) {
        return sink(&picture(&mut noise, class, usize::try_from(size)?));
    }
    let records = path.starts_with("shards/");
    let (mut block, mut left) = (vec![0; BLOCK], size);
    for number in 0.. {
        if left == 0 {
            break;
        }
        if records {
            fill_with_records(&mut noise, number * (BLOCK / RECORD) as u64, &mut block);
        } else {
            noise.fill(&mut block, u64::MAX);
        }
        let part = &block[..BLOCK.min(usize::try_from(left)?)];
        sink(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

fn class_of(path: &str) -> Option<u64> {
    path.strip_prefix("samples/class-")?.split('/').next()?.parse().ok()
}

/// A PGM file of exactly `size` bytes, somewhere between 3:4 and 4:3.
fn picture(noise: &mut Noise, class: u64, size: usize) -> Vec<u8> {
    /// More than the header without its comment.
    const HEADER: usize = 48;
    let pixels = size.saturating_sub(HEADER);
    let ratio = 75 + noise.next() as usize % 58;
    let width = (pixels * ratio / 100).isqrt().max(1);
    let height = pixels / width;
    let end = format!("\n{width} {height}\n255\n");
    let mut file = format!("P5\n#{:.<1$}{end}", "", size.saturating_sub(4 + end.len() + width * height)).into_bytes();
    let start = file.len();
    file.resize(start + width * height, 0);
    let look = Look::new(class, noise.next());
    noise.fill(&mut file[start..], DARK);
    look.add_to(&mut file[start..], width, height);
    file
}

fn fill_with_records(noise: &mut Noise, first: u64, block: &mut [u8]) {
    noise.fill(block, DARK);
    for (number, record) in (first..).zip(block.chunks_exact_mut(RECORD)) {
        let class = noise.next() % CLASSES;
        let (header, pixels) = record.split_at_mut(RECORD_HEADER);
        header[..4].copy_from_slice(RECORD_MAGIC);
        header[4..8].copy_from_slice(&(class as u32).to_le_bytes());
        header[8..].copy_from_slice(&number.to_le_bytes());
        Look::new(class, noise.next()).add_to_words::<RECORD_WIDTH>(pixels);
    }
}

/// Leaves each byte below 128, so that a look can be added.
const DARK: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// xoshiro256++.
struct Noise {
    state: [u64; 4],
}

impl Noise {
    fn new(seed: u64, path: &str) -> Self {
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(path).finalize();
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(digest.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self { state }
    }

    /// Random bytes, of which only the bits of `mask` may be set.
    fn fill(&mut self, block: &mut [u8], mask: u64) {
        let (words, rest) = block.as_chunks_mut::<8>();
        for word in words {
            *word = (self.next() & mask).to_le_bytes();
        }
        let bytes = (self.next() & mask).to_le_bytes();
        rest.copy_from_slice(&bytes[..rest.len()]);
    }

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
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(seed: u64, path: &str, size: u64) -> Vec<u8> {
        let mut all = Vec::new();
        generate(seed, path, size, |part| {
            all.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn every_file_has_its_size_and_depends_on_seed_and_path() {
        for path in ["odd/empty", "samples/class-03/000001.pgm", "shards/shard-00000.rec", "else"] {
            for size in [0, 77, 20_000, (1 << 20) + 4_097] {
                let size = if path.starts_with("samples") { size.max(77) } else { size };
                assert_eq!(content(1, path, size).len() as u64, size, "{path}");
            }
            assert_eq!(content(1, path, 5_000), content(1, path, 5_000));
            assert_ne!(content(1, path, 5_000), content(2, path, 5_000));
            assert_ne!(content(1, path, 5_000), content(1, &format!("{path}x"), 5_000));
        }
    }

    #[test]
    fn a_picture_has_a_header_that_fits_its_pixels() {
        let file = content(1, "samples/class-03/000001.pgm", 50_001);
        let mut lines = file.splitn(5, |byte| *byte == b'\n');
        assert_eq!(lines.next(), Some(&b"P5"[..]));
        assert!(lines.next().unwrap().starts_with(b"#"));
        let sides = String::from_utf8(lines.next().unwrap().to_vec()).unwrap();
        let (width, height) = sides.split_once(' ').unwrap();
        assert_eq!(lines.next(), Some(&b"255"[..]));
        assert_eq!(width.parse::<usize>().unwrap() * height.parse::<usize>().unwrap(), lines.next().unwrap().len());
    }

    #[test]
    fn records_are_numbered_through_all_blocks_and_have_all_labels() {
        let file = content(1, "shards/shard-00000.rec", 3 << 20);
        let mut labels = std::collections::BTreeSet::new();
        for (number, record) in (0_u64..).zip(file.chunks(RECORD)) {
            assert_eq!(&record[..4], RECORD_MAGIC);
            assert_eq!(record[8..16], number.to_le_bytes());
            labels.insert(u64::from(record[4]));
        }
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), (0..CLASSES).collect::<Vec<_>>());
    }
}
