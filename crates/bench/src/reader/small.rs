//! Small files as a data loader takes them: open, stat, read whole, close; in random order.

use super::{Took, timed};
use crate::stats::Random;
use anyhow::Context as _;
use std::{fs::File, io::Read as _, path::PathBuf};

pub(super) fn read(mut files: Vec<PathBuf>, threads: usize, seed: u64) -> anyhow::Result<Took> {
    Random::new(seed).shuffle(&mut files);
    timed(&files, threads, |path, buffer| {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let len = usize::try_from(file.metadata().with_context(|| format!("stat {}", path.display()))?.len())?;
        buffer.resize(len, 0);
        file.read_exact(buffer).with_context(|| format!("read {}", path.display()))?;
        Ok((len as u64, 1))
    })
}
