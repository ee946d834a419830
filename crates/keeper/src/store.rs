//! The items of this process, and how many there may be.

use crate::metrics::Metrics;
use larder_fuse::protocol::keeper::{Reply, Request, VALUE_MAX, Value, is_key, page};
use std::{
    collections::BTreeMap,
    ops::Bound,
    os::fd::OwnedFd,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Most items: some three for each mount of a node, of which there are some hundreds at most.
pub const ITEMS_MAX: usize = 4096;
/// Most bytes of all values: far above what that many mounts need (about 2 KiB each), and below what the chart gives the keeper.
pub const VALUES_MAX: usize = 16 << 20;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a key has 1 to 512 printable characters of ASCII")]
    Key,
    #[error("a value of {0} bytes is longer than {VALUE_MAX}")]
    Value(usize),
    #[error("{ITEMS_MAX} items are held, and more cannot be")]
    Items,
    #[error("the values held have {VALUES_MAX} bytes with this one, or more, which is too much")]
    Values,
    #[error("only `put` brings a descriptor")]
    Descriptor,
}

struct Item {
    stamp: u64,
    value: Value,
    fd: Option<Arc<OwnedFd>>,
}

/// What a request is answered, and with which descriptor.
type Answer = (Reply, Option<Arc<OwnedFd>>);

pub(crate) struct Store {
    life: u64,
    items: BTreeMap<String, Item>,
    bytes: usize,
    descriptors: usize,
    metrics: Metrics,
}

impl Store {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { life: now(), items: BTreeMap::new(), bytes: 0, descriptors: 0, metrics }
    }

    pub(crate) fn answer(&mut self, request: Request, fd: Option<OwnedFd>) -> Answer {
        let answer = self.try_answer(request, fd).unwrap_or_else(|e| (Reply::Error { message: e.to_string() }, None));
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.items.set(gauge(self.items.len()));
        self.metrics.descriptors.set(gauge(self.descriptors));
        self.metrics.value_bytes.set(gauge(self.bytes));
        answer
    }

    fn try_answer(&mut self, request: Request, fd: Option<OwnedFd>) -> Result<Answer, Refused> {
        if fd.is_some() && !matches!(request, Request::Put { .. }) {
            return Err(Refused::Descriptor);
        }
        Ok(match request {
            Request::Put { key, stamp, value } => {
                self.put(key, Item { stamp, value, fd: fd.map(Arc::new) })?;
                (Reply::Kept {}, None)
            }
            Request::Get { key } => match self.items.get(&key) {
                Some(item) => (Reply::Item { stamp: item.stamp, value: item.value.clone() }, item.fd.clone()),
                None => (Reply::Absent {}, None),
            },
            Request::Keys { after } => {
                let above = self.items.range::<str, _>((Bound::Excluded(after.as_str()), Bound::Unbounded));
                let keys = page(above.map(|(key, item)| (key.as_str(), item.stamp)));
                (Reply::Keys { life: self.life, keys }, None)
            }
            Request::Remove { key, stamp } => {
                if self.items.get(&key).is_some_and(|item| item.stamp <= stamp) {
                    self.remove(&key);
                }
                (Reply::Removed {}, None)
            }
        })
    }

    fn put(&mut self, key: String, item: Item) -> Result<(), Refused> {
        let size = item.value.0.len();
        if !is_key(&key) {
            return Err(Refused::Key);
        }
        if size > VALUE_MAX {
            return Err(Refused::Value(size));
        }
        let held = self.items.get(&key);
        if held.is_some_and(|held| held.stamp >= item.stamp) {
            return Ok(());
        }
        if held.is_none() && self.items.len() >= ITEMS_MAX {
            return Err(Refused::Items);
        }
        if self.bytes - held.map_or(0, |held| held.value.0.len()) + size > VALUES_MAX {
            return Err(Refused::Values);
        }
        self.remove(&key);
        self.bytes += size;
        self.descriptors += usize::from(item.fd.is_some());
        self.items.insert(key, item);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(item) = self.items.remove(key) {
            self.bytes -= item.value.0.len();
            self.descriptors -= usize::from(item.fd.is_some());
        }
    }
}

