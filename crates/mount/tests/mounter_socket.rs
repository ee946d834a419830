//! The mounter's socket when the node plugin, or what claims to be it, asks for what cannot be. Needs root, whom alone the
//! mounter talks to. (What can be is tested with the node plugin, in crates/csi.)
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use larder_core::names;
use larder_fuse::{
    fdpass::Conn,
    protocol::mounter::{Mode, Mount, Reply, Request},
};
use larder_keeper::{Keeper, client::Held, metrics::Metrics};
use larder_mount::mounter::{Args, run_with};
use std::{convert::Infallible, fs, fs::File, os::fd::AsFd as _, path::Path, time::Duration};
use tokio_util::sync::CancellationToken;

const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

fn mk_mount() -> Mount {
    let snapshot = "ab".repeat(32);
    Mount {
        identity: names::mount_identity(UID, &snapshot),
        dataset_uid: UID.into(),
        snapshot,
        uid: 0,
        gid: 0,
        file_mode: 0o444,
        dir_mode: 0o555,
        mode: Mode::Auto,
    }
}

async fn ask(conn: &Conn, request: &impl AsJson, file: Option<&File>) -> Reply {
    request.send(conn, file).await;
    conn.recv().await.unwrap().unwrap().0
}

/// Requests of the protocol, and others.
trait AsJson {
    async fn send(&self, conn: &Conn, file: Option<&File>);
}

impl AsJson for Request {
    async fn send(&self, conn: &Conn, file: Option<&File>) {
        conn.send(self, file.map(File::as_fd)).await.unwrap();
    }
}

impl AsJson for serde_json::Value {
    async fn send(&self, conn: &Conn, file: Option<&File>) {
        conn.send(self, file.map(File::as_fd)).await.unwrap();
    }
}

fn refused(reply: &Reply, with_retry: bool, words: &str) {
    let Reply::Error { retry, message } = reply else { panic!("{reply:?}") };
    assert!(*retry == with_retry && message.contains(words), "{reply:?}");
}

/// An API server that knows nothing.
fn client() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
        let response = http::Response::builder().status(503).body(kube::client::Body::empty()).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    kube::Client::new(service, "default")
}

fn mk_args(base: &Path) -> Args {
    Args {
        node: "gpu-1".into(),
        namespace: "larder-system".into(),
        run_dir: base.join("run"),
        catalog_dir: base.join("catalogs"),
        trust: larder_trust::Flags::without_certificates(),
        admin_addr: ([127, 0, 0, 1], 0).into(),
        fuse_threads: 1,
        in_flight: larder_fuse::journal::InFlight::Auto,
        open_files: 4,
        serve: true,
        drain_seconds: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_answered_and_harm_no_later_one() {
    if !nix::unistd::geteuid().is_root() {
        assert!(!std::env::var("CI").is_ok_and(|v| v == "true"), "needs root");
        eprintln!("SKIPPED, NOTHING WAS TESTED: needs root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let args = mk_args(base.path());
    fs::create_dir_all(&args.catalog_dir).unwrap();
    fs::write(args.catalog_dir.join("left behind"), "by the last mounter").unwrap();
    let shutdown = CancellationToken::new();
    let mounter = tokio::spawn(run_with(args.clone(), client(), shutdown.clone()));

    // The node plugin makes the folder when it comes up, maybe after the mounter: by then it has tried in vain.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!mounter.is_finished(), "must wait for the folder of its socket");
    let socket = names::mounter_socket(&args.run_dir);
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let conn = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match Conn::connect(&socket).await {
                Ok(conn) => break conn,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let conn = conn.await.unwrap();
    assert_eq!(fs::read_dir(&args.catalog_dir).unwrap().count(), 0);

    refused(&ask(&conn, &serde_json::json!({"eject": {}}), None).await, false, "no request of release");
    refused(&ask(&conn, &serde_json::json!([1, 2, 3]), None).await, false, "no request of release");
    for bad in [
        Mount { dataset_uid: "../../../etc".into(), ..mk_mount() },
        Mount { snapshot: "../../../etc/shadow".into(), ..mk_mount() },
        Mount { identity: "of another".into(), ..mk_mount() },
        Mount { file_mode: 0o4777, ..mk_mount() },
    ] {
        refused(&ask(&conn, &Request::Prepare(bad.clone()), None).await, false, "not valid");
        let null = File::open("/dev/null").unwrap();
        refused(&ask(&conn, &Request::Serve(bad), Some(&null)).await, false, "not valid");
    }
    refused(&ask(&conn, &Request::Serve(mk_mount()), None).await, false, "no FUSE descriptor");
    let permit = Request::Permit { dataset_uid: UID.into(), token: "of my own making".into() };
    refused(&ask(&conn, &permit, None).await, false, "no mount token");
    refused(&ask(&conn, &Request::Prepare(mk_mount()), None).await, true, "no worker has it");
    assert_eq!(ask(&conn, &Request::Forget { identity: "never heard of".into() }, None).await, Reply::Forgotten {});
    assert_eq!(ask(&conn, &Request::List {}, None).await, Reply::Mounts(Vec::new()));
    shutdown.cancel();
    mounter.await.unwrap().unwrap();
}

/// Longest wait for what must come.
const WAIT: Duration = Duration::from_secs(20);

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounter_that_could_not_go_on_with_a_mount_leaves_the_turn_to_others() {
    let base = tempfile::tempdir().unwrap();
    let args = mk_args(base.path());
    let (socket, lock) = (names::keeper_socket(&args.run_dir), names::mounter_lock(&args.run_dir));
    for folder in [&socket, &lock, &args.catalog_dir.join("x")] {
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
    }
    let keeper = Keeper::bind(&socket, &[nix::unistd::geteuid().as_raw()], Metrics::default()).unwrap();
    let keeper = tokio::spawn(keeper.serve());
    let held = Held::start(socket);
    let null = || Some(File::open("/dev/null").unwrap().into());
    let key = |what: &str| format!("{}i/1/{what}", names::HELD_SESSIONS);
    assert!(held.put_now(&key("connection"), r#"{"version":2,"mounts":[]}"#, null(), WAIT).await);

    let shutdown = CancellationToken::new();
    let mounter = tokio::spawn(run_with(args.clone(), client(), shutdown.clone()));
    until("it stands by", || args.catalog_dir.with_extension("lock").exists()).await;
    // Longer than it takes one that can to begin.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let others = File::options().create(true).truncate(false).write(true).open(&lock).unwrap();
    assert!(others.try_lock().is_ok() && !names::mounter_socket(&args.run_dir).exists(), "it has taken the turn");
    others.unlock().unwrap();
    // It was unmounted.
    held.remove(&key("connection"));
    until("it does not take its turn", || names::mounter_socket(&args.run_dir).exists()).await;
    assert!(others.try_lock().is_err());
    shutdown.cancel();
    mounter.await.unwrap().unwrap();
    keeper.abort();
}
