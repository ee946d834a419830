//! PID 1 of a mounter's container: starts the process that serves, and the next one as soon as that one is dead. The kubelet
//! would let ten seconds to five minutes pass.
//!
//! It holds no descriptor of a mount and opens no file of one, so nothing that it does can wait for the process it starts. That
//! one tells it once a second that it is alive, over the socket that is its standard input; one that is silent for too long is
//! killed. When the supervisor dies the other process ends too.

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsString,
    future::pending,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as Blocking,
    },
    process::ExitStatus,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// How often the serving process says that it is alive, and how long it may be silent.
const BEAT: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(10);
/// A process that lived at least so long did not fail by itself at its start: the next one starts at once.
const SETTLED: Duration = Duration::from_millis(300);
/// Pauses after the others.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);
/// From the request to stop to the kill; below the pod's grace period.
const LEAVE: Duration = Duration::from_secs(25);

/// Keeps one process with these arguments running until `shutdown`, which it is then asked to end by.
///
/// # Errors
/// No process can be started at all.
pub async fn supervise(arguments: Vec<OsString>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut pause = SHORTEST;
    loop {
        let began = Instant::now();
        let (mut child, mut alive) = start(&arguments)?;
        let pid = child.id().unwrap_or_default();
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = silent(&mut alive) => {
                tracing::error!(pid, silence = ?SILENCE, "the serving process hangs; killing it");
                stop(&mut child, Signal::SIGKILL).await
            }
            () = shutdown.cancelled() => {
                let ended = tokio::time::timeout(LEAVE, stop(&mut child, Signal::SIGTERM)).await;
                let ended = match ended {
                    Ok(ended) => ended,
                    Err(_) => stop(&mut child, Signal::SIGKILL).await,
                };
                tracing::info!(pid, ?ended, "stopped");
                return Ok(());
            }
        };
        let lived = began.elapsed();
        pause = if lived >= SETTLED { SHORTEST } else { (pause * 2).min(LONGEST) };
        tracing::error!(pid, ?ended, ?lived, ?pause, "the serving process has ended; starting the next one");
        if lived < SETTLED {
            let _ = tokio::time::timeout(pause, shutdown.cancelled()).await;
        }
    }
}

fn start(arguments: &[OsString]) -> anyhow::Result<(Child, UnixStream)> {
    let (ours, theirs) = Blocking::pair().context("make a socket pair")?;
    ours.set_nonblocking(true).context("make a socket non-blocking")?;
    // The program as it was when this process started, also when its file has been replaced.
    let child = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(OwnedFd::from(theirs))
        .kill_on_drop(true)
        .spawn()
        .context("start the serving process")?;
    Ok((child, UnixStream::from_std(ours).context("watch a socket")?))
}

async fn stop(child: &mut Child, signal: Signal) -> io::Result<ExitStatus> {
    // None: it has been waited for already.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        kill(Pid::from_raw(pid), signal)?;
    }
    child.wait().await
}

/// Returns when nothing was heard for too long; never when the other end is closed.
async fn silent(alive: &mut UnixStream) {
    let mut beats = [0; 64];
    loop {
        match tokio::time::timeout(SILENCE, alive.read(&mut beats)).await {
            Err(_) => return,
            Ok(Ok(0) | Err(_)) => pending::<()>().await,
            Ok(Ok(_)) => {}
        }
    }
}

/// In the process that serves: says that it is alive, and ends it when there is nobody to say it to.
///
/// # Errors
/// Standard input is not the socket of a supervisor.
pub fn beat() -> io::Result<()> {
    let stream = Blocking::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.peer_addr()?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    tokio::spawn(async move {
        let mut beats = tokio::time::interval(BEAT);
        loop {
            beats.tick().await;
            if let Err(error) = stream.write_all(b".").await {
                tracing::error!(%error, "the supervisor is gone");
                std::process::exit(1);
            }
        }
    });
    Ok(())
}
