//! The machine's page cache, which all nodes and all clusters on it share.

use std::fs::{self, File};

use anyhow::{Context as _, Result};

use crate::report::with_heartbeat;
use crate::tools::Tools;

/// While this is held nobody else drops the cache. Pages that were read ahead and not yet read would be asked for twice, so
/// that neither counters nor times of another test mean anything.
pub(crate) struct PageCache {
    _lock: File,
}

impl PageCache {
    /// Waits for whoever has it.
    pub(crate) fn hold(tools: &Tools) -> Result<Self> {
        let lock = File::create(tools.page_cache_lock()).context("make the page cache's lock file")?;
        with_heartbeat("waiting for the page cache", String::new, || lock.lock()).context("lock the page cache")?;
        Ok(Self { _lock: lock })
    }

    /// The kernel forgets what it has read: the files' pages and the mounts'.
    pub(crate) fn clear(&self) -> Result<()> {
        nix::unistd::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_the_page_cache() {
        let tools = Tools::locate().unwrap();
        fs::create_dir_all(tools.page_cache_lock().parent().unwrap()).unwrap();
        let held = PageCache::hold(&tools).unwrap();
        let other = File::create(tools.page_cache_lock()).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        other.lock().unwrap();
    }
}
