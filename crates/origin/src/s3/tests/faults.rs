//! An origin in trouble.

use super::*;
use crate::testing::Fault;
use std::time::Instant;

const LEN: u64 = 1 << 20;

/// An object whose every byte says where it is.
fn content() -> Vec<u8> {
    (0..LEN).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

struct Rig {
    server: FakeS3,
    origin: S3,
    received: Arc<Received>,
    pace: Pace,
    version: String,
}

impl Rig {
    async fn start() -> Self {
        let server = FakeS3::start().await;
        server.put("f", content());
        let (access, received) = (access(), Arc::new(Received::default()));
        let origin = S3::new(&source(&server, ""), &access, Arc::clone(&received)).unwrap();
        let version = list(&origin).await.unwrap().0["f"].version.clone();
        Self { server, origin, received, pace: access.pace, version }
    }

    async fn read(&self) -> Result<Bytes, Error> {
        self.origin.read_range("f", &self.version, 0..LEN).await
    }

    /// With these faults in a row.
    async fn read_after(&self, faults: &[Fault]) -> Result<Bytes, Error> {
        self.server.faults(|f| f.gets = faults.iter().cloned().collect());
        self.read().await
    }
}

/// Waits until it is so.
async fn until(it_is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !it_is() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn whatever_goes_wrong_once_the_bytes_are_right_in_the_end() {
    let rig = Rig::start().await;
    for fault in [
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "ServiceUnavailable"),
        Fault::Status(400, "RequestTimeout"),
        Fault::StatusAndRetryAfter(429, "SlowDown", 0),
        Fault::Cut,
        Fault::Short,
        Fault::Long,
        Fault::Elsewhere,
        Fault::Whole,
        Fault::Stall,
        Fault::Trickle(Duration::from_millis(100)),
    ] {
        let gets = rig.server.seen().gets;
        let bytes = rig.read_after(std::slice::from_ref(&fault)).await.unwrap();
        assert!(bytes == content(), "{fault:?}");
        assert_eq!(rig.server.seen().gets - gets, 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_again_and_again_goes_on_where_it_broke_and_every_byte_is_counted_once() {
    let rig = Rig::start().await;
    assert!(rig.received.objects() == 0 && rig.received.listings() > 0);
    let bytes = rig.read_after(&[Fault::Cut, Fault::Status(500, "InternalError"), Fault::Short, Fault::Cut]).await.unwrap();
    assert!(bytes == content());
    assert_eq!(rig.server.seen().gets, 5);
    assert_eq!((rig.received.objects(), rig.server.seen().bytes), (LEN, LEN));
}

#[tokio::test]
async fn bytes_that_were_received_in_vain_are_counted_too() {
    let rig = Rig::start().await;
    rig.read_after(&[Fault::Long]).await.unwrap();
    assert_eq!(rig.received.objects(), 2 * LEN + 1);
}

#[tokio::test]
async fn an_object_that_changes_while_it_is_read_is_never_put_together_from_two_versions() {
    let rig = Rig::start().await;
    for ignore_if_match in [false, true] {
        rig.server.put("f", content());
        let version = list(&rig.origin).await.unwrap().0["f"].version.clone();
        rig.server.faults(|f| (f.ignore_if_match, f.gets) = (ignore_if_match, [Fault::Cut].into()));
        let gets = rig.server.seen().gets;
        let change = async {
            until(|| rig.server.seen().gets > gets).await;
            rig.server.put("f", vec![0; LEN as usize]);
        };
        let (read, ()) = futures::future::join(rig.origin.read_range("f", &version, 0..LEN), change).await;
        assert_eq!(read.unwrap_err().reason(), Reason::Changed);
    }
}

#[tokio::test]
async fn what_goes_on_failing_ends_in_time_with_its_reason() {
    let rig = Rig::start().await;
    for (fault, reason, said) in [
        (Fault::Status(500, "InternalError"), Reason::OriginUnreachable, "500 InternalError"),
        (Fault::StatusAndRetryAfter(503, "SlowDown", 1), Reason::Throttled, "503 SlowDown"),
        (Fault::Status(403, "AccessDenied"), Reason::AccessDenied, "s3:GetObject"),
        (Fault::Status(404, "NoSuchKey"), Reason::ObjectNotFound, "gone"),
        (Fault::Long, Reason::OriginFailed, "more bytes"),
        (Fault::Trickle(Duration::from_millis(400)), Reason::OriginFailed, "next to nothing"),
        // The last one: the origin is left alone after it.
        (Fault::StatusAndRetryAfter(503, "SlowDown", 3600), Reason::Throttled, "503 SlowDown"),
    ] {
        rig.server.faults(|f| f.keys = [("f".to_owned(), fault.clone())].into());
        let began = Instant::now();
        let e = rig.read().await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(6), "{fault:?}: {:?}", began.elapsed());
        assert_eq!(e.reason(), reason, "{fault:?}: {e}");
        assert!(e.to_string().contains("s3://data/f") && e.to_string().contains(said), "{fault:?}: {e}");
    }
}

#[tokio::test]
async fn an_answer_that_never_goes_on_ends_in_time() {
    let rig = Rig::start().await;
    // Less than what counts as going on.
    rig.server.put("f", vec![0; 1000]);
    let version = list(&rig.origin).await.unwrap().0["f"].version.clone();
    rig.server.faults(|f| f.keys = [("f".to_owned(), Fault::Stall)].into());
    let began = Instant::now();
    let e = rig.origin.read_range("f", &version, 0..1000).await.unwrap_err();
    assert_eq!(e.reason(), Reason::OriginUnreachable, "{e}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_as_long_as_it_goes_on() {
    let rig = Rig::start().await;
    // Longer than a request may fail, but half of what is left comes each time.
    let bytes = rig.read_after(&[const { Fault::Stall }; 4]).await.unwrap();
    assert!(bytes == content());
}

#[tokio::test]
async fn the_time_to_come_again_is_heeded_by_all_requests_and_fewer_go_at_once() {
    let rig = Rig::start().await;
    let began = Instant::now();
    rig.read_after(&[Fault::StatusAndRetryAfter(503, "SlowDown", 1)]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(rig.pace.limit(), 16);
    let waiting = async {
        until(|| rig.pace.limit() < 16).await;
        let gets = rig.server.seen().gets;
        rig.read().await.unwrap();
        (gets, Instant::now())
    };
    let began = Instant::now();
    let (first, (gets, ended)) =
        futures::future::join(rig.read_after(&[Fault::StatusAndRetryAfter(503, "SlowDown", 1)]), waiting).await;
    first.unwrap();
    assert_eq!(gets, 3, "the first was refused by then");
    assert!(ended - began >= Duration::from_secs(1));
    assert_eq!(rig.server.seen().gets, 5);
}
