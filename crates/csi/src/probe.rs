//! Is the mount at a path alive? Asked of the mounter through the kernel, with a deadline.
//!
//! statfs(2) on a mount whose mounter hangs does not return. So each probe has a thread of its own that may be left behind, at
//! most one for each superblock: who asks while it has not come back waits for the same answer, as long as its own patience lasts.

use larder_fuse::device;
use nix::{errno::Errno, sys::statfs::statfs};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

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

/// None as long as there is none.
type Answer = Option<nix::Result<Usage>>;

/// All probes of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prober {
    under_way: Arc<Mutex<HashMap<Device, watch::Receiver<Answer>>>>,
}

impl Prober {
    /// Probes the mount of `device` at `path`, for at most `patience`.
    pub(crate) async fn probe(&self, device: Device, path: &Path, patience: Duration) -> Probe {
        let path = path.to_owned();
        let ask = move || {
            let stat = statfs(&path)?;
            let block = u64::try_from(stat.block_size()).unwrap_or(0);
            Ok(Usage { bytes: stat.blocks().saturating_mul(block), inodes: stat.files() })
        };
        self.probe_with(device, patience, ask).await
    }

    /// Is a request of this process's own waiting in it?
    pub(crate) fn is_under_way(&self, device: Device) -> bool {
        self.under_way.lock().contains_key(&device)
    }

    async fn probe_with(
        &self,
        device: Device,
        patience: Duration,
        ask: impl FnOnce() -> nix::Result<Usage> + Send + 'static,
    ) -> Probe {
        let mut answer = match self.join_or_start(device, ask) {
            Ok(answer) => answer,
            Err(error) => return Probe::Failed(error),
        };
        match tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => match *answer {
                Some(Ok(usage)) => Probe::Alive(usage),
                Some(Err(errno)) => dead_or_failed(errno),
                None => Probe::Hung,
            },
            Ok(Err(_)) => Probe::Failed(io::Error::other("probe thread panicked")),
            Err(_) => Probe::Hung,
        }
    }

    fn join_or_start(
        &self,
        device: Device,
        ask: impl FnOnce() -> nix::Result<Usage> + Send + 'static,
    ) -> io::Result<watch::Receiver<Answer>> {
        let (done, answer) = watch::channel(None);
        match self.under_way.lock().entry(device) {
            Entry::Occupied(other) => return Ok(other.get().clone()),
            Entry::Vacant(place) => place.insert(answer.clone()),
        };
        let under_way = UnderWay { all: Arc::clone(&self.under_way), device };
        // Not a thread of the runtime's: those are counted, and waited for at the end.
        std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
            let result = ask();
            drop(under_way);
            // Nobody listens when it took too long.
            let _ = done.send(Some(result));
        })?;
        Ok(answer)
    }
}

/// Goes with the thread, however that ends, or with the attempt to start one: the next probe asks anew.
struct UnderWay {
    all: Arc<Mutex<HashMap<Device, watch::Receiver<Answer>>>>,
    device: Device,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().remove(&self.device);
    }
}

fn dead_or_failed(errno: Errno) -> Probe {
    match io::Error::from(errno) {
        e if device::is_dead(&e) => Probe::Dead,
        e => Probe::Failed(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn who_asks_while_a_probe_is_under_way_gets_its_answer() {
        let (prober, device) = (Prober::default(), (0, 7));
        let (answer, wait) = mpsc::channel();
        let first = prober.probe_with(device, LONG, move || wait.recv().map_err(|_| Errno::EIO));
        let others = || prober.probe_with(device, LONG, || panic!("asked twice"));
        // In this order: all of them wait by then.
        let late = async { answer.send(Usage { bytes: 1, inodes: 2 }) };
        let (first, second, third, sent) = tokio::join!(first, others(), others(), late);
        sent.unwrap();
        for probe in [first, second, third] {
            assert!(matches!(probe, Probe::Alive(Usage { bytes: 1, inodes: 2 })), "{probe:?}");
        }
        assert!(!prober.is_under_way(device));
    }

    #[tokio::test]
    async fn a_superblock_that_does_not_answer_ties_up_one_thread_and_no_more() {
        let (prober, short) = (Prober::default(), Duration::from_millis(20));
        let (answer, wait) = mpsc::channel();
        let hung = prober.probe_with((0, 7), short, move || wait.recv().map_err(|_| Errno::ENOTCONN));
        assert!(matches!(hung.await, Probe::Hung));
        assert!(matches!(prober.probe_with((0, 7), short, || panic!("asked twice")).await, Probe::Hung));
        assert!(prober.is_under_way((0, 7)) && prober.under_way.lock().len() == 1);
        assert!(matches!(prober.probe((0, 8), Path::new("/"), LONG).await, Probe::Alive(_)));
        assert!(matches!(prober.probe((0, 8), Path::new("/nothing here"), LONG).await, Probe::Failed(_)));
        let still_waits = prober.probe_with((0, 7), LONG, || panic!("asked twice"));
        let (ended, ()) = tokio::join!(still_waits, async { drop::<mpsc::Sender<Usage>>(answer) });
        assert!(matches!(ended, Probe::Dead), "{ended:?}");
        assert!(matches!(prober.probe((0, 7), Path::new("/"), LONG).await, Probe::Alive(_)), "asked anew");
    }
}
