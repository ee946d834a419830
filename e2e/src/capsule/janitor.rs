//! Cleans up what the kernel does not: cgroup directories and the run's bulky files.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::unistd::setsid;

use super::{cgroup, own_program, stage};
use crate::process::append_to;
use crate::run_dir::RunDir;

/// The janitor of the run that this process owns. It starts its work when this value, or the process, is gone.
pub(super) struct Janitor(Child);

/// Starts the janitor, in a session of its own so that no signal to the owner's group reaches it.
pub(super) fn start(run: &RunDir) -> Result<Janitor> {
    let log = append_to(&run.log("janitor"))?;
    Command::new(own_program(run))
        .args([stage::JANITOR, run.id()])
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("duplicate a log file")?)
        .stderr(log)
        .spawn()
        .map(Janitor)
        .context("start the janitor")
}

impl Janitor {
    /// Lets it do its work and waits for it.
    pub(super) fn finish(mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Stage `internal-janitor`: waits till the owner is gone or done, then removes what is left of the run.
///
/// # Errors
/// A cgroup directory could not be removed in half a minute.
pub fn janitor(id: &str) -> Result<()> {
    setsid().context("start a session")?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let removed = cgroup::remove(id);
    RunDir::of(id).discard();
    removed
}
