//! Facts about the machine, without which numbers mean nothing.

use std::{fs, path::Path};

/// One line.
pub(crate) fn describe(data: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")).map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")).and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok());
    let gib = kib.map_or(0, |kib| kib >> 20);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cores} cores ({model}), {gib} GiB, Linux {}, {}, load {load} before the run", kernel.trim(), disk(data))
}

/// File system and device that hold the data.
fn disk(data: &Path) -> String {
    let table = larder_fuse::mountinfo::read().unwrap_or_default();
    let longest = table.iter().filter(|m| data.starts_with(&m.target)).max_by_key(|m| m.target.as_os_str().len());
    longest.map_or_else(String::new, |m| format!("{} on {}", m.fs_type, m.source))
}
