//! A process of Larder's that is measured while it runs.

use crate::cpu;
use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for one to end that was asked to.
const ENDS: Duration = Duration::from_secs(30);

pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until its log says so.
    pub fn start(command: &mut Command, log: &Path, ready: &str, patience: Duration) -> anyhow::Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.with_context(|| format!("run {}", command.get_program().display()))?;
        let mut this = Self { child, log: log.to_owned() };
        while !this.says().contains(ready) {
            let ended = this.child.try_wait().context("wait for a process")?;
            anyhow::ensure!(ended.is_none(), "{}: {}", log.display(), this.says().trim());
            anyhow::ensure!(started.elapsed() < patience, "{}: not ready within {patience:?}", log.display());
            std::thread::sleep(LOOK);
        }
        Ok(this)
    }

    fn says(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn cpu(&self) -> f64 {
        cpu::of_process(self.child.id())
    }

    pub fn peak_memory(&self) -> Option<u64> {
        cpu::peak_memory(self.child.id())
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let asked = Instant::now();
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        }
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > ENDS {
                self.child.kill()?;
                self.child.wait()?;
                anyhow::bail!("{}: did not end within {ENDS:?}", self.log.display());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // On the way out of an error; what is left is told by the next run.
        let _ = self.stop();
    }
}
