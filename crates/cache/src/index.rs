//! What is known in memory: complete files, fills, and how much of the quota they use.

use crate::fill::Fill;
use larder_core::key::ObjectKey;
use std::{collections::HashMap, sync::Arc};

/// Complete files use what they are long, fills what they will be long.
pub(crate) struct Index<E: std::error::Error + Clone + Send + Sync + 'static> {
    complete: HashMap<ObjectKey, u64>,
    fills: HashMap<ObjectKey, Arc<Fill<E>>>,
    complete_bytes: u64,
    fill_bytes: u64,
    quota: u64,
    pub erased: bool,
}

impl<E: std::error::Error + Clone + Send + Sync + 'static> Index<E> {
    pub fn new(complete: HashMap<ObjectKey, u64>, quota: u64) -> Self {
        let complete_bytes = complete.values().sum();
        Self { complete, fills: HashMap::new(), complete_bytes, fill_bytes: 0, quota, erased: false }
    }

    pub fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }

    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Bytes left of the quota.
    pub fn free(&self) -> u64 {
        if self.quota == 0 { u64::MAX } else { self.quota.saturating_sub(self.complete_bytes + self.fill_bytes) }
    }

    pub fn files(&self) -> u64 {
        self.complete.len() as u64
    }

    pub fn bytes(&self) -> (u64, u64) {
        (self.complete_bytes, self.fill_bytes)
    }

    pub fn complete(&self, key: &ObjectKey) -> Option<u64> {
        self.complete.get(key).copied()
    }

    pub fn fill(&self, key: &ObjectKey) -> Option<&Arc<Fill<E>>> {
        self.fills.get(key)
    }

    pub fn begin(&mut self, fill: &Arc<Fill<E>>) {
        self.fill_bytes += fill.size;
        self.fills.insert(fill.key, Arc::clone(fill));
    }

    /// Ends a fill, if it is still the one of its key.
    pub fn end(&mut self, fill: &Fill<E>, complete: bool) {
        if self.fills.get(&fill.key).is_some_and(|f| std::ptr::eq(&raw const **f, fill)) {
            self.fills.remove(&fill.key);
            self.fill_bytes -= fill.size;
            if complete {
                self.complete_bytes += fill.size;
                self.complete.insert(fill.key, fill.size);
            }
        }
    }

    pub fn forget(&mut self, key: &ObjectKey) -> bool {
        let size = self.complete.remove(key);
        self.complete_bytes -= size.unwrap_or(0);
        size.is_some()
    }

    /// Forgets the complete files that are not to be kept.
    pub fn forget_unwanted(&mut self, keep: impl Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        let unwanted: Vec<_> = self.complete.keys().filter(|k| !keep(k)).copied().collect();
        for key in &unwanted {
            self.forget(key);
        }
        unwanted
    }

    /// Marks the fills that are not to be kept and that nobody works on as dropped.
    pub fn drop_idle(&self, keep: impl Fn(&ObjectKey) -> bool) -> Vec<Arc<Fill<E>>> {
        self.fills.values().filter(|f| !keep(&f.key) && f.drop_if_idle()).cloned().collect()
    }

    pub fn clear(&mut self) {
        self.complete.clear();
        self.fills.clear();
        (self.complete_bytes, self.fill_bytes) = (0, 0);
    }
}
