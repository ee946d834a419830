//! How a worker begins, what it takes for orders, and what it leaves.

use super::harness::{Cluster, UID, dataset, orders, read_all, settings, size};
use crate::metrics::Metrics;
use larder_origin::testing::FakeS3;
use larder_proto::control::v1::{self as pb, worker_client::WorkerClient};
use larder_telemetry::Health;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

#[test]
fn the_flags_have_the_defaults_of_the_design() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: crate::Args,
    }
    let args = |uid: &str| {
        let args = ["worker", "--node=n", "--namespace=ns", "--dir=/d", "--plain", "--dataset-uid", uid];
        <Cli as clap::Parser>::try_parse_from(args).map(|c| c.args)
    };
    let a = args(UID).unwrap();
    let addrs = [a.data_addr, a.control_addr, a.admin_addr].map(|a| a.to_string());
    assert_eq!(addrs, ["[::]:7470", "[::]:7471", "[::]:7472"]);
    assert_eq!(a.run_dir.to_str(), Some("/var/lib/larder/run"));
    assert!(args("../etc").is_err());
}

#[tokio::test]
async fn two_workers_never_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(UID);
    let first = crate::folder::Folder::open(&path, crate::LOCK_WAIT).unwrap();
    let second = std::thread::spawn(move || crate::folder::Folder::open(&path, crate::LOCK_WAIT).map(drop));
    // It looks at the lock every 100 ms.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_begin_says_why_and_begins_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let (tier, health, shutdown) = (dir.path().join("tier"), Health::default(), CancellationToken::new());
    let settings = settings("gpu-0", &tier.join(UID), larder_peer::Options::default());
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", control.local_addr().unwrap());
    let opening = tokio::spawn({
        let (settings, health, shutdown) = (settings.clone(), health.clone(), shutdown.clone());
        async move {
            let roster = watch::Sender::new(Arc::default()).subscribe();
            crate::held_up::open(&settings, &roster, &Metrics::default(), control, &health, &shutdown).await
        }
    });
    let mut client = WorkerClient::connect(address).await.unwrap();
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.problems[0].reason, "DiskFailed");
    assert!(status.problems[0].message.contains(tier.to_str().unwrap()), "{:?}", status.problems);
    let refused = client.configure(pb::ConfigureRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(health.is_ready(), "nobody asks a worker that is not");
    std::fs::create_dir(&tier).unwrap();
    assert!(opening.await.unwrap().unwrap().is_some());
    assert!(!health.is_ready());
}

/// All files beneath a folder, and what is in them.
fn files_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files =
        |path: PathBuf| if path.is_dir() { files_of(&path) } else { [(path.clone(), std::fs::read(path).unwrap())].into() };
    entries.flat_map(files).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_later_release_is_left_as_it_is_and_an_update_ends_there() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, health, shutdown) = (dir.path().join(UID), Health::default(), CancellationToken::new());
    // Whatever makes no sense to this release would be removed.
    for (name, bytes) in
        [("format", "2\n"), ("lock", ""), ("state.json", "[]"), ("catalogs/x", "y"), ("data/ab/cd", "z"), ("fill/e.map2", "")]
    {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let before = files_of(&folder);
    let settings = settings("gpu-0", &folder, larder_peer::Options::default());
    let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", control.local_addr().unwrap());
    let roster = watch::Sender::new(Arc::default()).subscribe();
    let opening = tokio::spawn({
        let (settings, health, shutdown) = (settings.clone(), health.clone(), shutdown.clone());
        async move { crate::held_up::open(&settings, &roster, &Metrics::default(), control, &health, &shutdown).await }
    });
    let mut client = WorkerClient::connect(address).await.unwrap();
    let problem = client.status(pb::StatusRequest {}).await.unwrap().into_inner().problems.remove(0);
    assert_eq!(problem.reason, "LaterFormat");
    assert!(problem.message.contains("format 2") && problem.message.contains("up to 1"), "{problem:?}");
    let erased = client.erase(pb::EraseRequest { dataset_uid: UID.into() }).await.unwrap_err();
    assert_eq!(erased.code(), tonic::Code::Unavailable);
    assert!(!health.is_ready(), "the next node would be updated too");
    assert_eq!(files_of(&folder), before);
    shutdown.cancel();
    assert!(opening.await.unwrap().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_restarts_without_an_operator_goes_on_where_it_was() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let mut cluster = Cluster::start(1).await;
    let snapshot = cluster.nodes[0].list_and_preload(&server).await;
    let before = (server.seen(), cluster.nodes[0].status().await);
    cluster.restart(0).await;
    let node = &cluster.nodes[0];
    let preload = node.preloaded().await;
    assert_eq!(preload.files_done, files.len() as u64);
    let after = node.status().await;
    assert_eq!(after.generation, before.1.generation);
    assert_eq!(after.origin_bytes, before.1.origin_bytes);
    assert_eq!(after.listing, before.1.listing);
    read_all(&cluster, &snapshot, &files).await;
    assert_eq!(server.seen(), before.0, "nothing was asked of the origin again");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_make_no_sense_are_refused_whole() {
    let server = FakeS3::start().await;
    let cluster = Cluster::start(1).await;
    let mut control = cluster.nodes[0].control().await;
    let escape = pb::Config { snapshot: "../../../etc/passwd".into(), ..orders(&server) };
    let nowhere = pb::Config { source: None, ..orders(&server) };
    for config in [Some(escape), Some(nowhere), None] {
        let e = control.configure(pb::ConfigureRequest { config }).await.unwrap_err();
        assert_eq!(e.code(), tonic::Code::InvalidArgument);
    }
    assert_eq!(cluster.nodes[0].status().await.generation, "");
    let config = pb::Config {
        listing_id: "l".into(),
        source: Some(pb::Source { uri: "file:///etc".into(), ..Default::default() }),
        ..orders(&server)
    };
    cluster.nodes[0].configure(config).await;
    let problem = cluster.nodes[0].until(|s| s.listing?.problem).await;
    assert_eq!(problem.reason, "FolderNotAllowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_leaves_nothing_and_takes_no_more_orders() {
    let server = FakeS3::start().await;
    let files = dataset(&server);
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    node.list_and_preload(&server).await;
    let mut control = node.control().await;
    let other = control.erase(pb::EraseRequest { dataset_uid: UID.replace('0', "1") }).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::InvalidArgument);
    let erase = || pb::EraseRequest { dataset_uid: UID.into() };
    let freed = control.erase(erase()).await.unwrap().into_inner().freed_bytes;
    assert!(freed >= size(&files), "{freed}");
    assert!(!node.dir.exists());
    assert_eq!(control.erase(erase()).await.unwrap().into_inner().freed_bytes, 0);
    let status = node.status().await;
    assert_eq!((status.cached_files, status.snapshots.len(), status.generation.as_str()), (0, 0, ""));
    let refused = control.configure(pb::ConfigureRequest { config: Some(orders(&server)) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    // What still ran would have made it again by now.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!node.dir.exists());
}
