//! The capsule: private network, mount, pid and uts namespaces in which a whole cluster runs and dies.
//!
//! ```text
//! larder-e2e test            the owner: blocks signals, waits, cleans up
//!  ├─ larder-e2e janitor     sees the owner die (end of its standard input), removes cgroups and data
//!  └─ unshare --kill-child   dies with the owner (parent-death signal)
//!      └─ larder-e2e init    PID 1 inside: reaps orphans; its death kills everything inside
//!          └─ larder-e2e …   harness and tests
//! ```
//!
//! Mounts, interfaces and processes belong to the namespaces, so the kernel removes them whichever process is killed in
//! whichever way. Only cgroup directories and files do not: those are the janitor's, or the next run's if the janitor
//! was killed too.

pub mod cgroup;
mod inside;
mod janitor;
pub(crate) mod mounts;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, setsid};

pub use inside::{init, prepare};
pub use janitor::janitor;

use crate::report::say;
use crate::run_dir::{RUN_VARIABLE, RunDir, RunState};
use crate::tools::Tools;

/// The hidden subcommands by which this binary starts itself again.
pub mod stage {
    /// Becomes `unshare`.
    pub const ENTER: &str = "internal-enter";
    /// PID 1 of the capsule.
    pub const INIT: &str = "internal-init";
    /// Cleans up after the owner.
    pub const JANITOR: &str = "internal-janitor";
    /// Holds one node's namespaces.
    pub const NODE: &str = "internal-node";
}

/// This very program; if it was built anew meanwhile, the new one.
///
/// # Errors
/// `/proc` is not mounted.
pub fn this_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("find this program's file")?;
    let replaced = path.to_str().and_then(|p| p.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

/// The run's own copy of this program, for all that is started in the course of the run: a build in the meantime may replace
/// the original by another version.
pub(crate) fn own_program(run: &RunDir) -> PathBuf {
    run.path("larder-e2e")
}

/// Runs this program with `arguments` inside a new capsule until it ends; returns its exit status.
///
/// # Errors
/// The capsule cannot be made. Whatever happens, nothing of it is left behind.
pub fn run(run: &RunDir, tools: &Tools, arguments: &[OsString]) -> Result<i32> {
    cgroup::sweep();
    std::fs::copy("/proc/self/exe", own_program(run)).context("copy this program into the run")?;
    // From here on the signals come through `wait` below; children get an empty mask from the standard library.
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect::<SigSet>();
    signals.thread_block().context("block signals")?;
    let janitor = janitor::start(run)?;
    let status = start(run, tools, arguments).and_then(|child| wait(child, &signals));
    janitor.finish();
    status
}

fn start(run: &RunDir, tools: &Tools, arguments: &[OsString]) -> Result<Child> {
    let environment = tools.environment(&run.path("bin"));
    let child = Command::new(own_program(run))
        .arg(stage::ENTER)
        .args(arguments)
        .envs(environment.iter().cloned())
        .env("KUBECONFIG", run.kubeconfig())
        .env("HOME", run.path("home"))
        .env("LARDER_CACHE", tools.cache())
        .env(RUN_VARIABLE, run.id())
        .stdin(Stdio::null())
        .spawn()
        .context("start the capsule")?;
    let text = |name| environment.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string_lossy().into_owned());
    run.save_state(&RunState {
        capsule: child.id().cast_signed(),
        path: text("PATH").unwrap_or_default(),
        libraries: text("LD_LIBRARY_PATH").unwrap_or_default(),
    })?;
    Ok(child)
}

fn wait(mut child: Child, signals: &SigSet) -> Result<i32> {
    loop {
        if let Some(status) = child.try_wait().context("wait for the capsule")? {
            return Ok(status.code().unwrap_or(1));
        }
        match signals.wait().context("wait for a signal")? {
            Signal::SIGCHLD => {}
            signal => {
                say(format!("{signal}: stopping everything"));
                child.kill().context("end the capsule")?;
                child.wait().context("wait for the capsule")?;
                return Ok(128 + signal as i32);
            }
        }
    }
}

/// Stage `internal-enter`: ties this process to its parent's life and becomes `unshare`.
///
/// # Errors
/// Always, if it returns.
pub fn enter(arguments: &[OsString]) -> Result<()> {
    let parent = getppid();
    setsid().context("start a session")?; // Ctrl-C is for the owner alone
    prctl::set_pdeathsig(Signal::SIGKILL).context("set the parent-death signal")?;
    if getppid() != parent || parent == Pid::from_raw(1) {
        std::process::exit(1); // the owner died before the line above took effect
    }
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child", "--"])
        .arg(own_program(&RunDir::current()?))
        .arg(stage::INIT)
        .args(arguments)
        .exec();
    Err(error).context("run `unshare`")
}

/// The process outside that is PID 1 inside the capsule of a run.
///
/// # Errors
/// The run has no capsule any more.
pub fn init_of(run: &RunDir) -> Result<i32> {
    let parent = run.state()?.capsule;
    std::fs::read_dir("/proc")
        .context("list processes")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
                stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok()) == Some(parent)
            })
        })
        .with_context(|| format!("run {} has no capsule", run.id()))
}
