//! Whole files, in blocks.

use super::{Took, timed};
use anyhow::Context as _;
use std::{fs::File, io::Read as _, path::PathBuf};

/// Each thread takes the next file that nobody has.
pub(super) fn read(files: &[PathBuf], threads: usize, block: usize) -> anyhow::Result<Took> {
    timed(files, threads, |path, buffer| {
        buffer.resize(block, 0);
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut bytes = 0;
        loop {
            match file.read(buffer).with_context(|| format!("read {}", path.display()))? {
                0 => return Ok((bytes, 1)),
                n => bytes += n as u64,
            }
        }
    })
}
