use crate::block_on;
use larder_fuse::{
    fdpass::Conn,
    protocol::keeper::{Reply, Request, VALUE_MAX, is_key},
};
use larder_keeper::{Keeper, metrics::Metrics};
use std::{collections::BTreeMap, sync::LazyLock};

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// A talk with a keeper, one request in a line; its answers are those of a map.
pub fn keeper(data: &[u8]) {
    let requests: Vec<Request> = data.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    if !requests.is_empty() {
        block_on(talk(requests));
    }
}

async fn talk(requests: Vec<Request>) {
    let socket = FOLDER.path().join("keeper.sock");
    let keeper = Keeper::bind(&socket, &[nix::unistd::geteuid().as_raw()], Metrics::default()).unwrap();
    let serving = tokio::spawn(keeper.serve());
    let conn = Conn::connect(&socket).await.unwrap();
    let mut held = BTreeMap::<String, (u64, String)>::new();
    for request in requests {
        if conn.send(&request, None).await.is_err() {
            continue; // too long
        }
        let (reply, fd) = conn.recv::<Reply>().await.unwrap().expect("the keeper hung up");
        assert!(fd.is_none());
        let refused = matches!(reply, Reply::Error { .. });
        match request {
            Request::Put { key, stamp, value } => {
                assert_eq!(refused, !is_key(&key) || value.0.len() > VALUE_MAX, "{reply:?}");
                if !refused && held.get(&key).is_none_or(|(held, _)| *held < stamp) {
                    held.insert(key, (stamp, value.0));
                }
            }
            Request::Get { key } => match reply {
                Reply::Item { stamp, value } => assert_eq!(held.get(&key), Some(&(stamp, value.0))),
                reply => assert!(reply == Reply::Absent {} && !held.contains_key(&key), "{reply:?}"),
            },
            Request::Keys { after } => {
                let Reply::Keys { keys, .. } = reply else { panic!("{reply:?}") };
                let expected = held.iter().filter(|(key, _)| **key > after).map(|(key, (stamp, _))| (key.clone(), *stamp));
                assert!(expected.take(keys.len()).eq(keys.iter().cloned()), "{keys:?}");
                assert!(!keys.is_empty() || held.keys().all(|key| *key <= after));
            }
            Request::Remove { key, stamp } => {
                assert_eq!(reply, Reply::Removed {});
                held.retain(|held, (of, _)| *held != key || *of > stamp);
            }
        }
    }
    drop(conn);
    serving.abort();
    let _ = serving.await;
}
