//! The GPUs of the GPU nodes: none but in name. A vendor's device plugin would offer them; here the harness does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::api::{Api, path_of};

/// A GPU node offers this many.
pub const GPUS: &str = "8";

/// A kubelet that starts forgets resources it does not know.
const CARE: Duration = Duration::from_secs(2);

/// Patches the GPUs into the status of nodes where they are not.
pub(super) fn offer(api: &Api, nodes: &[String]) -> Result<()> {
    for node in nodes {
        let path = path_of("nodes", None, Some(node));
        let seen = api.get(&path)?;
        if seen.pointer("/status/allocatable/nvidia.com~1gpu").and_then(Value::as_str) != Some(GPUS) {
            let amount = json!({ "nvidia.com/gpu": GPUS });
            let patch = json!({ "status": { "capacity": amount, "allocatable": amount } });
            api.merge_patch(&format!("{path}/status"), &patch)?;
        }
    }
    Ok(())
}

/// Goes on doing that in a thread until `stop` is set.
pub(super) fn keep_offering(api: Api, nodes: Vec<String>, stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(CARE);
            // The API server may be down for a test's sake; the next round does what this one could not.
            let _ = offer(&api, &nodes);
        }
    });
}
