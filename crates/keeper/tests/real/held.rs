use crate::lab::{Lab, WAIT, until};
use larder_fuse::{fdpass::Listener, protocol::keeper::VALUE_MAX};
use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    time::{Duration, Instant},
};

#[tokio::test]
async fn a_descriptor_comes_back_as_the_same_open_file() {
    let mut lab = Lab::new();
    let mut file = tempfile::tempfile().unwrap();
    let mounter = lab.held();
    assert!(mounter.put_now("mount/i/1", "request", Some(file.try_clone().unwrap().into()), WAIT).await);
    drop(mounter);

    let next = lab.held();
    assert!(next.fetch(WAIT).await);
    let item = next.get("mount/i/1").unwrap();
    assert_eq!(item.value, "request");
    let mut same = File::from(item.fd.unwrap().try_clone().unwrap());
    file.seek(SeekFrom::Start(4711)).unwrap();
    assert_eq!(same.stream_position().unwrap(), 4711, "another open file");

    // And after it went round by another process and another keeper.
    lab.kill().await;
    lab.start();
    lab.until_keys(&["mount/i/1"]).await;
    drop(next);
    let third = lab.held();
    assert!(third.fetch(WAIT).await);
    let mut same = File::from(third.get("mount/i/1").unwrap().fd.unwrap().try_clone().unwrap());
    assert_eq!(same.stream_position().unwrap(), 4711, "another open file");
}

#[tokio::test]
async fn an_item_needs_no_descriptor_and_a_later_one_takes_its_place_everywhere() {
    let mut lab = Lab::new();
    let (mounter, plugin) = (lab.held(), lab.held());
    assert!(mounter.put_now("permit/u", "old", None, WAIT).await);
    assert!(plugin.fetch(WAIT).await);
    assert_eq!(plugin.get("permit/u").unwrap().value, "old");
    let file = tempfile::tempfile().unwrap();
    assert!(mounter.put_now("permit/u", "new", Some(file.into()), WAIT).await);
    until("the other process has it", || plugin.get("permit/u").is_some_and(|item| item.value == "new" && item.fd.is_some()))
        .await;

    // The other one knows the old value when the keeper goes, and may be the first to be back.
    lab.kill().await;
    mounter.put("permit/u", "newest", None);
    lab.start();
    until("the other process has it", || {
        plugin.get("permit/u").is_some_and(|item| item.value == "newest" && item.fd.is_none())
    })
    .await;
    assert_eq!(lab.value("permit/u").await.unwrap(), "newest");
}

#[tokio::test]
async fn the_end_of_the_keeper_is_noticed_at_once() {
    let mut lab = Lab::new();
    let held = lab.held();
    assert!(held.put_now("k", "v", None, WAIT).await);
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        lab.kill().await;
        lab.start();
        let start = Instant::now();
        lab.until_keys(&["k"]).await;
        quickest = quickest.min(start.elapsed());
    }
    println!("filled again after {quickest:?}");
    // It would take up to a second if the end were noticed only when the next message is due.
    assert!(quickest < Duration::from_millis(300), "{quickest:?}");
}

#[tokio::test]
async fn a_keeper_that_was_away_for_long_gets_all() {
    let mut lab = Lab::empty();
    let held = lab.held();
    assert!(!held.put_now("a", "v", None, Duration::from_millis(100)).await, "nobody has confirmed it");
    assert!(!held.fetch(Duration::from_millis(100)).await, "nobody has answered");
    held.put("b", "v", Some(tempfile::tempfile().unwrap().into()));
    held.put("c", "v", None);
    held.remove("c");
    assert_eq!(held.keys(), ["a", "b"], "held here even so");
    lab.start();
    lab.until_keys(&["a", "b"]).await;
    assert!(held.put_now("d", "v", None, WAIT).await);
}

