//! Takes a snapshot of a synthetic origin through the real listing path, reads it, and prints what both cost as JSON.
//!
//! ```text
//! cargo run --release -p larder-snapshot --example bench_catalog -- --files 10000000
//! ```
//!
//! Each part runs in a process of its own, so that its peak of memory is its own.
#![expect(clippy::unwrap_used, reason = "what a benchmark cannot go on without")]

use clap::{Parser, Subcommand};
use larder_core::catalog::Catalog;
use larder_origin::testing::synthetic::Synthetic;
use larder_snapshot::{Progress, take};
use serde_json::{Value, json};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Parser)]
struct Args {
    /// Objects of the origin
    #[arg(long, global = true, default_value_t = 10_000_000)]
    files: u64,
    /// Objects in each folder
    #[arg(long, global = true, default_value_t = 1000)]
    per_folder: u64,
    /// Places that the listing comes from at the same time
    #[arg(long, global = true, default_value_t = 16)]
    streams: u64,
    /// Folder on the disk to be measured; what is in it stays
    #[arg(long, global = true, default_value = "target/bench/catalog")]
    dir: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// List and write
    Take,
    /// Open, look names up, read folders
    Read { digest: String },
}

fn main() {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir).unwrap();
    let result = match &args.part {
        Some(Part::Take) => take_part(&args),
        Some(Part::Read { digest }) => read_part(&args, digest),
        None => {
            let taken = child(&["take"]);
            let digest = taken["snapshot"].as_str().unwrap().to_owned();
            let read = child(&["read", &digest]);
            json!({"files": args.files, "perFolder": args.per_folder, "streams": args.streams, "take": taken, "read": read})
        }
    };
    println!("{result:#}");
}

/// The same command line with a part of it, in a new process.
fn child(part: &[&str]) -> Value {
    let own: Vec<_> = std::env::args_os().skip(1).collect();
    let output = Command::new(std::env::current_exe().unwrap()).args(own).args(part).output().unwrap();
    assert!(output.status.success(), "{part:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn origin(args: &Args) -> Synthetic {
    Synthetic { files: args.files, per_folder: args.per_folder, streams: args.streams }
}

fn take_part(args: &Args) -> Value {
    let (origin, progress, started) = (origin(args), Arc::new(Progress::default()), Instant::now());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let taken = runtime.block_on(take(&origin, &args.dir, &progress)).unwrap();
    json!({
        "snapshot": taken.digest,
        "seconds": started.elapsed().as_secs_f64(),
        "listingSeconds": taken.listing.as_secs_f64(),
        "writingSeconds": taken.writing.as_secs_f64(),
        "filesPerSecond": taken.files as f64 / started.elapsed().as_secs_f64(),
        "catalogBytes": taken.catalog_bytes,
        "bytesPerEntry": taken.catalog_bytes as f64 / taken.entries as f64,
        "sortedOnDiskBytes": taken.sorted_bytes,
        "peakRssBytes": peak_rss(),
    })
}

fn read_part(args: &Args, digest: &str) -> Value {
    let path = args.dir.join(digest);
    let started = Instant::now();
    let catalog = Catalog::open_as(File::open(&path).unwrap(), digest).unwrap();
    let open = started.elapsed();
    let origin = origin(args);
    // Spread over the whole catalog: hardly any section is asked for twice.
    let spread = lookups(&catalog, &origin, |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % origin.files);
    let near = lookups(&catalog, &origin, |i| i % origin.files.min(2_000));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let shared: Duration = std::thread::scope(|scope| {
        let near = || lookups(&catalog, &origin, |i| i % origin.files.min(2_000));
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(near)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    let started = cpu();
    let (mut scan, mut names) = (catalog.scan(0..catalog.entries()), 0);
    while let Some(scanned) = scan.next().unwrap() {
        names += scanned.name.len();
    }
    assert!(names > 0);
    let scanned = cpu() - started;
    json!({
        "openSeconds": open.as_secs_f64(),
        "lookupNsSpread": per(spread, LOOKUPS),
        "lookupNsNear": per(near, LOOKUPS),
        "lookupNsNearAllThreads": per(shared, LOOKUPS * threads as u64),
        "threads": threads,
        "readdirNsPerEntry": per(scanned, catalog.entries()),
        "peakRssBytes": peak_rss(),
    })
}

const LOOKUPS: u64 = 20_000;

/// CPU time from the root to the file and its attributes, as the kernel asks when it knows nothing.
fn lookups(catalog: &Catalog<File>, origin: &Synthetic, number: impl Fn(u64) -> u64) -> Duration {
    let objects: Vec<_> = (0..LOOKUPS).map(|i| origin.object(number(i))).collect();
    let started = cpu();
    for object in &objects {
        let found = object.path.split('/').fold(0, |at, part| catalog.lookup(at, part).unwrap().unwrap());
        assert_eq!(catalog.entry(found).unwrap().size(), object.size);
    }
    cpu() - started
}

/// Time that this thread was on a CPU: the same on a machine that others use too.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn per(time: Duration, count: u64) -> u64 {
    time.as_nanos() as u64 / count
}

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}
