mod faults;
mod tls;

use super::*;
use crate::{
    Credentials,
    conformance::list,
    testing::{ACCESS_KEY, BUCKET, ETags, FakeS3},
};
use std::time::Duration;

fn source(server: &FakeS3, prefix: &str) -> Source {
    Source { uri: format!("s3://{BUCKET}/{prefix}"), endpoint: server.endpoint(), ..Source::default() }
}

fn connect(source: &Source) -> (S3, Arc<Received>) {
    let received = Arc::new(Received::default());
    (S3::new(source, &access(), Arc::clone(&received)).unwrap(), received)
}

/// In a hurry.
fn access() -> Access {
    Access {
        credentials: Some(Credentials::new(ACCESS_KEY, "secret", None)),
        patience: Patience {
            silence: Duration::from_millis(500),
            failing: Duration::from_secs(3),
            nobody_there: Duration::from_millis(300),
            ..Patience::default()
        },
        ..Access::default()
    }
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_skipped_and_all_others_listed() {
    let server = FakeS3::with_pages_of(3).await;
    for key in ["p/a", "p/a//b", "p//lead", "p/../up", "p/./x", "p/b", "p/c\td", "p/full/", "p/marker/", "p/", "p/z"] {
        server.put(key, if key.ends_with("full/") { "content" } else { "" });
    }
    for i in 0..20 {
        server.put(&format!("p/m//{i}"), "x");
    }
    let (origin, _) = connect(&source(&server, "p/"));
    let (files, mut skipped) = list(&origin).await.unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "b", "marker/", "z"]);
    skipped.retain(|k| !k.starts_with("m//"));
    skipped.sort();
    assert_eq!(skipped, ["../up", "./x", "/lead", "a//b", "c\td", "full/"]);
    // A page to see whether the listing can be cut, and where.
    assert!(server.seen().lists <= 31_u64.div_ceil(3) + 20, "{:?}", server.seen());
}

/// So many keys in folders of ten, and what should come of them beneath `p/`.
fn put_many(server: &FakeS3, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|i| format!("{:03}/{i:05}", i / 10)).collect();
    names.iter().for_each(|name| server.put(&format!("p/{name}"), "x"));
    server.put("o", "x");
    server.put("q", "x");
    names
}

#[tokio::test]
async fn a_long_listing_comes_from_many_places_at_once_and_each_key_once() {
    let server = FakeS3::with_pages_of(10).await;
    let names = put_many(&server, 2000);
    server.faults(|f| f.list_delay = Duration::from_millis(5));
    let (files, skipped) = list(&connect(&source(&server, "p/")).0).await.unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), names);
    assert!(skipped.is_empty());
    let seen = server.seen();
    assert!(seen.parallel_lists > 8, "{seen:?}");
    // Short pages at the ends of many ranges count here; of a long listing they are few.
    assert!(seen.lists < 2 * 200, "{seen:?}");
}

#[tokio::test]
async fn a_server_that_cannot_begin_behind_a_key_is_listed_page_by_page() {
    let server = FakeS3::with_pages_of(10).await;
    let names = put_many(&server, 500);
    server.faults(|f| f.ignore_start_after = true);
    let (files, _) = list(&connect(&source(&server, "p/")).0).await.unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), names);
    assert_eq!((server.seen().parallel_lists, server.seen().lists), (1, 51));
}

#[tokio::test]
async fn listings_that_would_never_end_are_errors() {
    let server = FakeS3::with_pages_of(10).await;
    put_many(&server, 500);
    server.faults(|f| f.repeat_token = true);
    let e = list(&connect(&source(&server, "p/")).0).await.unwrap_err();
    assert_eq!(e.reason(), Reason::OriginFailed);
    assert!(e.to_string().contains("same continuation token"), "{e}");

    let server = FakeS3::with_pages_of(10).await;
    put_many(&server, 500);
    server.faults(|f| f.repeat_page = true);
    let e = list(&connect(&source(&server, "p/")).0).await.unwrap_err();
    assert!(e.to_string().contains("same keys"), "{e}");

    // A page that is larger than any that S3 sends.
    let server = FakeS3::with_pages_of(1_000_000).await;
    let folder = "x".repeat(200);
    (0..60_000).for_each(|i| server.put(&format!("p/{folder}/{i:06}"), ""));
    let e = list(&connect(&source(&server, "p/")).0).await.unwrap_err();
    assert_eq!(e.reason(), Reason::OriginFailed);
    assert!(e.to_string().contains("longer than"), "{e}");
}

#[tokio::test]
async fn an_error_with_a_status_of_success_and_a_page_that_breaks_off_are_tried_again() {
    let server = FakeS3::start().await;
    server.put("p/a", "x");
    let error = |code| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    for page in [error("SlowDown"), error("InternalError"), "<?xml version=\"1.0\"?><ListBucketResult><Conte".to_owned()] {
        server.faults(|f| f.pages = [page.clone()].into());
        let lists = server.seen().lists;
        let (files, _) = list(&connect(&source(&server, "p/")).0).await.unwrap();
        assert_eq!((files.len(), server.seen().lists - lists), (1, 2), "{page}");
    }
    for (page, reason, text) in [
        (error("AccessDenied"), Reason::AccessDenied, "200 AccessDenied"),
        (error("NoSuchBucket"), Reason::BucketNotFound, "200 NoSuchBucket"),
        ("<html><body/></html>".to_owned(), Reason::OriginFailed, "not S3's (it is <html>)"),
        (
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>".to_owned(),
            Reason::OriginFailed,
            "does not know ListObjectsV2",
        ),
    ] {
        server.faults(|f| f.pages = [page.clone()].into());
        let e = list(&connect(&source(&server, "p/")).0).await.unwrap_err();
        assert_eq!(e.reason(), reason, "{e}");
        assert!(e.to_string().contains(text), "{e}");
    }
}

