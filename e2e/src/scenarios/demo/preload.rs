//! The preload, as it is seen while it goes on and when it is over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::report::{bar, mib, rate};
use crate::cluster::condition;
use crate::report::say;
use crate::s3::Request;
use crate::scenarios::larder::{BUCKET, Named, explain};

/// Waits till everything is cached, with a line for each step forward.
pub(super) fn watch(named: &Named<'_>, timeout: Duration) -> Result<Value> {
    let mut first: Option<(Instant, u64)> = None;
    let mut shown = None;
    named.lab.cluster.wait_until("everything cached", timeout, || {
        let object = named.object()?;
        let preload = &object["status"]["preload"];
        if let (Some(done), Some(total)) = (preload["bytesDone"].as_u64(), preload["bytesTotal"].as_u64())
            && shown != Some(done)
        {
            let (since, before) = *first.get_or_insert((Instant::now(), done));
            let speed = match since.elapsed() {
                elapsed if done > before && !elapsed.is_zero() => rate(done - before, elapsed),
                _ => String::new(),
            };
            say(format!("  preload {} of {}  {speed}", bar(done, total), mib(total)));
            shown = Some(done);
        }
        for kind in ["Ready", "Preloaded"] {
            ensure!(condition(&object, kind) == Some("True"), "{}", explain(&object));
        }
        Ok(object)
    })
}

/// From the first request to the last answer, says the origin's log: status comes by the second or two.
pub(super) fn took(named: &Named<'_>) -> Result<Duration> {
    let folder = format!("{}/", named.name);
    let log = named.lab.s3.requests()?;
    let ours = || {
        log.iter().filter(|request| {
            let (bucket, key) = request.object();
            request.method == "GET" && bucket == BUCKET && key.starts_with(&folder)
        })
    };
    let start = ours().map(|request: &Request| request.time - request.seconds).reduce(f64::min);
    let end = ours().map(|request| request.time).reduce(f64::max);
    let (start, end) = start.zip(end).context("the origin's log has no reads")?;
    Ok(Duration::from_secs_f64((end - start).max(0.001)))
}
