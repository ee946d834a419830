//! What stays when the preload makes room.

use super::Part;
use larder_cache::Stay;
use larder_core::key::ObjectKey;
use std::{collections::HashMap, ops::Range};

/// The share: what of it the preload is to fetch, and what is only read on demand.
#[derive(Default)]
pub(super) struct Stays {
    /// Files that are placed whole; true: to be fetched.
    whole: HashMap<ObjectKey, bool>,
    striped: HashMap<ObjectKey, (bool, Vec<Range<u64>>)>,
    some_are_not_named: bool,
}

impl Stays {
    pub fn add(&mut self, part: Part, named: bool) {
        self.some_are_not_named |= !named;
        if part.is_stripe {
            self.striped.entry(part.at.key).or_insert((named, Vec::new())).1.push(part.range);
        } else {
            self.whole.insert(part.at.key, named);
        }
    }

    /// Is there anything that is only read on demand?
    pub fn some_are_not_named(&self) -> bool {
        self.some_are_not_named
    }

    /// Is it to be fetched?
    pub fn is_named(&self, key: &ObjectKey) -> bool {
        let whole = self.whole.get(key);
        whole.or_else(|| self.striped.get(key).map(|(named, _)| named)).copied().unwrap_or(false)
    }

    /// While there is room enough for all of the share that is here. A complete file of which a stripe is in the share stays: someone
    /// may read it past the cache. An unfinished one that is not to be fetched has space that nobody fills.
    pub fn of_the_share(&self, key: &ObjectKey) -> Stay {
        match (self.whole.get(key), self.striped.get(key)) {
            (_, Some((_, parts))) => Stay::Parts(parts.clone()),
            (Some(true), None) => Stay::All,
            (Some(false), None) => Stay::Complete,
            (None, None) => Stay::Nothing,
        }
    }

    /// While there is not, once all complete files are removed that can be.
    pub fn named(&self, key: &ObjectKey) -> Stay {
        if self.is_named(key) { self.of_the_share(key) } else { Stay::Complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Located;
    use std::sync::Arc;

    #[test]
    fn of_the_share_what_is_not_named_goes_after_what_is_not_in_it() {
        let key = |path: &str| ObjectKey::new("s3://b/", path, "v", 9);
        let mut stays = Stays::default();
        let mut add = |path: &str, range: Range<u64>, named| {
            let at = Located {
                snapshot: String::new(),
                inode: 1,
                origin: String::new(),
                path: path.to_owned(),
                version: String::new(),
                size: 9,
                key: key(path),
            };
            let is_stripe = range != (0..9);
            stays.add(Part { at: Arc::new(at), range, is_stripe }, named);
            stays.some_are_not_named()
        };
        assert!(!add("named", 0..9, true) && !add("striped named", 0..3, true) && !add("striped named", 6..9, true));
        assert!(add("other", 0..9, false) && add("striped other", 0..3, false) && add("striped other", 3..6, false));
        let of = |stay: &dyn Fn(&ObjectKey) -> Stay| {
            ["named", "striped named", "other", "striped other", "stranger"].map(|path| stay(&key(path)))
        };
        let parts = Stay::Parts(vec![0..3, 6..9]);
        let (all, complete) = (Stay::All, Stay::Complete);
        let of_the_share = [all.clone(), parts.clone(), complete.clone(), Stay::Parts(vec![0..3, 3..6]), Stay::Nothing];
        assert_eq!(of(&|key| stays.of_the_share(key)), of_the_share);
        assert_eq!(of(&|key| stays.named(key)), [all, parts, complete.clone(), complete.clone(), complete]);
    }
}
