//! `larder preload`: fetches a dataset into its cache and ends.

use crate::{Source, access, cache::Cache, dataset::Dataset, mount::describe, progress::Progress};
use indicatif::BinaryBytes;
use tokio_util::sync::CancellationToken;

/// Flags of `larder preload`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

/// Fetches until all is on disk. What is on disk when it is interrupted stays.
///
/// # Errors
/// Each names what is in the way.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let dataset = Dataset::load(&args.source.file)?;
    let access = access::find(&dataset, &args.source, |name| std::env::var(name).ok())?;
    let mut cache = Cache::open(&dataset, access).await?;
    let fetched = shutdown.run_until_cancelled(fetch(&args, &dataset, &mut cache)).await;
    cache.close().await;
    fetched.unwrap_or_else(|| anyhow::bail!("interrupted; what is on disk stays"))
}

async fn fetch(args: &Args, dataset: &Dataset, cache: &mut Cache) -> anyhow::Result<()> {
    let before = cache.origin_bytes();
    let snapshot = cache.snapshot(args.source.refresh, true).await?;
    let mut progress = Progress::new(&dataset.name);
    cache.preloaded(|p| progress.show(p)).await?;
    let fetched = BinaryBytes(cache.origin_bytes() - before);
    eprintln!("{} is on disk: {}; {fetched} came from the origin", dataset.name, describe(&snapshot));
    Ok(())
}
