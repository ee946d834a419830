use super::*;
use crate::{Body, CopyReply, ObjectReply, ObjectRequest, ObjectSource, Refusal, Roster};
use ::http::StatusCode;
use futures::StreamExt as _;
use larder_core::{
    catalog::{Builder, Listed, digest},
    checksum::crc32c,
    key::ObjectKey,
    placement::{Member, Members},
};
use larder_trust::Security;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";
const SIZE: u64 = 5 << 20;

fn content(range: Range<u64>) -> Vec<u8> {
    range.map(|i| (i * 7 + (i >> 9)) as u8).collect()
}

/// How a fake worker answers.
#[derive(Clone)]
enum Way {
    File,
    Stream,
    BreaksOff,
    /// Bytes and checksum do not belong together.
    Rots,
    RotsUntilTold,
    Hangs,
    Takes(Duration),
    Refuses(Refusal),
}

struct Fake {
    way: Mutex<Way>,
    asked: Mutex<Vec<ObjectRequest>>,
    /// Has nothing on its disk.
    empty: AtomicBool,
    catalog: Mutex<Vec<u8>>,
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

impl ObjectSource for Fake {
    async fn object(&self, request: ObjectRequest) -> Result<ObjectReply, Refusal> {
        let range = request.range.clone();
        let (on_disk, check) = (request.on_disk, request.check);
        self.asked.lock().push(request);
        let way = self.way.lock().clone();
        if on_disk && self.empty.load(Relaxed) {
            return Err(Refusal::NotFound("not here".into()));
        }
        if range.end > SIZE {
            return Err(Refusal::Range { size: SIZE });
        }
        let pieces = |n| {
            let all = content(range.clone());
            let half = all.len() / 2;
            [Bytes::copy_from_slice(&all[..half]), Bytes::copy_from_slice(&all[half..])].into_iter().take(n).map(Ok)
        };
        let rots = matches!(way, Way::Rots) || matches!(way, Way::RotsUntilTold) && !check;
        let body = match way {
            Way::File => Body::File(file_of(&content(0..SIZE))),
            Way::Stream => Body::Stream(futures::stream::iter(pieces(2)).boxed()),
            Way::BreaksOff => Body::Stream(futures::stream::iter(pieces(1).chain([Err(io::Error::other("disk"))])).boxed()),
            Way::Rots | Way::RotsUntilTold => Body::Bytes(Bytes::from(content(range.clone()))),
            Way::Hangs => std::future::pending().await,
            Way::Takes(time) => {
                tokio::time::sleep(time).await;
                Body::File(file_of(&content(0..SIZE)))
            }
            Way::Refuses(refusal) => return Err(refusal),
        };
        let sum = crc32c(&content(range));
        let crc32c = if rots { sum ^ 1 } else { sum };
        Ok(ObjectReply { source: Source::Origin, size: SIZE, crc32c: Some(crc32c), body })
    }

    async fn copy(
        &self,
        dataset_uid: &str,
        asked: ObjectKey,
        range: Range<u64>,
        _: Option<(String, u64)>,
    ) -> Result<CopyReply, Refusal> {
        let way = self.way.lock().clone();
        match way {
            Way::File if (dataset_uid, asked) == (UID, key()) => {
                Ok(CopyReply { bytes: content(range).into(), crc32c: 0x00c0_ffee })
            }
            // Shorter than what is asked for.
            Way::BreaksOff => Ok(CopyReply { bytes: content(0..SIZE / 2).into(), crc32c: 0 }),
            Way::Hangs => std::future::pending().await,
            _ => Err(Refusal::NotFound("not here".into())),
        }
    }

