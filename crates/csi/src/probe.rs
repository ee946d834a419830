//! Is the mount at a path alive? Asked of the mounter through the kernel, with a deadline.
//!
//! statfs(2) on a mount whose mounter hangs does not return. So each probe has a thread of its own that may be left behind, at
//! most one for each superblock: as long as it has not come back, the answer is "hung" at once.

use larder_fuse::device;
use nix::sys::statfs::statfs;
use parking_lot::Mutex;
use std::{collections::HashSet, io, path::Path, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Device number of a superblock.
pub(crate) type Device = (u32, u32);

/// What statfs(2) says of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Answer of a probe.
#[derive(Debug)]
pub(crate) enum Probe {
    Alive(Usage),
    /// Nobody serves it any more, nor ever will.
    Dead,
    /// No answer yet.
    Hung,
    /// Some other error.
    Failed(io::Error),
}

/// All probes of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prober {
    under_way: Arc<Mutex<HashSet<Device>>>,
}

impl Prober {
    /// Probes the mount of `device` at `path`, for at most `patience`.
    pub(crate) async fn probe(&self, device: Device, path: &Path, patience: Duration) -> Probe {
        if !self.under_way.lock().insert(device) {
            return Probe::Hung;
        }
        let (done, answer) = oneshot::channel();
        let (under_way, path) = (Arc::clone(&self.under_way), path.to_owned());
        // Not a thread of the runtime's: those are counted, and waited for at the end.
        let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
            let result = statfs(&path);
            under_way.lock().remove(&device);
            // Nobody listens when it took too long.
            let _ = done.send(result);
        });
        if let Err(e) = thread {
            self.under_way.lock().remove(&device);
            return Probe::Failed(e);
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(Ok(stat))) => {
                let block = u64::try_from(stat.block_size()).unwrap_or(0);
                Probe::Alive(Usage { bytes: stat.blocks().saturating_mul(block), inodes: stat.files() })
            }
            Ok(Ok(Err(errno))) => match io::Error::from(errno) {
                e if device::is_dead(&e) => Probe::Dead,
                e => Probe::Failed(e),
            },
            Ok(Err(_)) => Probe::Failed(io::Error::other("probe thread panicked")),
            Err(_) => Probe::Hung,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_superblock_that_does_not_answer_ties_up_one_thread_and_no_more() {
        let prober = Prober::default();
        prober.under_way.lock().insert((0, 7));
        assert!(matches!(prober.probe((0, 7), Path::new("/"), Duration::from_secs(5)).await, Probe::Hung));
        assert!(matches!(prober.probe((0, 8), Path::new("/"), Duration::from_secs(5)).await, Probe::Alive(_)));
        assert!(matches!(prober.probe((0, 8), Path::new("/nothing here"), Duration::from_secs(5)).await, Probe::Failed(_)));
        assert_eq!(prober.under_way.lock().len(), 1);
    }
}
