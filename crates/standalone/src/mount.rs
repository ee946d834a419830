//! `larder mount`: serves a dataset at a folder until it is unmounted, interrupted, or its command has ended.

use crate::{
    Source, access,
    backend::LocalBackend,
    cache::{Cache, Snapshot},
    dataset::Dataset,
    detach,
    mountpoint::Mountpoint,
    namespace, overlap,
    progress::Progress,
};
use anyhow::Context as _;
use indicatif::{BinaryBytes, HumanCount};
use larder_api::cache_dataset::MountMode;
use larder_core::names;
use larder_fuse::{control, limits, protocol::mounter::Mode, session};
use larder_mount::{
    filesystem::{DatasetFs, Look, Opening},
    metrics::Metrics,
    passthrough::{Backings, Direct},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getegid, geteuid},
};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
    sync::Arc,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    signal::unix::{self, SignalKind, signal},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

/// Complete local files kept open, if the process may open twice as many.
const OPEN_FILES: usize = 4096;
/// Keys that are named of those that are left out.
const EXAMPLES: usize = 3;
/// How long readers get to close their files when the mount is taken away under them.
const DRAIN: Duration = Duration::from_secs(10);

/// Flags of `larder mount`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Root mounts by itself; other users need fusermount3 (package fuse3), or give a COMMAND: it runs with the dataset mounted in a \
                  namespace of its own, which needs no rights at all. The mount ends with the command."
)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// An existing folder
    mountpoint: PathBuf,
    /// Fetch everything, and say that it is mounted when all is on disk
    #[arg(long)]
    preload: bool,
    /// Stay in the background; the log is in the dataset's folder in the cache
    #[arg(long, conflicts_with = "command")]
    detach: bool,
    /// How files are opened and read, instead of spec.mount.mode: Auto, Passthrough or NoOpen
    #[arg(long, value_parser = mode)]
    mode: Option<Mode>,
    /// As on kernels before 6.9: the kernel reads no file by itself
    #[arg(long)]
    no_passthrough: bool,
    /// Threads that answer the kernel
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16), hide = true)]
    fuse_threads: u16,
    /// Run this command, which alone sees the mount
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What has to be done while the process has one thread. Gives the code to end with, if there is nothing more to do.
///
/// # Errors
/// No namespace, or no process that stays.
pub fn before_threads(args: &Args) -> anyhow::Result<Option<ExitCode>> {
    if args.detach && !detach::is_child() {
        return detach::start().map(Some);
    }
    if !args.command.is_empty() {
        namespace::enter()?;
    }
    Ok(None)
}

/// Mounts and serves.
///
/// # Errors
/// Each names what is in the way.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dataset = Dataset::load(&args.source.file)?;
    let access = access::find(&dataset, &args.source, |name| std::env::var(name).ok())?;
    let stop = Stop::new(!args.command.is_empty(), args.detach)?;
    let mountpoint = Mountpoint::prepare(&args.mountpoint, !args.command.is_empty()).await?;
    // After a dead mount there was taken away, which would not say what it covers.
    overlap::check(&dataset, Some(mountpoint.path()))?;
    let Some(cache) = stop.before(Cache::open(&dataset, access)).await else { return Ok(ExitCode::FAILURE) };
    let mut cache = cache?;
    let served = serve(&args, &dataset, &mut cache, &mountpoint, &stop).await;
    cache.close().await;
    served
}

async fn serve(
    args: &Args,
    dataset: &Dataset,
    cache: &mut Cache,
    mountpoint: &Mountpoint,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let preload = args.preload || dataset.wants_preload();
    let Some(snapshot) = stop.before(cache.snapshot(args.source.refresh, preload)).await else { return Ok(ExitCode::FAILURE) };
    let snapshot = snapshot?;
    let mut mounted = mount(args, dataset, cache, &snapshot, mountpoint).await?;
    let outcome = use_it(args, dataset, cache, &snapshot, &mut mounted, stop).await;
    mounted.take_away().await?;
    outcome
}

