//! Counts the descriptors of this process, which is why there is one test in it.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use larder_keeper::{Keeper, client::Held, metrics::Metrics};
use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

const WAIT: Duration = Duration::from_secs(20);

/// Of regular files that were deleted: those that the test makes.
fn open_files() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    open.filter(|target| target.to_string_lossy().ends_with("(deleted)")).count()
}

fn mk_file() -> Option<std::os::fd::OwnedFd> {
    Some(tempfile::tempfile().unwrap().into())
}

async fn until_open(expected: usize, what: &str) {
    let deadline = Instant::now() + WAIT;
    while open_files() != expected {
        assert!(Instant::now() < deadline, "{what}: {} files are open, not {expected}", open_files());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start(socket: &Path) -> tokio::task::JoinHandle<()> {
    let me = nix::unistd::geteuid().as_raw();
    tokio::spawn(Keeper::bind(socket, &[me], Metrics::default()).unwrap().serve())
}

#[tokio::test]
async fn nobody_keeps_a_descriptor_of_what_was_replaced_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("k.sock");
    let keeper = start(&socket);
    let (mounter, plugin) = (Held::start(socket.clone()), Held::start(socket.clone()));
    for n in 0..20 {
        assert!(mounter.put_now(&format!("k{}", n % 4), "v", mk_file(), WAIT).await);
        assert!(plugin.fetch(WAIT).await);
    }
    until_open(3 * 4, "four items, three holders").await;
    assert!(mounter.put_now("k0", "v", None, WAIT).await);
    mounter.remove("k1");
    until_open(3 * 2, "two items").await;

    keeper.abort();
    until_open(2 * 2, "two holders").await;
    mounter.remove("k2");
    let keeper = start(&socket);
    // With a keeper that was told all (the last key last), so that the three are not those of the two processes alone.
    assert!(mounter.put_now("z", "v", None, WAIT).await && plugin.fetch(WAIT).await);
    until_open(3, "one item, three holders").await;
    drop((mounter, plugin));
    until_open(1, "one holder").await;
    keeper.abort();
    until_open(0, "none").await;
    // What the count relies on.
    let _file: File = tempfile::tempfile().unwrap();
    assert_eq!(open_files(), 1);
}