#[tokio::test]
async fn a_prefix_does_not_match_its_longer_sister() {
    let server = FakeS3::start().await;
    for key in ["demo/a", "demo2/b", "demo", "other"] {
        server.put(key, "x");
    }
    let (files, _) = list(&connect(&source(&server, "demo/")).0).await.unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a"]);
    let (files, _) = list(&connect(&source(&server, "")).0).await.unwrap();
    assert_eq!(files.len(), 4);
}

#[tokio::test]
async fn a_changed_object_is_never_read_also_where_if_match_is_not_heeded() {
    let server = FakeS3::start().await;
    server.put("f", "0123456789");
    let (origin, _) = connect(&source(&server, ""));
    let version = list(&origin).await.unwrap().0["f"].version.clone();
    // Some servers list ETags without their quotes.
    assert_eq!(origin.read_range("f", version.trim_matches('"'), 9..10).await.unwrap(), "9");
    server.put("f", "abcdefghij");
    server.faults(|f| f.ignore_if_match = true);
    let e = origin.read_range("f", &version, 2..5).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Changed, "{e}");
    assert!(e.to_string().contains("s3://data/f"), "{e}");
}

#[tokio::test]
async fn weak_and_missing_etags_are_no_change() {
    let server = FakeS3::start().await;
    server.put("f", "0123456789");
    let (origin, _) = connect(&source(&server, ""));
    let strong = list(&origin).await.unwrap().0["f"].version.clone();
    server.faults(|f| f.e_tags = ETags::Weakened);
    assert_eq!(origin.read_range("f", &strong, 2..5).await.unwrap(), "234");
    server.faults(|f| f.e_tags = ETags::Missing);
    let e = origin.read_range("f", &strong, 2..5).await.unwrap_err();
    assert_eq!(e.reason(), Reason::OriginFailed, "{e}");
    assert!(e.to_string().contains("sent no ETag"), "{e}");

    server.faults(|f| f.e_tags = ETags::Weak);
    let weak = list(&origin).await.unwrap().0["f"].version.clone();
    assert!(weak.starts_with("W/"), "{weak}");
    assert_eq!(origin.read_range("f", &weak, 2..5).await.unwrap(), "234");
    server.put("f", "abcdefghij");
    assert_eq!(origin.read_range("f", &weak, 2..5).await.unwrap_err().reason(), Reason::Changed);
}

#[tokio::test]
async fn refusals_have_a_reason_and_name_what_was_asked_for() {
    let server = FakeS3::start().await;
    server.put("f", "x");
    let cases = [
        ((403, "AccessDenied"), Reason::AccessDenied, "s3:ListBucket"),
        ((403, "SignatureDoesNotMatch"), Reason::AccessDenied, "Secret"),
        ((404, "NoSuchBucket"), Reason::BucketNotFound, "bucket data"),
        ((301, "PermanentRedirect"), Reason::WrongRegion, "source.region"),
        ((429, "SlowDown"), Reason::Throttled, "asks again"),
        ((400, "Strange"), Reason::OriginFailed, "400 Strange"),
    ];
    for (refuse, reason, text) in cases {
        server.faults(|f| f.refuse = Some(refuse));
        let e = list(&connect(&source(&server, "p/")).0).await.unwrap_err();
        assert_eq!(e.reason(), reason, "{e}");
        for part in [text, "s3://data/p/", server.endpoint().as_str()] {
            assert!(e.to_string().contains(part), "{e}");
        }
        assert!(!e.to_string().contains("never shown"), "{e}");
    }
}

#[tokio::test]
async fn wrong_and_missing_keys_are_told_apart() {
    let server = FakeS3::start().await;
    let wrong = Access { credentials: Some(Credentials::new("other", "secret", None)), ..access() };
    let origin = S3::new(&source(&server, ""), &wrong, Arc::default()).unwrap();
    assert_eq!(list(&origin).await.unwrap_err().reason(), Reason::AccessDenied);
    let missing = S3::new(&source(&server, ""), &Access::default(), Arc::default()).unwrap_err();
    assert_eq!(missing.reason(), Reason::CredentialsMissing);
    let anonymous = Source { anonymous: true, ..source(&server, "") };
    list(&S3::new(&anonymous, &Access::default(), Arc::default()).unwrap()).await.unwrap();
}

#[tokio::test]
async fn connections_that_fail_say_why() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = FakeS3::start().await;
    let closed = {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", l.local_addr().unwrap())
    };
    let not_s3 = {
        let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", l.local_addr().unwrap());
        let app = axum::Router::new().fallback(|| async { "<html>hello" });
        tokio::spawn(async move { axum::serve(l, app).await });
        url
    };
    let cases = [
        (closed, Reason::OriginUnreachable),
        ("http://no-such-host.invalid:9000".to_owned(), Reason::DnsFailed),
        (not_s3, Reason::OriginFailed),
        // Speaks no TLS at all: not a matter of trust.
        (server.endpoint().replace("http:", "https:"), Reason::OriginUnreachable),
    ];
    for (endpoint, reason) in cases {
        let s = Source { endpoint: endpoint.clone(), path_style: true, ..source(&server, "") };
        let e = list(&connect(&s).0).await.unwrap_err();
        assert_eq!(e.reason(), reason, "{e}");
        assert!(e.to_string().contains(&endpoint), "{e}");
    }
}
