//! `cargo run --release -p larder-xtask -- <task>`: what is generated, and the images.

mod crds;
mod deny;
mod images;
mod manifests;
mod metrics;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Generators and images of Larder")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write crds/ from crates/api
    Crds(crds::Args),
    /// Render manifests/ from charts/larder
    Manifests(manifests::Args),
    /// Write the lists of docs/metrics.md from what the daemons register
    Metrics(metrics::Args),
    /// Check bans, licences and sources of dependencies against deny.toml
    Deny,
    /// Make the image as an OCI archive, without a container engine
    Images(images::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Crds(args) => crds::run(&args),
        Task::Manifests(args) => manifests::run(&args),
        Task::Metrics(args) => metrics::run(&args),
        Task::Deny => deny::run(),
        Task::Images(args) => images::run(&args),
    }
}