    async fn catalog(&self, _: &str, digest: &str) -> Result<File, Refusal> {
        let catalog = self.catalog.lock();
        if catalog.is_empty() { Err(Refusal::NotFound(format!("no snapshot {digest}"))) } else { Ok(file_of(&catalog)) }
    }
}

/// Three workers on one port of three addresses of the loopback.
struct Cluster {
    client: Client,
    roster: Roster,
    workers: BTreeMap<String, (Arc<Fake>, CancellationToken, JoinHandle<()>)>,
}

impl Cluster {
    /// Whose answers are never so late that another node is asked too.
    async fn start() -> Self {
        Self::start_with(|options| options.hedge = Duration::from_secs(60)).await
    }

    async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let ip = |n: u8| IpAddr::V4(Ipv4Addr::new(127, 0, 0, n + 2));
        let first = TcpListener::bind((ip(0), 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut listeners = vec![first];
        for n in 1..3 {
            listeners.push(TcpListener::bind((ip(n), port)).await.unwrap());
        }
        let (mut roster, mut workers) = (Roster::default(), BTreeMap::new());
        for (n, listener) in (0..).zip(listeners) {
            let node = format!("gpu-{n}");
            let fake = Fake {
                way: Mutex::new(Way::File),
                asked: Mutex::default(),
                empty: AtomicBool::new(false),
                catalog: Mutex::default(),
            };
            let (fake, stop) = (Arc::new(fake), CancellationToken::new());
            let (source, stopped) = (Arc::clone(&fake), stop.clone());
            let serving = tokio::spawn(async move { crate::serve(listener, source, &Security::Plain, stopped).await });
            roster.members.members.push(Member { node: node.clone(), weight: 1, since: 1, leaving: false });
            roster.addresses.insert(node.clone(), ip(n));
            workers.insert(node, (fake, stop, serving));
        }
        let mut options = Options {
            port,
            silence: Duration::from_millis(300),
            whole: Duration::from_secs(3),
            down: Duration::from_millis(500),
            ..Options::default()
        };
        change(&mut options);
        Self { client: Client::with_options("gpu-1", options), roster, workers }
    }

    fn way(&self, node: &str, way: Way) {
        *self.workers[node].0.way.lock() = way;
    }

    fn asked(&self, node: &str) -> Vec<ObjectRequest> {
        std::mem::take(&mut self.workers[node].0.asked.lock())
    }

    /// Nodes in the order in which they are asked for the object.
    fn order(&self) -> Vec<String> {
        self.roster.members.order(&self.roster.members.place(&key(), 0)).into_iter().map(|m| m.node.clone()).collect()
    }

    async fn read(&self, range: Range<u64>) -> Result<Fetched, ReadError> {
        let object = ObjectRef { dataset_uid: UID, snapshot: "5nap", inode: 7, key: key() };
        self.client.read(&self.roster, &object, range).await
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("s3://b/", "p", "v", SIZE)
}

#[tokio::test]
async fn the_owner_gives_exactly_the_range_from_a_file_or_a_stream() {
    let cluster = Cluster::start().await;
    let owner = &cluster.order()[0];
    for way in [Way::File, Way::Stream] {
        cluster.way(owner, way);
        for range in [0..1, 0..SIZE, SIZE - 1..SIZE, 1_000_000..3_500_001] {
            let got = cluster.read(range.clone()).await.unwrap();
            assert!(got.bytes == content(range.clone()), "{range:?}");
            assert_eq!((got.source, &got.node), (Source::Origin, owner));
        }
    }
    let asked = cluster.asked(owner);
    assert_eq!(asked.len(), 8);
    assert_eq!((asked[0].dataset_uid.as_str(), asked[0].snapshot.as_str()), (UID, "5nap"));
    assert_eq!((asked[0].inode, asked[0].key, asked[0].stand_in), (7, key(), false));
    assert!(cluster.read(5..5).await.unwrap().bytes.is_empty());
    assert!(cluster.asked(owner).is_empty());
}

#[tokio::test]
async fn each_stripe_is_asked_from_its_owner_also_when_a_range_covers_several() {
    let mut cluster = Cluster::start().await;
    cluster.roster.members.stripe_bytes = 1_000_000;
    let members = cluster.roster.members.clone();
    let owner = |offset| members.owner(&members.place(&key(), offset)).unwrap().node.clone();
    let range = 999_990..3_000_020;
    let got = cluster.read(range.clone()).await.unwrap();
    assert!(got.bytes == content(range));
    let mut asked = Vec::new();
    for node in ["gpu-0", "gpu-1", "gpu-2"] {
        asked.extend(cluster.asked(node).into_iter().map(|r| (r.range, node.to_owned())));
    }
    asked.sort_by_key(|(range, _)| range.start);
    let parts = [999_990..1_000_000, 1_000_000..2_000_000, 2_000_000..3_000_000, 3_000_000..3_000_020];
    assert_eq!(asked, parts.map(|part| (part.clone(), owner(part.start))));
    let owners: std::collections::BTreeSet<_> = asked.iter().map(|(_, owner)| owner).collect();
    assert!(owners.len() > 1, "{owners:?}");
}

#[tokio::test]
async fn a_dead_owner_is_stood_in_for_and_not_asked_again_for_a_moment() {
    let mut cluster = Cluster::start().await;
    let order = cluster.order();
    let (_, stop, serving) = cluster.workers.remove(&order[0]).unwrap();
    stop.cancel();
    serving.await.unwrap();
    for _ in 0..3 {
        let got = cluster.read(3..9).await.unwrap();
        assert_eq!((got.node.as_str(), &got.bytes[..]), (order[1].as_str(), &content(3..9)[..]));
    }
    assert!(cluster.asked(&order[1]).iter().all(|r| r.stand_in));
    assert_eq!(cluster.asked(&order[2]).len(), 0);
}

#[tokio::test]
async fn a_hanging_owner_costs_its_silence_once() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Hangs);
    let started = Instant::now();
    for _ in 0..5 {
        assert_eq!(cluster.read(0..9).await.unwrap().node, order[1]);
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    cluster.way(&order[0], Way::File);
    // Longer than it is taken to be down.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(cluster.read(0..9).await.unwrap().node, order[0]);
}

#[tokio::test]
async fn a_late_answer_is_looked_for_on_the_next_disk_and_nobody_is_made_to_fetch() {
    let cluster = Cluster::start_with(|o| (o.silence, o.quiet) = (Duration::from_secs(3), Duration::from_secs(2))).await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Takes(Duration::from_millis(800)));
    let started = Instant::now();
    let got = cluster.read(0..9).await.unwrap();
    assert!(got.node == order[1] && got.hedged);
    assert!((20..700).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(cluster.asked(&order[1]).iter().all(|r| r.on_disk && !r.stand_in));

    // Who does not have it says so, and the owner's answer is waited for.
    cluster.workers[&order[1]].0.empty.store(true, Relaxed);
    assert_eq!(cluster.read(0..9).await.unwrap().node, order[0]);
    assert_eq!((cluster.asked(&order[1]).len(), cluster.asked(&order[2]).len()), (1, 0));

    // One that is late each time is not asked twice each time.
    for _ in 0..12 {
        cluster.client.inner.hedging.may();
    }
    let got = cluster.read(0..9).await.unwrap();
    assert!(got.node == order[0] && !got.hedged);
    assert_eq!(cluster.asked(&order[1]).len(), 0);
}

#[tokio::test]
async fn an_owner_that_is_frozen_is_stood_in_for_and_one_that_fetches_is_waited_for() {
    let times = |o: &mut Options| {
        (o.hedge, o.quiet) = (Duration::from_secs(60), Duration::from_millis(200));
        (o.silence, o.whole, o.down) = (Duration::from_secs(5), Duration::from_secs(9), Duration::from_secs(9));
    };
    let mut cluster = Cluster::start_with(times).await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Takes(Duration::from_secs(1)));
    assert_eq!(cluster.read(0..9).await.unwrap().node, order[0]);
    assert!(cluster.asked(&order[1]).is_empty(), "an owner that is alive is not stood in for");

