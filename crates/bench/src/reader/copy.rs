//! The plain client that a preload is compared with: ranges of files, in parallel, to files of the same names, synced.

use super::{Took, timed};
use anyhow::Context as _;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Each thread takes the next range that nobody has.
pub(super) fn ranges(names: &str, from: &Path, to: &Path, threads: usize, block: usize) -> anyhow::Result<Took> {
    let block = block as u64;
    let mut files = Vec::new();
    for name in names.lines() {
        let (source, target) = (from.join(name), to.join(name));
        fs::create_dir_all(target.parent().unwrap_or(to)).with_context(|| format!("make folder of {}", target.display()))?;
        let source = File::open(&source).with_context(|| format!("open {}", source.display()))?;
        let target = File::create(&target).with_context(|| format!("write {}", target.display()))?;
        files.push((source.metadata()?.len(), source, target));
    }
    let ranges: Vec<_> = files.iter().flat_map(|file| (0..file.0.div_ceil(block)).map(move |i| (file, i * block))).collect();
    let started = std::time::Instant::now();
    let took = timed(&ranges, threads, |((size, source, target), at), buffer| {
        buffer.resize(usize::try_from(block.min(size - at))?, 0);
        source.read_exact_at(buffer, *at).context("read a range")?;
        target.write_all_at(buffer, *at).context("write a range")?;
        Ok((buffer.len() as u64, 0))
    })?;
    // As a preload does before it says that it has a file.
    let synced = timed(&files, threads, |(_, _, target), _| target.sync_data().context("sync a file").map(|()| (0, 1)))?;
    let cpu = took.cpu + synced.cpu;
    Ok(Took { seconds: started.elapsed().as_secs_f64(), bytes: took.bytes, count: synced.count, cpu, tails: None })
}
