//! CPU seconds of threads and processes.

use std::fs;

/// Clock ticks of /proc/<pid>/stat per second, the same on every Linux that we know.
const TICKS: f64 = 100.0;

/// Of this thread so far.
pub(crate) fn of_this_thread() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// Of a process with all its threads so far; 0 if there is none.
pub(crate) fn of_process(pid: u32) -> f64 {
    ticks(&format!("/proc/{pid}/stat"), 11)
}

/// Of the children of this process that have ended and been waited for.
pub(crate) fn of_children() -> f64 {
    ticks("/proc/self/stat", 13)
}

/// Two neighbouring counts, user and system, `skip` fields behind the name.
fn ticks(path: &str, skip: usize) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let Some((_, fields)) = text.rsplit_once(") ") else { return 0.0 };
    fields.split(' ').skip(skip).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The most memory that the process ever held, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB");
    kib.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted() {
        let (thread, process) = (of_this_thread(), of_process(std::process::id()));
        let started = std::time::Instant::now();
        let mut n = 0u64;
        while started.elapsed().as_millis() < 100 {
            n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
        }
        assert!(of_this_thread() - thread > 0.01);
        assert!(of_process(std::process::id()) >= process);
        assert!(peak_memory(std::process::id()).unwrap() > 1 << 20);
        assert_eq!(of_process(0), 0.0);
    }
}
