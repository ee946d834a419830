//! `up`, `shell`, `down`: a cluster that stays.
//!
//! `up` starts a keeper in the background, which is a run like any other (see `capsule`) that does not end; it shows the
//! keeper's output till the cluster is up. `shell` enters the keeper's capsule, `down` ends the keeper.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::preflight;
use crate::capsule::{cgroup, init_of, this_program};
use crate::cluster::ClusterSpec;
use crate::lab::Lab;
use crate::process::append_to;
use crate::report::say;
use crate::run_dir::{RunDir, id_of};
use crate::tools::{Tools, Wanted, repository};

/// The hidden subcommand that is the keeper.
pub(super) const STAGE: &str = "internal-keep";

/// In the run's folder once the cluster is up; the exit status for `up`.
const READY: &str = "ready";

/// The log of the process that keeps the cluster.
const LOG: &str = "keeper";

/// How often a keeper looks whether all components still run.
const CHECK: Duration = Duration::from_secs(5);

/// The run of the keeper, also of one that is still starting.
fn kept() -> Option<RunDir> {
    let is_keeper = |run: &RunDir| {
        let line = run.owner().and_then(|owner| fs::read(format!("/proc/{owner}/cmdline")).ok()).unwrap_or_default();
        run.is_alive() && line.split(|byte| *byte == 0).nth(1) == Some(STAGE.as_bytes())
    };
    RunDir::all().into_iter().rev().find(is_keeper)
}

/// Starts a keeper in the background and shows its output till the cluster is up, and the demo over.
pub(super) fn up(demo: bool) -> Result<i32> {
    preflight::check()?;
    if let Some(run) = kept() {
        say(format!("a cluster is up already (run {}); `larder-e2e shell` to use it, `larder-e2e down` to end it", run.id()));
        return Ok(0);
    }
    Tools::install(Wanted::Cluster)?;
    let first = repository().join("target/e2e/keeper.log");
    let _ = fs::remove_file(&first);
    let log = append_to(&first)?;
    let mut keeper = Command::new("setsid")
        .arg(this_program()?)
        .arg(STAGE)
        .args(demo.then_some("--demo"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("duplicate a log file")?)
        .stderr(log)
        .spawn()
        .context("start the keeper")?;
    let run = RunDir::of(&id_of(keeper.id()).context("read the keeper's start time")?);
    let mut shown = 0;
    loop {
        let ended = keeper.try_wait().context("look at the keeper")?;
        let ready = fs::read_to_string(run.path(READY)).unwrap_or_default();
        shown = show_from(&first, shown)?;
        if let Some(status) = ended {
            bail!("the cluster did not come up ({status}); logs: {}", run.log_folder().display());
        }
        if let Ok(status) = ready.trim().parse() {
            fs::rename(&first, run.log(LOG)).context("put the keeper's log in place")?;
            say("`larder-e2e shell` opens a shell in which kubectl, helm and larder work; `larder-e2e down` ends the cluster");
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn show_from(log: &std::path::Path, from: u64) -> Result<u64> {
    let mut file = fs::File::open(log).context("open the keeper's log")?;
    file.seek(SeekFrom::Start(from)).context("read the keeper's log")?;
    let mut text = Vec::new();
    let read = file.read_to_end(&mut text).context("read the keeper's log")?;
    std::io::stdout().write_all(&text).context("print the keeper's log")?;
    Ok(from + read as u64)
}

/// The keeper, in its capsule: starts the lab and keeps it, also after a demo that failed.
pub(super) fn inside(run: &RunDir, tools: &Tools, demo: bool) -> Result<i32> {
    let lab = Lab::up(run, tools, &ClusterSpec::from_environment()?)?;
    let outcome = if demo { crate::scenarios::demo(&lab, true) } else { Ok(()) };
    if let Err(error) = &outcome {
        say(format!("error: {error:#}"));
    }
    fs::write(run.path(READY), format!("{}\n", i32::from(outcome.is_err()))).context("say that the cluster is up")?;
    loop {
        std::thread::sleep(CHECK);
        if let Err(error) = lab.cluster.check_components() {
            say(format!("{error:#}"));
        }
    }
}

/// Becomes a shell, or a command, in the namespaces of the cluster that is up.
pub(super) fn shell(node: Option<&str>, command: &[OsString]) -> Result<i32> {
    let run = kept().context("no cluster is up; `larder-e2e up` starts one")?;
    let state = run.state()?;
    let target = match node {
        None => init_of(&run)?,
        Some(node) => holder_of(&run, node)?,
    };
    let mut enter = Command::new("nsenter");
    enter
        .args(["--target", &target.to_string(), "--net", "--mount", "--pid", "--uts"])
        .arg(format!("--wd={}", std::env::current_dir().context("current folder")?.display()))
        .arg("--")
        .env("PATH", state.path)
        .env("LD_LIBRARY_PATH", state.libraries)
        .env("KUBECONFIG", run.kubeconfig())
        .env("HOME", run.path("home"));
    match command {
        [] => enter.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/bash".into())),
        command => enter.args(command),
    };
    Err(enter.exec()).context("run `nsenter`")
}

/// The process, as seen from outside, that holds a node's namespaces.
fn holder_of(run: &RunDir, node: &str) -> Result<i32> {
    let folder = run.path("nodes").join(node);
    fs::read_dir("/proc")
        .context("list processes")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
            arguments.get(1) == Some(&crate::capsule::stage::NODE.as_bytes())
                && arguments.get(2) == Some(&folder.as_os_str().as_encoded_bytes())
        })
        .with_context(|| format!("the cluster has no node {node}"))
}

/// Ends the cluster that is up, and whatever killed runs left behind.
pub(super) fn down() -> Result<i32> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let Some(run) = kept() else {
        cgroup::sweep();
        RunDir::sweep();
        say("no cluster is up");
        return Ok(0);
    };
    let owner = Pid::from_raw(run.owner().context("the run has no owner")?.cast_signed());
    kill(owner, Signal::SIGTERM).context("end the cluster")?;
    let started = Instant::now();
    while run.is_alive() {
        ensure!(started.elapsed() < PATIENCE, "the cluster has not ended after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    cgroup::sweep();
    RunDir::sweep();
    say(format!("the cluster is down; its logs are in {}", run.log_folder().display()));
    Ok(0)
}
