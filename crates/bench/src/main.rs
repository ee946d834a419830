//! `make bench`: how fast Larder is, as ratios of things measured in turns in one run, on the same disk and cores.
//!
//! ```text
//! data: files to read ─► subject: the same files locally, through `larder mount`, and through a bind mount (null control)
//! rows: what is compared ─► experiment: in turns, until the interval is narrow ─► reader: one pass, in a process of its own
//!           │                     └─► stats: medians, bootstrap ─► report: results.json, table, plots
//!           └─► lab: workers and mounters of several nodes ─ bare: the pair of server and client beside them
//! ```
//!
//! A crate of its own and not a task of xtask or e2e: its readers are the same program for every subject and must start
//! quickly, and it plays a cluster for rows that a real one (e2e) is too large for.
//!
//! It says what is, and judges nothing: a target that is missed is a result. Only what could not be measured is an error.
#![forbid(unsafe_code)]

mod bare;
mod cpu;
mod daemon;
mod data;
mod experiment;
mod lab;
mod machine;
mod reader;
mod report;
mod rows;
mod stats;
mod subject;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "How fast Larder is, beside the local disk and plain programs")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// One pass of a reader; prints what it took as JSON
    #[command(hide = true)]
    Read(reader::Args),
    /// A plain range server, to compare with
    #[command(hide = true)]
    Serve(bare::Args),
}

/// What is measured, and where.
#[derive(Clone, Debug, clap::Args)]
struct RunArgs {
    /// Less data and fewer repetitions, in under five minutes; writes results-quick.json
    #[arg(long, env = "QUICK", value_parser = clap::builder::FalseyValueParser::new(), num_args = 0..=1, default_missing_value = "1", default_value = "")]
    quick: bool,
    /// Only rows whose id begins with one of these, separated by commas
    #[arg(long, env = "ONLY", value_delimiter = ',')]
    only: Vec<String>,
    /// Where results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Folder for data, on the disk to measure; up to 20 GiB; removed afterwards
    #[arg(long, env = "LARDER_BENCH_DATA", default_value = "target/bench/data")]
    data: PathBuf,
    /// The program to measure
    #[arg(long, default_value = "target/release/larder")]
    larder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Read(args)) => reader::run(&args),
        Some(Command::Serve(args)) => bare::serve(args),
        None => rows::run(&cli.run),
    }
}