    // The kernel takes connections, nobody answers on them.
    let port = cluster.client.inner.options.port;
    let frozen = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 99), port)).await.unwrap();
    cluster.roster.addresses.insert(order[0].clone(), frozen.local_addr().unwrap().ip());
    for longest in [1000, 150] {
        let started = Instant::now();
        assert_eq!(cluster.read(0..9).await.unwrap().node, order[1]);
        assert!(started.elapsed() < Duration::from_millis(longest), "{:?}", started.elapsed());
    }
    assert!(cluster.asked(&order[1]).iter().all(|r| r.stand_in));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_passed_on() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::BreaksOff);
    cluster.way(&order[1], Way::Refuses(Refusal::Unavailable("disk full".into())));
    let got = cluster.read(0..2_000_000).await.unwrap();
    assert!(got.node == order[2] && got.bytes == content(0..2_000_000));
}

#[tokio::test]
async fn bytes_that_do_not_match_their_checksum_are_asked_for_elsewhere() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Rots);
    let got = cluster.read(7..1_000_000).await.unwrap();
    assert!(got.node == order[1] && got.bytes == content(7..1_000_000));
    // It was told, so that it looks at its disk.
    assert_eq!(cluster.asked(&order[0]).iter().map(|r| r.check).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_worker_that_mends_its_bytes_when_it_is_told_gives_them() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::RotsUntilTold);
    let got = cluster.read(7..1_000_000).await.unwrap();
    assert!(got.node == order[0] && got.bytes == content(7..1_000_000));
}