/// Nanoseconds since 1970: of two processes or two writes on a node, hardly ever the same.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::protocol::keeper::KEY_MAX;

    fn mk_store() -> Store {
        Store::new(Metrics::default())
    }

    fn put(store: &mut Store, key: &str, stamp: u64, value: &str) -> Reply {
        store.answer(Request::Put { key: key.into(), stamp, value: Value(value.into()) }, None).0
    }

    fn get(store: &mut Store, key: &str) -> Option<(u64, String)> {
        match store.answer(Request::Get { key: key.into() }, None).0 {
            Reply::Item { stamp, value } => Some((stamp, value.0)),
            Reply::Absent {} => None,
            reply => panic!("{reply:?}"),
        }
    }

    fn refused(reply: &Reply, words: &str) {
        assert!(matches!(reply, Reply::Error { message } if message.contains(words)), "{reply:?}");
    }

    #[test]
    fn the_later_write_stays_whatever_comes_first() {
        let store = &mut mk_store();
        for (stamp, value) in [(5, "five"), (7, "seven"), (6, "six"), (7, "seven again")] {
            assert_eq!(put(store, "k", stamp, value), Reply::Kept {});
        }
        assert_eq!(get(store, "k"), Some((7, "seven".into())));
        assert_eq!(store.answer(Request::Remove { key: "k".into(), stamp: 6 }, None).0, Reply::Removed {});
        assert!(get(store, "k").is_some(), "the removal was of an earlier item");
        assert_eq!(store.answer(Request::Remove { key: "k".into(), stamp: 7 }, None).0, Reply::Removed {});
        assert_eq!(get(store, "k"), None);
    }

    #[test]
    fn what_is_not_an_item_is_refused() {
        let store = &mut mk_store();
        refused(&put(store, "", 1, "v"), "a key has");
        refused(&put(store, &"k".repeat(KEY_MAX + 1), 1, "v"), "a key has");
        refused(&put(store, "k", 1, &"v".repeat(VALUE_MAX + 1)), "49153 bytes");
        let fd = tempfile::tempfile().unwrap().into();
        refused(&store.answer(Request::Get { key: "k".into() }, Some(fd)).0, "descriptor");
        assert_eq!(store.items.len(), 0);
    }

    #[test]
    fn a_full_store_still_replaces_and_has_room_after_a_removal() {
        let store = &mut mk_store();
        for n in 0..ITEMS_MAX {
            assert_eq!(put(store, &format!("{n:05}"), 1, "v"), Reply::Kept {});
        }
        refused(&put(store, "one more", 1, "v"), "4096 items");
        assert_eq!(put(store, "00000", 2, "w"), Reply::Kept {});
        store.answer(Request::Remove { key: "00001".into(), stamp: 1 }, None);
        assert_eq!(put(store, "one more", 1, "v"), Reply::Kept {});
        assert_eq!(store.bytes, ITEMS_MAX);
    }

    #[test]
    fn values_have_a_limit_together() {
        let store = &mut mk_store();
        let value = "v".repeat(VALUE_MAX);
        let fit = VALUES_MAX / VALUE_MAX;
        for n in 0..fit {
            assert_eq!(put(store, &n.to_string(), 1, &value), Reply::Kept {});
        }
        refused(&put(store, "one more", 1, &value), "too much");
        assert_eq!(put(store, "0", 2, &value), Reply::Kept {}, "in place of another");
        assert_eq!(store.bytes, fit * VALUE_MAX);
    }

    #[test]
    fn all_keys_are_in_the_pages() {
        let store = &mut mk_store();
        let keys: Vec<String> = (0..3000).map(|n| format!("mount/{n:05}")).collect();
        for key in &keys {
            put(store, key, 1, "");
        }
        let (mut listed, mut pages) = (Vec::<String>::new(), 0);
        loop {
            let after = listed.last().cloned().unwrap_or_default();
            let Reply::Keys { keys, .. } = store.answer(Request::Keys { after }, None).0 else { panic!() };
            if keys.is_empty() {
                break;
            }
            listed.extend(keys.into_iter().map(|(key, _)| key));
            pages += 1;
        }
        assert!(listed == keys && pages > 1, "{pages} pages, {} keys", listed.len());
    }

    #[test]
    fn descriptors_and_bytes_are_counted_and_closed() {
        let metrics = Metrics::default();
        let mut store = Store::new(metrics.clone());
        let fd = || Some(OwnedFd::from(tempfile::tempfile().unwrap()));
        for (key, stamp) in [("a", 1), ("b", 1), ("b", 2)] {
            store.answer(Request::Put { key: key.into(), stamp, value: Value("ab".into()) }, fd());
        }
        assert_eq!((metrics.items.get(), metrics.descriptors.get(), metrics.value_bytes.get()), (2, 2, 4));
        put(&mut store, "b", 3, "");
        assert_eq!((metrics.items.get(), metrics.descriptors.get(), metrics.value_bytes.get()), (2, 1, 2));
    }
}
