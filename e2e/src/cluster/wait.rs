//! Waiting for something to become true, with words for what is still missing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Cluster;
use crate::report::{say, seconds};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A little less than that of `report::step`, because this one says more.
const HEARTBEAT: Duration = Duration::from_secs(9);

impl Cluster {
    /// Calls `attempt` until it returns `Ok`; an error says what is missing yet. Prints that every nine seconds.
    ///
    /// # Errors
    /// The time is over (after a dump of the cluster's state), or a component of the cluster has ended.
    pub fn wait_until<T>(&self, what: &str, timeout: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let (mut pause, mut said) = (FIRST_PAUSE, started);
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                bail!("stopped while waiting for {what}");
            }
            let missing = match attempt() {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            self.check_components()?;
            if started.elapsed() > timeout {
                let dump = self.dump(what);
                bail!("{what}: not after {} ({missing:#}); {dump}", seconds(timeout));
            }
            if said.elapsed() > HEARTBEAT {
                said = Instant::now();
                say(format!("  waiting for {what} … {} s: {missing:#}", started.elapsed().as_secs()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
