//! Names and sizes of a whole tree, by find(1).

use super::Took;
use crate::cpu;
use anyhow::Context as _;
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

pub(super) fn find(root: &Path) -> anyhow::Result<Took> {
    let (started, before) = (Instant::now(), cpu::of_children());
    let mut child = Command::new("find")
        .arg(root)
        .args(["-type", "f", "-printf", "%s\\n"])
        .stdout(Stdio::piped())
        .spawn()
        .context("run find")?;
    let stdout = child.stdout.take().context("output of find")?;
    let (mut count, mut bytes) = (0, 0);
    for line in BufReader::new(stdout).lines() {
        bytes += line.context("read from find")?.parse::<u64>().context("a size")?;
        count += 1;
    }
    let status = child.wait().context("wait for find")?;
    anyhow::ensure!(status.success(), "find {}: {status}", root.display());
    Ok(Took { seconds: started.elapsed().as_secs_f64(), bytes, count, cpu: cpu::of_children() - before, tails: None })
}
