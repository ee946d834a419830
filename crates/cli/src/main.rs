//! `larder`: one binary for every daemon and for the user.
//!
//! One binary, because an image then has one layer that changes, and the daemons of one release cannot be of different versions.

mod describe;
mod get;
mod node;

use clap::{Parser, Subcommand};
use larder_telemetry::Format;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "larder", version = larder_telemetry::version(), about = "Training data next to hungry GPUs")]
struct Cli {
    /// Log filter, as in RUST_LOG. Default: info for daemons, warn for commands
    #[arg(long, global = true, env = "LARDER_LOG", hide = true)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List datasets and how much of them is cached
    Get(get::Args),
    /// Show one dataset or node in detail
    Describe(describe::Args),
    /// Mount a dataset on this machine, without a cluster
    Mount(larder_standalone::mount::Args),
    /// Unmount what `larder mount` mounted
    Umount(larder_standalone::umount::Args),
    /// Fetch a dataset into its cache on this machine, without a cluster
    Preload(larder_standalone::preload::Args),
    /// Daemon: turns CacheDatasets into workers, volumes and status
    #[command(hide = true)]
    Operator(larder_operator::Args),
    /// Daemon: owns a share of one dataset on one node
    #[command(hide = true)]
    Worker(larder_worker::Args),
    /// Daemon: the CSI node plugin
    #[command(hide = true)]
    Node(larder_csi::Args),
    /// Daemon: answers FUSE requests
    #[command(hide = true)]
    Mounter(larder_mount::mounter::Args),
    /// Daemon: holds what mounts need to outlive the other daemons
    #[command(hide = true)]
    Keeper(larder_keeper::Args),
    /// Fails while pods have datasets mounted, or datasets would be left without an operator (hook of `helm uninstall`)
    #[command(hide = true)]
    UninstallCheck(larder_operator::uninstall::Args),
}

impl Command {
    fn is_daemon(&self) -> bool {
        matches!(self, Self::Operator(_) | Self::Worker(_) | Self::Node(_) | Self::Mounter(_) | Self::Keeper(_))
    }
}

/// Longest wait for blocking calls that are still under way when all else has ended.
const LEAVE: std::time::Duration = std::time::Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (filter, format) = if cli.command.is_daemon() { ("info", Format::Json) } else { ("warn", Format::Text) };
    larder_telemetry::init(cli.log.as_deref().unwrap_or(filter), format);
    if let Command::Mount(args) = &cli.command {
        match larder_standalone::mount::before_threads(args) {
            Ok(None) => {}
            Ok(Some(code)) => return code,
            Err(e) => return failed(&e),
        }
    }
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "memory that is free stays with this process for longer");
    }
    // Two threads more than a small node has cores do no harm; more only cost memory.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(r) => r,
        Err(e) => return failed(&anyhow::Error::new(e).context("start runtime")),
    };
    let ended = runtime.block_on(run(cli.command));
    runtime.shutdown_timeout(LEAVE);
    ended.unwrap_or_else(|e| failed(&e))
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let shutdown = larder_telemetry::shutdown_on_signal;
    match command {
        // It listens for signals itself: those of a terminal may be meant for its command.
        Command::Mount(args) => return larder_standalone::mount::run(args).await,
        Command::Get(args) => get::run(&args).await,
        Command::Describe(args) => describe::run(&args).await,
        Command::Umount(args) => larder_standalone::umount::run(&args),
        Command::Preload(args) => larder_standalone::preload::run(args, shutdown()?).await,
        Command::Operator(args) => larder_operator::run(args, shutdown()?).await,
        Command::Worker(args) => larder_worker::run(args, shutdown()?).await,
        Command::Node(args) => larder_csi::run(args, shutdown()?).await,
        Command::Mounter(args) => larder_mount::mounter::run(args, shutdown()?).await,
        Command::Keeper(args) => larder_keeper::run(args, shutdown()?).await,
        Command::UninstallCheck(args) => larder_operator::uninstall::run(args, shutdown()?).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