#[tokio::test]
async fn what_one_process_removes_is_gone_from_the_other_too() {
    let mut lab = Lab::new();
    let (mounter, plugin) = (lab.held(), lab.held());
    for key in ["mount/i/1", "opens/i/1", "opens/i/2", "permit/u"] {
        assert!(mounter.put_now(key, "v", None, WAIT).await);
    }
    assert!(plugin.fetch(WAIT).await);
    mounter.remove("mount/i/1");
    plugin.remove_prefix("opens/");
    for held in [&mounter, &plugin] {
        until("removed in both", || held.keys() == ["permit/u"]).await;
    }
    lab.kill().await;
    lab.start();
    lab.until_keys(&["permit/u"]).await;
}

#[tokio::test]
async fn what_is_removed_while_the_keeper_is_away_does_not_come_back() {
    let mut lab = Lab::new();
    let (mounter, plugin) = (lab.held(), lab.held());
    for key in ["gone", "stays"] {
        assert!(mounter.put_now(key, "v", None, WAIT).await);
    }
    assert!(plugin.fetch(WAIT).await);
    lab.kill().await;
    mounter.remove("gone");
    lab.start();
    // It drops what it deposits again only when the keeper was told to.
    until("removed in the other process", || plugin.keys() == ["stays"]).await;
    lab.until_keys(&["stays"]).await;
    assert_eq!(mounter.keys(), ["stays"]);
    // A key may come again.
    assert!(plugin.put_now("gone", "again", None, WAIT).await);
    assert!(mounter.fetch(WAIT).await);
    assert_eq!(mounter.get("gone").unwrap().value, "again");
}

#[tokio::test]
async fn a_process_that_starts_with_nothing_removes_nothing() {
    let lab = Lab::new();
    let first = lab.held();
    assert!(first.put_now("k", "v", None, WAIT).await);
    drop(first);
    for _ in 0..2 {
        let next = lab.held();
        assert!(next.put_now("other", "v", None, WAIT).await);
        assert!(next.fetch(WAIT).await);
        assert_eq!(next.keys(), ["k", "other"]);
    }
    assert_eq!(lab.keys().await, ["k", "other"]);
}

#[tokio::test]
async fn what_the_keeper_refuses_is_held_here_and_keeps_nothing_else_from_it() {
    let lab = Lab::new();
    let held = lab.held();
    let start = Instant::now();
    for (key, value) in [("long", "v".repeat(VALUE_MAX + 1)), ("quoted", "\"".repeat(VALUE_MAX)), ("b\u{e4}d", "v".into())] {
        assert!(!held.put_now(key, value, None, WAIT).await, "{key}");
    }
    assert!(start.elapsed() < WAIT, "a refusal is an answer");
    assert!(held.put_now("k", "v".repeat(VALUE_MAX), None, WAIT).await);
    assert!(held.fetch(WAIT).await);
    assert_eq!(lab.keys().await, ["k"]);
    assert_eq!(held.keys().len(), 4);
}

#[tokio::test]
async fn all_of_many_items_come_back() {
    let lab = Lab::new();
    let held = lab.held();
    for n in 0..1500 {
        held.put(&format!("mount/{n:05}"), n.to_string(), None);
    }
    assert!(held.put_now("the last one", "", None, WAIT).await);
    let next = lab.held();
    assert!(next.fetch(WAIT).await);
    assert_eq!(next.keys(), held.keys());
    assert_eq!(next.get("mount/01234").unwrap().value, "1234");
}

/// Listens, but does not answer.
#[tokio::test]
async fn a_keeper_that_hangs_costs_the_patience_and_no_more() {
    let lab = Lab::empty();
    let me = nix::unistd::geteuid().as_raw();
    let _listener = Listener::bind(&lab.socket, &[me], 0o600).unwrap();
    let held = lab.held();
    let start = Instant::now();
    assert!(!held.put_now("k", "v", None, Duration::from_millis(200)).await);
    assert!(!held.fetch(Duration::from_millis(200)).await);
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(held.keys(), ["k"]);
}