/// From the moment it is mounted until it is to be taken away.
async fn use_it(
    args: &Args,
    dataset: &Dataset,
    cache: &Cache,
    snapshot: &Snapshot,
    mounted: &mut Mounted,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    if args.preload {
        let mut progress = Progress::new(&dataset.name);
        match stop.before(cache.preloaded(|p| progress.show(p))).await {
            Some(preloaded) => drop(preloaded?),
            None => return Ok(ExitCode::FAILURE),
        }
    }
    eprintln!("{} is mounted at {}: {}", dataset.name, mounted.at.path().display(), describe(snapshot));
    if args.detach {
        let dir = dataset.dirs().next().unwrap_or_default();
        detach::leave(&dir.join("log"))?;
    }
    if let [program, rest @ ..] = &args.command[..] {
        return match Command::new(program).args(rest).spawn() {
            Ok(child) => stop.wait_for(child).await,
            Err(e) => {
                eprintln!("error: run {}: {e}", program.display());
                Ok(not_run(&e))
            }
        };
    }
    tokio::select! {
        () = stop.asked.cancelled() => {}
        () = mounted.ended() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Files, bytes and age.
pub(crate) fn describe(snapshot: &Snapshot) -> String {
    let taken = jiff::Timestamp::from_second(snapshot.time).map(|t| t.to_string()).unwrap_or_default();
    let age =
        if snapshot.fresh { "listed just now".to_owned() } else { format!("as listed at {taken} (--refresh lists again)") };
    let left_out = match snapshot.skipped {
        0 => String::new(),
        n => {
            let examples = snapshot.examples.iter().take(EXAMPLES).cloned().collect::<Vec<_>>();
            format!(", {} left out ({})", HumanCount(n), examples.join("; "))
        }
    };
    format!("{} files, {}{left_out}, {age}", HumanCount(snapshot.files), BinaryBytes(snapshot.bytes))
}

async fn mount(
    args: &Args,
    dataset: &Dataset,
    cache: &Cache,
    snapshot: &Snapshot,
    mountpoint: &Mountpoint,
) -> anyhow::Result<Mounted> {
    let identity = names::mount_identity(&dataset.uid, &snapshot.digest);
    let catalog = cache.data().catalog(&snapshot.digest).context("the catalog of the snapshot is gone from the cache")?;
    let open_files = limits::raise_open_files().map_or(256, |limit| usize::try_from(limit / 2).unwrap_or(OPEN_FILES));
    let backend = LocalBackend::new(cache.data(), &dataset.uid, &snapshot.digest, open_files.min(OPEN_FILES));
    let reads = Metrics::default().reads(&dataset.uid, &identity);
    let opening = Opening { wanted: args.mode.unwrap_or_else(|| spec_mode(dataset)), ..Opening::default() };
    let (look, runtime, direct) = (look(dataset), Handle::current(), may_register(args));
    let (at, threads) = (mountpoint.clone(), usize::from(args.fuse_threads));
    let mounted = spawn_blocking(move || -> anyhow::Result<Mounted> {
        let fuse = at.mount(&identity)?;
        let backings = direct.then(|| fuse.try_clone()).transpose().context("duplicate the FUSE descriptor")?;
        let backings = backings.map(|fuse| Arc::new(Direct::new(fuse)) as Arc<dyn Backings>);
        let filesystem = DatasetFs::new(&identity, catalog, look, backend, reads, Opening { backings, ..opening }, runtime);
        match session::serve(filesystem, fuse, &identity, threads) {
            Ok(session) => Ok(Mounted { at, session: Some(session) }),
            Err(e) => {
                at.unmount(true)?;
                Err(e.into())
            }
        }
    });
    let mounted = mounted.await.context("mount")??;
    // Only root may; without it, reads of files that are not on the disk are slower.
    if let Some(minor) = mounted.at.minor()?
        && let Err(error) = control::set_read_ahead(minor, control::READ_AHEAD_KIB)
    {
        tracing::debug!(%error, "read-ahead stays as it is");
    }
    Ok(mounted)
}

/// Root alone, outside of user namespaces, may register backing files.
fn may_register(args: &Args) -> bool {
    geteuid().is_root() && args.command.is_empty() && !args.no_passthrough
}

fn spec_mode(dataset: &Dataset) -> Mode {
    match dataset.spec.mount.mode {
        MountMode::Auto => Mode::Auto,
        MountMode::Passthrough => Mode::Passthrough,
        MountMode::NoOpen => Mode::NoOpen,
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "Auto" => Ok(Mode::Auto),
        "Passthrough" => Ok(Mode::Passthrough),
        "NoOpen" => Ok(Mode::NoOpen),
        _ => Err("want Auto, Passthrough or NoOpen".to_owned()),
    }
}

/// Owner and modes. A user namespace of one user knows no other: files whose owner it does not know are that user's.
fn look(dataset: &Dataset) -> Look {
    let mount = &dataset.spec.mount;
    let known = |id: u32, own: u32| if geteuid().is_root() { id } else { own };
    let mode = |mode: u32| u16::try_from(mode).unwrap_or(0o444);
    Look {
        uid: known(mount.uid, geteuid().as_raw()),
        gid: known(mount.gid, getegid().as_raw()),
        file_mode: mode(mount.file_mode),
        dir_mode: mode(mount.dir_mode),
    }
}

struct Mounted {
    at: Mountpoint,
    session: Option<session::Ended>,
}

impl Mounted {
    /// Waits until it was unmounted.
    async fn ended(&mut self) {
        let Some(session) = &mut self.session else { return };
        match session.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "FUSE session broke"),
            Err(_) => tracing::error!("FUSE session panicked"),
        }
        self.session = None;
    }

    /// Unmounts, also under readers that do not end.
    async fn take_away(mut self) -> anyhow::Result<()> {
        if self.session.is_none() {
            return Ok(());
        }
        let at = self.at.clone();
        let unmounted = spawn_blocking(move || match at.unmount(false) {
            Err(e) if e.is_busy() => at.unmount(true).map(|()| true),
            result => result.map(|()| false),
        });
        if unmounted.await.context("unmount")?? {
            eprintln!("files are open at {}; waiting up to {DRAIN:?} for them", self.at.path().display());
        }
        // Those who still read after that get ENOTCONN.
        let _ = tokio::time::timeout(DRAIN, self.ended()).await;
        Ok(())
    }
}

