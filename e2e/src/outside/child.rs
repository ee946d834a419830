//! This program, started again, with its output in a file.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::capsule::this_program;
use crate::process::{Run as _, tail};
use crate::report::with_heartbeat;
use crate::run_dir::{RunDir, id_of};
use crate::tools::repository;

const PAUSE: Duration = Duration::from_millis(100);

/// A run of this program that this test owns; killed if the test gives up, or is killed itself.
pub(super) struct OwnRun {
    child: Child,
    output: PathBuf,
    run: RunDir,
}

impl OwnRun {
    /// Starts it; `name` is that of the file with its output.
    pub(super) fn start(name: &str, arguments: &[&str]) -> Result<Self> {
        let output = repository().join("target/e2e").join(format!("{name}.log"));
        let _ = fs::remove_file(&output);
        // `setpriv` becomes the program: same process, same start time.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(this_program()?)
            .args(arguments)
            // The operator needs a node without GPUs, whatever the caller's own cluster has.
            .env("NODES", "3")
            .start(&output)?;
        let id = id_of(child.id()).context("read the start time of a run")?;
        Ok(Self { run: RunDir::of(&id), child, output })
    }

    /// Its folder.
    pub(super) fn run(&self) -> &RunDir {
        &self.run
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look at a run")? {
            bail!("{} has ended ({status}):\n{}", self.run.id(), tail(&self.output, 20));
        }
        Ok(())
    }

    /// Waits till it has printed this.
    pub(super) fn wait_printed(&mut self, text: &str, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("`{text}`"), timeout, |run| {
            Ok(fs::read_to_string(&run.output).unwrap_or_default().contains(text).then_some(()))
        })
    }

    /// Waits till `look` finds something; the run must live on meanwhile.
    pub(super) fn wait_until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        look: impl Fn(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let (started, output) = (Instant::now(), self.output.clone());
        with_heartbeat(
            what,
            || tail(&output, 1),
            || {
                loop {
                    self.check_alive()?;
                    if let Some(found) = look(self)? {
                        return Ok(found);
                    }
                    ensure!(started.elapsed() < timeout, "{what}: not after {timeout:?}:\n{}", tail(&self.output, 20));
                    std::thread::sleep(PAUSE);
                }
            },
        )
    }

    /// Sends a signal to its outermost process, and to no other.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("send {signal} to a run"))
    }

    /// Waits till its outermost process is gone; returns how that ended.
    pub(super) fn wait_ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let (started, output) = (Instant::now(), self.output.clone());
        let child = &mut self.child;
        with_heartbeat(
            "its end",
            || tail(&output, 1),
            || {
                loop {
                    if let Some(status) = child.try_wait().context("look at a run")? {
                        return Ok(status);
                    }
                    ensure!(started.elapsed() < timeout, "it still runs after {timeout:?}:\n{}", tail(&output, 20));
                    std::thread::sleep(PAUSE);
                }
            },
        )
    }

    /// The end of what it printed.
    pub(super) fn tail(&self, lines: usize) -> String {
        tail(&self.output, lines)
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
