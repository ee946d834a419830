//! Mounts a catalog file, walks a part of it as `find -printf %s` does, asks for names that are not there, and prints what that cost
//! as JSON. Needs root.
//!
//! ```text
//! cargo run --release -p larder-mount --example bench_mount -- target/bench/catalog/DIGEST [journal]
//! ```
#![expect(clippy::unwrap_used, reason = "what a benchmark cannot go on without")]

use larder_core::{catalog::Catalog, key::ObjectKey};
use larder_fuse::{
    device,
    journal::{InFlight, Journal},
    session::Session,
};
use larder_mount::{
    backend::{Backend, Fetched},
    filesystem::{DatasetFs, Look, Opening},
    metrics::Metrics,
};
use larder_peer::ReadError;
use nix::mount::{MntFlags, umount2};
use serde_json::json;
use std::{fs, fs::File, ops::Range, os::fd::AsFd as _, path::Path, sync::Arc, time::Instant};

const LOOKUPS: u32 = 200_000;

/// Nothing is read here, only names and attributes.
struct NoBytes;

impl Backend for NoBytes {
    fn known_file(&self, _: u64) -> Option<Arc<File>> {
        None
    }
    async fn find_file(&self, _: u64) -> Option<Arc<File>> {
        None
    }
    fn reject_file(&self, _: u64) {}
    async fn fetch(&self, _: u64, key: ObjectKey, _: Range<u64>, _: tokio::time::Instant) -> Result<Fetched, ReadError> {
        Err(ReadError::Changed { key: key.to_string(), detail: "there are no bytes".into() })
    }
}

fn main() {
    let path = std::env::args_os().nth(1).unwrap();
    let path = Path::new(&path);
    let in_flight = std::env::args().nth(2).map_or(InFlight::Resend, |means| means.parse().unwrap());
    let (runtime, target) = (tokio::runtime::Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let started = Instant::now();
    let digest = path.file_name().and_then(|n| n.to_str()).unwrap();
    let catalog = Arc::new(Catalog::open_as(File::open(path).unwrap(), digest).unwrap());
    let entries = catalog.entries();
    let fuse = device::open().unwrap();
    device::mount(fuse.as_fd(), target.path(), "bench").unwrap();
    let look = Look { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let reads = Metrics::default().reads("uid", "bench");
    let journal = Journal::load(Opening::journal().unwrap(), in_flight).unwrap();
    let opening = Opening { journal: Some(Arc::clone(&journal)), ..Opening::default() };
    let filesystem = DatasetFs::new("bench", catalog, look, NoBytes, reads, opening, runtime.handle().clone());
    let _started = Session::begin(filesystem, fuse, 4).unwrap().start("bench", Some(&journal)).unwrap();
    let first = fs::read_dir(target.path()).unwrap().count();
    let ready = started.elapsed();
    let walked = Instant::now();
    let (files, bytes) = walk(target.path(), 200_000);
    let walk = walked.elapsed();
    let asked = Instant::now();
    (0..LOOKUPS).for_each(|n| assert!(fs::metadata(target.path().join(format!("not there {n}"))).is_err()));
    let lookups = asked.elapsed();
    let result = json!({
        "entries": entries,
        "namesInRoot": first,
        "readySeconds": ready.as_secs_f64(),
        "walkedFiles": files,
        "walkedBytes": bytes,
        "walkSeconds": walk.as_secs_f64(),
        "lookupMicroseconds": lookups.as_secs_f64() * 1e6 / f64::from(LOOKUPS),
        "peakRssBytes": peak_rss(),
    });
    umount2(target.path(), MntFlags::MNT_DETACH).unwrap();
    println!("{result:#}");
}

/// Files and their sizes, folder by folder, until there are so many.
fn walk(root: &Path, files: u64) -> (u64, u64) {
    let (mut count, mut bytes, mut folders) = (0, 0, vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                count += 1;
                bytes += entry.metadata().unwrap().len();
            }
        }
        if count >= files {
            break;
        }
    }
    (count, bytes)
}

fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}