/// Never without a signal to listen to.
async fn heard(signal: Option<&mut unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// The wish to end.
struct Stop {
    asked: CancellationToken,
}

impl Stop {
    /// With a command, Ctrl-C is for the command: it has the same terminal. What is detached outlives its terminal.
    fn new(command: bool, detach: bool) -> anyhow::Result<Self> {
        let asked = CancellationToken::new();
        // Listened to, it would not be ignored any more, neither here nor by the command.
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup()));
        let mut hangup = hangup.transpose().context("listen for signals")?;
        let mut term = signal(SignalKind::terminate()).context("listen for signals")?;
        let mut int = signal(SignalKind::interrupt()).context("listen for signals")?;
        let told = asked.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => break,
                    () = heard(hangup.as_mut()) => if !detach { break },
                    _ = int.recv() => if !command { break },
                }
            }
            told.cancel();
        });
        Ok(Self { asked })
    }

    /// What comes of it, unless it is to end before.
    async fn before<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.asked.run_until_cancelled(work).await
    }

    /// The command's end. A wish to end is passed on to it.
    async fn wait_for(&self, mut child: Child) -> anyhow::Result<ExitCode> {
        let ended = tokio::select! {
            ended = child.wait() => Some(ended),
            () = self.asked.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    // It may have ended in this moment.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
                child.wait().await
            }
        };
        Ok(code(ended.context("wait for the command")?))
    }
}

/// As a shell would tell that there is no such command, or that it may not be run.
fn not_run(e: &io::Error) -> ExitCode {
    ExitCode::from(if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Is SIGHUP to have no effect, as under nohup?
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status, Signal::SIGHUP)
}

fn ignored(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (mask >> (signal as i32 - 1)) & 1 == 1
}

/// As a shell would tell it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_that_was_to_have_no_effect_has_none() {
        let status = |mask: &str| format!("Name:\tlarder\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignored(&status("0000000000001001"), Signal::SIGHUP));
        assert!(!ignored(&status("0000000000001000"), Signal::SIGHUP));
        assert!(!ignored("", Signal::SIGHUP));
    }
}
