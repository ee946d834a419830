//! What happens inside a new capsule before the harness: PID 1, and its `/run` and `bin/`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::mounts::{bind, tmpfs};
use super::own_program;
use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;
use crate::{registry, s3};

/// Stage `internal-init`: PID 1. Starts this program again and reaps whoever is orphaned until that one ends.
///
/// # Errors
/// The harness cannot be started.
pub fn init(arguments: &[OsString]) -> Result<i32> {
    let child = Command::new(own_program(&RunDir::current()?)).args(arguments).spawn().context("start the harness")?;
    let harness = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == harness => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == harness => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for children"),
        }
    }
}

/// Makes the capsule's file system and programs ready. Everything here is a mount of this namespace: the machine's own
/// folders stay as they are.
///
/// # Errors
/// A mount failed.
pub fn prepare(run: &RunDir, tools: &Tools) -> Result<()> {
    tmpfs(Path::new("/run"))?;
    fs::create_dir_all("/run/netns").context("make /run/netns")?;
    fs::create_dir_all(run.path("home")).context("make a home folder")?;
    link_programs(run, tools)?;
    name_hosts(run)?;
    Command::new("ip").args(["link", "set", "lo", "up"]).run()?;
    Ok(())
}

/// The names of origin and registry, for people in `larder-e2e shell`, for nodes and for pods in the network of their node.
fn name_hosts(run: &RunDir) -> Result<()> {
    let hosts = Path::new("/etc/hosts");
    let own = run.path("hosts");
    let text = fs::read_to_string(hosts).unwrap_or_default();
    fs::write(&own, format!("{text}\n{} {}\n{} {}\n", s3::ADDRESS, s3::NAME, registry::ADDRESS, registry::NAME))
        .context("write a hosts file")?;
    if hosts.exists() { bind(&own, hosts) } else { Ok(()) }
}

/// `bin/` of the run: every program under its plain name, so that `PATH` is one folder for people and harness alike.
fn link_programs(run: &RunDir, tools: &Tools) -> Result<()> {
    let folder = run.path("bin");
    fs::create_dir_all(&folder).context("make bin/")?;
    let larder = crate::tools::repository().join("target/release/larder");
    let programs = tools.programs()?.into_iter().chain([("larder", larder)]);
    for (name, path) in programs {
        let link = folder.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(path, link).context("link a program")?;
    }
    // `kubectl larder …` works as the plugin it is.
    let plugin = folder.join("kubectl-larder");
    let _ = fs::remove_file(&plugin);
    std::os::unix::fs::symlink("larder", plugin).context("link the kubectl plugin")
}