#[tokio::test]
async fn a_range_outside_of_the_object_is_an_error_at_once() {
    let cluster = Cluster::start().await;
    let e = cluster.read(SIZE - 1..SIZE + 1).await.unwrap_err();
    assert!(matches!(&e, ReadError::Range { detail, .. } if detail.contains(&SIZE.to_string())), "{e}");
    let e = cluster.read(0..MAX_RANGE + 1).await.unwrap_err();
    assert!(matches!(e, ReadError::TooLong { .. }), "{e}");
}

#[tokio::test]
async fn a_changed_object_is_read_only_from_disks_that_have_the_old_one() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Refuses(Refusal::Changed("etag".into())));
    cluster.way(&order[1], Way::Refuses(Refusal::NotFound("not the owner".into())));
    assert_eq!(cluster.read(0..9).await.unwrap().node, order[2]);
    assert!(cluster.asked(&order[2]).iter().all(|r| r.on_disk));
    cluster.way(&order[2], Way::Refuses(Refusal::NotFound("not the owner".into())));
    let e = cluster.read(0..9).await.unwrap_err();
    assert!(matches!(&e, ReadError::Changed { detail, .. } if detail.contains("etag")), "{e}");
}

#[tokio::test]
async fn a_broken_origin_is_asked_through_two_workers_a_round_and_the_time_is_bounded() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    for node in &order {
        cluster.way(node, Way::Refuses(Refusal::Origin("origin is\ndown".into())));
    }
    let started = Instant::now();
    let e = cluster.read(0..9).await.unwrap_err();
    assert!(matches!(&e, ReadError::Exhausted { last, .. } if last.contains("502 origin is down")), "{e}");
    assert!(started.elapsed() < Duration::from_millis(3500));
    assert!(cluster.asked(&order[0]).len() > 2);
    assert_eq!(cluster.asked(&order[2]).len(), 0);
}

