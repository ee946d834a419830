//! What a person sees while it runs: whole lines, flushed at once, and a heartbeat during anything long.

use std::io::Write as _;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// A silent step looks like a hang; nothing here is silent for longer than this.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// When the last line was printed, by whomever.
static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Prints one line.
pub fn say(line: impl AsRef<str>) {
    if let Ok(mut last) = LAST.lock() {
        *last = Some(Instant::now());
    }
    let mut out = std::io::stdout().lock();
    // A closed pipe (`larder-e2e test | head`) is the reader's decision, not our failure.
    let _ = writeln!(out, "{}", line.as_ref()).and_then(|()| out.flush());
}

/// How long until nothing was printed for too long.
fn until_silence() -> Duration {
    // Before the first line silence counts from the first look.
    let silent = LAST.lock().map_or(Duration::ZERO, |mut last| last.get_or_insert_with(Instant::now).elapsed());
    HEARTBEAT.saturating_sub(silent)
}

/// A duration as `0.4 s` or `312 s`.
pub fn seconds(took: Duration) -> String {
    if took < Duration::from_secs(100) { format!("{:.1} s", took.as_secs_f64()) } else { format!("{} s", took.as_secs()) }
}

/// Runs `work`, says how long it took, and while it lasts prints a line every ten seconds.
///
/// # Errors
/// What `work` returned.
pub fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    step_with(what, String::new, work)
}

/// Like [`step`], with what `detail` returns (if anything) in every line of waiting.
///
/// # Errors
/// What `work` returned.
pub fn step_with<T>(
    what: &str,
    detail: impl Fn() -> String + Send,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let result = with_heartbeat(what, detail, work);
    if result.is_ok() {
        say(format!("  {what}: {}", seconds(started.elapsed())));
    }
    result
}

/// Runs `work` and prints `what … 20 s: detail` every ten seconds; nothing if it is quicker than that.
pub fn with_heartbeat<T>(what: &str, detail: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let (done, finished) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(until_silence()) {
                if !until_silence().is_zero() {
                    continue; // someone who knows more said something in the meantime
                }
                let (detail, elapsed) = (detail(), started.elapsed().as_secs());
                let detail = if detail.is_empty() { detail } else { format!(": {}", detail.trim()) };
                say(format!("  {what} … {elapsed} s{detail}"));
            }
        });
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_over_some_time_also_when_nothing_was_ever_said() {
        until_silence();
        assert!(until_silence() < HEARTBEAT);
    }
}
