//! `--detach`: the command is run again as a child that stays, and this process ends when the child says that it has mounted.
//!
//! Until then the child writes to the same terminal and hears the same Ctrl-C.

use anyhow::Context as _;
use nix::unistd::{dup2_stderr, dup2_stdout, setsid};
use std::{
    env,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

/// Tells the child that it is one.
const CHILD: &str = "LARDER_DETACHED";
/// What the child says on its standard output.
const READY: &str = "ready";

pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Runs the child; ends with success when it is ready, else as it ended.
pub(crate) fn start() -> anyhow::Result<ExitCode> {
    let mut command = Command::new("/proc/self/exe");
    command.args(env::args_os().skip(1)).env(CHILD, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start the process that stays")?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said).context("hear from the process that stays")?;
    }
    if said.trim_end() == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("wait for the process that was to stay")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// In the child, when it is ready: leaves the terminal; what is still to be said goes to the log.
pub(crate) fn leave(log: &Path) -> anyhow::Result<()> {
    setsid().context("leave the terminal")?;
    let log = File::options().create(true).append(true).open(log).with_context(|| format!("open log {}", log.display()))?;
    dup2_stderr(&log).context("write to the log")?;
    let mut stdout = std::io::stdout();
    // The other end may have been killed; this process stays all the same.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    let null = File::options().write(true).open("/dev/null").context("open /dev/null")?;
    dup2_stdout(&null).context("close the standard output")
}