#[tokio::test]
async fn what_the_origin_denies_is_asked_of_two_workers_and_once_more() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    let denied = || Way::Refuses(Refusal::OriginDenied("read s3://b/p: 403".into()));
    for node in &order {
        cluster.way(node, denied());
    }
    let started = Instant::now();
    let e = cluster.read(0..9).await.unwrap_err();
    assert!(matches!(&e, ReadError::OriginDenied { detail, .. } if detail.contains("s3://b/p")), "{e}");
    assert!(started.elapsed() < DENIED_PAUSE * 2, "{:?}", started.elapsed());
    assert_eq!([0, 1, 2].map(|n| cluster.asked(&order[n]).len()), [2, 2, 0]);
    // One that is let in is enough.
    cluster.way(&order[1], Way::File);
    assert_eq!(cluster.read(0..9).await.unwrap().node, order[1]);
    assert_eq!(cluster.asked(&order[0]).len(), 1);
    // Or that is let in soon.
    cluster.way(&order[1], denied());
    let soon = async {
        let deadline = Instant::now() + Duration::from_secs(2);
        while cluster.workers[&order[0]].0.asked.lock().is_empty() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.way(&order[0], Way::File);
    };
    let (got, ()) = tokio::join!(cluster.read(0..9), soon);
    assert!(order[..2].contains(&got.unwrap().node));
}

#[tokio::test]
async fn who_says_later_is_asked_again_and_nobody_else_is() {
    let cluster = Cluster::start().await;
    let order = cluster.order();
    cluster.way(&order[0], Way::Refuses(Refusal::Later("still asking".into())));
    let asked_twice = async {
        let deadline = Instant::now() + Duration::from_secs(2);
        while cluster.workers[&order[0]].0.asked.lock().len() < 2 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.way(&order[0], Way::File);
    };
    let (got, ()) = tokio::join!(cluster.read(0..9), asked_twice);
    assert_eq!(got.unwrap().node, order[0]);
    assert!(cluster.asked(&order[1]).is_empty() && cluster.asked(&order[2]).is_empty());
    cluster.way(&order[0], Way::Refuses(Refusal::Later("still asking".into())));
    let started = Instant::now();
    let e = cluster.read(0..9).await.unwrap_err();
    assert!(matches!(&e, ReadError::Exhausted { last, .. } if last.contains("504 still asking")), "{e}");
    assert!(started.elapsed() < Duration::from_millis(3500));
    // One that is stood in for does not count.
    cluster.workers[&order[0]].1.cancel();
    cluster.way(&order[1], Way::Refuses(Refusal::Later("still asking".into())));
    assert!(cluster.read(0..9).await.is_err());
    assert!(cluster.asked(&order[1]).len() > 2 && cluster.asked(&order[2]).is_empty());
}

#[tokio::test]
async fn a_read_finds_a_worker_that_came_back_elsewhere() {
    let cluster = Cluster::start().await;
    let good = Arc::new(cluster.roster.clone());
    let empty = Arc::new(Roster { members: good.members.clone(), addresses: BTreeMap::new() });
    let asked = std::sync::atomic::AtomicU32::new(0);
    let rosters = || {
        let late = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 1;
        Arc::clone(if late { &good } else { &empty })
    };
    let object = ObjectRef { dataset_uid: UID, snapshot: "5nap", inode: 7, key: key() };
    assert_eq!(cluster.client.read(&rosters, &object, 0..9).await.unwrap().bytes, content(0..9));
}

#[tokio::test]
async fn a_copy_comes_whole_from_the_node_that_is_asked_or_not_at_all() {
    let cluster = Cluster::start().await;
    let all = &cluster;
    let copy = |node: &'static str, range: Range<u64>| async move {
        all.client.copy(&all.roster, node, UID, &key(), &range, None).await
    };
    let got = copy("gpu-2", 5..SIZE).await.unwrap();
    assert!(got.bytes == content(5..SIZE) && got.crc32c == 0x00c0_ffee);
    for way in [Way::BreaksOff, Way::Refuses(Refusal::Unavailable("no".into())), Way::Hangs] {
        cluster.way("gpu-2", way);
        assert!(copy("gpu-2", 5..SIZE).await.is_none());
    }
    // A node that was silent is not waited for again at once.
    let started = Instant::now();
    assert!(copy("gpu-2", 5..SIZE).await.is_none() && started.elapsed() < Duration::from_millis(200));
    assert!(copy("nobody", 5..SIZE).await.is_none());
    assert!(cluster.workers.values().all(|(w, ..)| w.asked.lock().is_empty()), "nobody was made to fetch");
}

