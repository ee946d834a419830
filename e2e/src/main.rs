//! The `larder-e2e` command.

use std::process::ExitCode;

use clap::Parser;
use larder_e2e::commands::Command;

/// A real Kubernetes cluster on this machine, and the tests of Larder on it.
#[derive(Parser)]
#[command(name = "larder-e2e", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Arguments::parse().command.run() {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
