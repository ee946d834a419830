//! `larder preload`: fetches a dataset into its cache and ends.

use crate::{Source, access, cache::Cache, dataset::Dataset, mount::describe, overlap, progress::Progress};
use indicatif::{BinaryBytes, HumanCount};
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
    overlap::check(&dataset, None)?;
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
    let preload = cache.preloaded(|p| progress.show(p)).await?;
    let fetched = BinaryBytes(cache.origin_bytes() - before);
    let mut what = describe(&snapshot);
    if !dataset.spec.preload.paths.is_empty() {
        let (files, bytes) = (HumanCount(preload.files_done), BinaryBytes(preload.bytes_done));
        what = format!("{files} files, {bytes} (spec.preload.paths) of {what}");
    }
    eprintln!("{} is on disk: {what}; {fetched} came from the origin", dataset.name);
    Ok(())
}
