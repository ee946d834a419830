//! `larder`: one binary for every daemon and for the user.
//!
//! One binary, because an image then has one layer that changes, and the daemons of one release cannot be of different versions.

mod describe;
mod get;
mod node;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "larder", version = larder_telemetry::VERSION, about = "Training data next to hungry GPUs")]
struct Cli {
    /// Log filter of the daemons, as in RUST_LOG
    #[arg(long, global = true, env = "LARDER_LOG", default_value = "info", hide = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List datasets and how much of them is cached
    Get(get::Args),
    /// Show one dataset or node in detail
    Describe(describe::Args),
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
    /// Fails while pods have datasets mounted (hook of `helm uninstall`)
    #[command(hide = true)]
    UninstallCheck(larder_operator::uninstall::Args),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    larder_telemetry::init(&cli.log);
    // Two threads more than a small node has cores do no harm; more only cost memory.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(r) => r,
        Err(e) => return failed(&anyhow::Error::new(e).context("start runtime")),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let shutdown = larder_telemetry::shutdown_on_signal()?;
    match command {
        Command::Get(args) => get::run(&args).await,
        Command::Describe(args) => describe::run(&args).await,
        Command::Operator(args) => larder_operator::run(args, shutdown).await,
        Command::Worker(args) => larder_worker::run(args, shutdown).await,
        Command::Node(args) => larder_csi::run(args, shutdown).await,
        Command::Mounter(args) => larder_mount::mounter::run(args, shutdown).await,
        Command::UninstallCheck(args) => larder_operator::uninstall::run(args, shutdown).await,
    }
}

fn failed(error: &anyhow::Error) -> std::process::ExitCode {
    eprintln!("error: {error:#}");
    std::process::ExitCode::FAILURE
}