#[tokio::test]
async fn a_copy_is_not_waited_for_longer_than_it_is_worth() {
    let times = |o: &mut Options| {
        (o.quiet, o.copy) = (Duration::from_millis(100), Duration::from_millis(500));
        (o.silence, o.down) = (Duration::from_secs(20), Duration::from_secs(20));
    };
    let mut cluster = Cluster::start_with(times).await;
    cluster.way("gpu-2", Way::Hangs);
    // The kernel takes connections, nobody answers on them.
    let port = cluster.client.inner.options.port;
    let frozen = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 98), port)).await.unwrap();
    cluster.roster.addresses.insert("gpu-0".to_owned(), frozen.local_addr().unwrap().ip());
    let address = |node: &str| SocketAddr::new(cluster.roster.addresses[node], port);
    for (node, longest, dead) in [("gpu-2", 5000, false), ("gpu-0", 400, true)] {
        let started = Instant::now();
        assert!(cluster.client.copy(&cluster.roster, node, UID, &key(), &(0..9), None).await.is_none());
        assert!(started.elapsed() < Duration::from_millis(longest), "{node}: {:?}", started.elapsed());
        assert_eq!(cluster.client.inner.down.is(address(node)), dead, "{node}");
    }
}

#[tokio::test]
async fn a_catalog_is_taken_from_whoever_has_the_right_one() {
    let cluster = Cluster::start().await;
    let catalog = |path: &str| {
        let mut b = Builder::new("s3://b/");
        b.push(Listed { path: path.into(), size: 1, mtime_ns: 0, version: "v".into() });
        b.finish().0
    };
    let (right, wrong) = (catalog("right"), catalog("wrong"));
    let dir = tempfile::tempdir().unwrap();
    let name = digest(&right);
    let into = dir.path().join(&name);
    let files = || std::fs::read_dir(dir.path()).unwrap().count();

    *cluster.workers["gpu-1"].0.catalog.lock() = wrong;
    // Members are not needed: a snapshot spreads before there are any.
    let roster = Roster { members: Members::default(), ..cluster.roster.clone() };
    let e = cluster.client.catalog(&roster, UID, &name, &into).await.unwrap_err().to_string();
    assert!(e.contains("gpu-1: sent what cannot be used: catalog is ") && e.contains("gpu-0: 404"), "{e}");
    assert_eq!(files(), 0);

    *cluster.workers["gpu-0"].0.catalog.lock() = right.clone();
    cluster.client.catalog(&roster, UID, &name, &into).await.unwrap();
    assert_eq!(std::fs::read(&into).unwrap(), right);
    assert_eq!(files(), 1);
    let missing = dir.path().join("no").join(&name);
    assert!(matches!(cluster.client.catalog(&roster, UID, &name, &missing).await, Err(CatalogFetchError::Disk { .. })));
}

#[tokio::test]
async fn what_is_asked_in_another_version_is_refused_and_words_that_are_not_known_are_passed_over() {
    let cluster = Cluster::start().await;
    let (node, ip) = cluster.roster.addresses.iter().next().unwrap();
    let address = SocketAddr::new(*ip, cluster.client.inner.options.port);
    let ask = async |path: &str| {
        let asked = cluster.client.inner.transport.get(address, UID, path, Some(&(0..4)), StatusCode::PARTIAL_CONTENT).await;
        asked.map(drop)
    };
    let path = format!("{UID}/objects/{}?snapshot={}&inode=1", key(), "d".repeat(64));
    ask(&format!("/v1/{path}&zone=a&disk=0")).await.unwrap();
    assert_eq!(cluster.asked(node).len(), 1);
    let Err(http::Failure::Status(StatusCode::NOT_FOUND, told)) = ask(&format!("/v2/{path}")).await else { panic!() };
    assert!(told.contains("answers what begins with /v1/"), "{told}");
    assert!(cluster.asked(node).is_empty());
}
