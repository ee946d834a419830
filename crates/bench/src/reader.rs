//! The readers: one pass over a folder in a process of its own, timed by itself. The same program reads every subject.

mod copy;
mod mixed;
mod random;
mod sequential;
mod small;
mod walk;

pub(crate) use mixed::Tails;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::{fs, path::PathBuf, process::Command, time::Instant};

/// Flags of `larder-bench read`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What is read
    #[arg(long)]
    root: PathBuf,
    /// How
    #[arg(long, value_enum)]
    kind: Kind,
    /// Readers at the same time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Bytes of one read
    #[arg(long, default_value_t = 1 << 20)]
    block: usize,
    /// Reads, where they are random; seconds, where it is read for a while
    #[arg(long, default_value_t = 0)]
    count: usize,
    /// Of what is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where copies go
    #[arg(long)]
    to: Option<PathBuf>,
    /// File with the names to read, beneath the root, one a line; so that no folder has to be listed
    #[arg(long)]
    names: PathBuf,
}

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Each file from its begin to its end.
    Sequential,
    /// Copied in ranges, as a plain client would fetch it.
    Copy,
    /// Whole files and random places together, for a while.
    Mixed,
    /// pread at random places.
    Random,
    /// Pages of maps at random places.
    Mapped,
    /// Open, stat, read whole, close, in random order.
    Small,
    /// The same again and again for a while, without the page cache.
    Again,
    /// `find -printf %s`.
    Walk,
}

/// A pass to be made.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub kind: Kind,
    pub threads: usize,
    pub block: usize,
    pub count: usize,
    pub names: PathBuf,
    /// Where copies go.
    pub to: Option<PathBuf>,
}

/// What a pass took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Took {
    pub seconds: f64,
    pub bytes: u64,
    /// Files read, or reads where these are random.
    pub count: u64,
    /// Of the reader.
    pub cpu: f64,
    /// Of mixed reads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tails: Option<Tails>,
}

impl Pass {
    /// Makes it over one folder.
    pub fn over(&self, root: &std::path::Path, seed: u64) -> anyhow::Result<Took> {
        let kind = serde_json::to_value(self.kind)?;
        let output = Command::new("/proc/self/exe")
            .args(["read", "--kind", kind.as_str().unwrap_or_default()])
            .arg("--root")
            .arg(root)
            .arg("--names")
            .arg(&self.names)
            .args(["--threads", &self.threads.to_string(), "--block", &self.block.to_string()])
            .args(["--count", &self.count.to_string(), "--seed", &seed.to_string()])
            .args(self.to.iter().flat_map(|to| ["--to".as_ref(), to.as_os_str()]))
            .output()
            .context("run the reader")?;
        anyhow::ensure!(
            output.status.success(),
            "reader of {}: {}",
            root.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).context("understand the reader")
    }
}

/// Makes the pass and prints what it took.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let names = fs::read_to_string(&args.names).with_context(|| format!("read {}", args.names.display()))?;
    let files: Vec<PathBuf> = names.lines().map(|name| args.root.join(name)).collect();
    anyhow::ensure!(!files.is_empty() || args.kind == Kind::Walk, "{}: no names", args.names.display());
    let took = match args.kind {
        Kind::Sequential => sequential::read(&files, args.threads, args.block)?,
        Kind::Copy => {
            copy::ranges(&names, &args.root, args.to.as_deref().context("--to is missing")?, args.threads, args.block)?
        }
        Kind::Mixed => {
            let (took, tails) = mixed::read(&files, args.count, args.seed)?;
            Took { tails: Some(tails), ..took }
        }
        Kind::Random => random::pread(&files, args.block, args.count, args.seed)?,
        Kind::Mapped => random::touch(&files, args.count, args.seed)?,
        Kind::Small => small::read(files, args.threads, args.seed)?,
        Kind::Again => small::again(files, args.threads, args.count, args.seed)?,
        Kind::Walk => walk::find(&args.root)?,
    };
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

/// Splits work over threads; each gives its bytes and count. The time is that from the first to the last.
fn timed<T: Sync>(
    work: &[T],
    threads: usize,
    each: impl Fn(&T, &mut Vec<u8>) -> anyhow::Result<(u64, u64)> + Sync,
) -> anyhow::Result<Took> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let started = Instant::now();
    let results: Vec<anyhow::Result<Took>> = std::thread::scope(|scope| {
        let run = || {
            let (mut took, mut buffer) = (Took::default(), Vec::new());
            while let Some(item) = work.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                let (bytes, count) = each(item, &mut buffer)?;
                took.bytes += bytes;
                took.count += count;
            }
            took.cpu = crate::cpu::of_this_thread();
            Ok(took)
        };
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let mut sum = Took { seconds, ..Took::default() };
    for took in results {
        let took = took?;
        sum.bytes += took.bytes;
        sum.count += took.count;
        sum.cpu += took.cpu;
    }
    Ok(sum)
}
