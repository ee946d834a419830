//! Random places of files that are open: by pread, and by touching pages of maps.

use super::Took;
use crate::{cpu, stats::Random};
use anyhow::Context as _;
use larder_fuse::map::Map;
use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, time::Instant};

const PAGE: usize = 4096;

/// Reads `count` aligned blocks.
pub(super) fn pread(files: &[PathBuf], block: usize, count: usize, seed: u64) -> anyhow::Result<Took> {
    let open = |path: &PathBuf| -> anyhow::Result<(File, usize)> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let blocks = usize::try_from(file.metadata()?.len())? / block;
        anyhow::ensure!(blocks > 0, "{} is shorter than a block", path.display());
        Ok((file, blocks))
    };
    let files = files.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut random, mut buffer) = (Random::new(seed), vec![0; block]);
    measure(count, block, || {
        let (file, blocks) = &files[random.below(files.len())];
        let at = random.below(*blocks) * block;
        file.read_exact_at(&mut buffer, at as u64).context("pread")
    })
}

/// Touches `count` pages.
pub(super) fn touch(files: &[PathBuf], count: usize, seed: u64) -> anyhow::Result<Took> {
    let map = |path: &PathBuf| -> anyhow::Result<Map> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let len = usize::try_from(file.metadata()?.len())?;
        Map::new(&file, len).with_context(|| format!("map {}", path.display()))
    };
    let maps = files.iter().map(map).collect::<anyhow::Result<Vec<_>>>()?;
    let mut random = Random::new(seed);
    measure(count, PAGE, || {
        let map = &maps[random.below(maps.len())];
        std::hint::black_box(map[random.below(map.len() / PAGE) * PAGE]);
        Ok(())
    })
}

fn measure(count: usize, block: usize, mut each: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Took> {
    let (started, before) = (Instant::now(), cpu::of_this_thread());
    for _ in 0..count {
        each()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu::of_this_thread() - before;
    Ok(Took { seconds, bytes: (count * block) as u64, count: count as u64, cpu, tails: None })
}
