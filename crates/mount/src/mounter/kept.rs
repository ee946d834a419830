//! What the keeper and the node plugin hold of each session, so that the next mounter can go on with it: see
//! `docs/design/takeover.md`.

use larder_core::{catalog::Catalog, names};
use larder_fuse::{protocol::mounter::Mount, session::Exchange};
use larder_keeper::client::Held;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longest wait for the keeper at a publish. It answers in a fraction of a millisecond, or it is not there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Raised when an older mounter could misread a record.
const VERSION: u32 = 1;
const PERMITS: &str = "permit/";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    /// As it was asked for, with the mode that was chosen.
    mount: Mount,
    exchange: Exchange,
}

/// A session that another process has begun.
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) mount: Mount,
    pub(super) exchange: Exchange,
    pub(super) fuse: OwnedFd,
    pub(super) table: File,
    /// Not of a session that an older mounter has begun.
    pub(super) journal: Option<File>,
    pub(super) catalog: File,
}

/// What is held of a session beside its record.
pub(super) struct Parts<'a> {
    pub(super) fuse: OwnedFd,
    pub(super) table: &'a File,
    pub(super) journal: &'a File,
    pub(super) catalog: &'a Catalog<File>,
}

/// Why a session that is held cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    #[error("the record of {0} is not held whole: {1} is missing")]
    Missing(String, &'static str),
    #[error("the record of {0} is not of this version of the program")]
    Version(String),
    #[error("duplicate a descriptor of {0}: {1}")]
    Duplicate(String, io::Error),
}

/// A name that no other session of this node has had.
pub(super) fn name(identity: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{identity}/{:x}", now.as_nanos())
}

const CONNECTION: &str = "connection";
const OPENS: &str = "opens";
const JOURNAL: &str = "journal";
const CATALOG: &str = "catalog";

fn key(name: &str, item: &str) -> String {
    format!("{}{name}/{item}", names::HELD_SESSIONS)
}

/// What this process keeps with others.
#[derive(Clone)]
pub(super) struct Keeping(Held);

impl Keeping {
    pub(super) fn new(held: Held) -> Self {
        Self(held)
    }

    /// Whether the keeper has all of it by now.
    pub(super) async fn session(&self, name: &str, mount: &Mount, exchange: &Exchange, parts: Parts<'_>) -> io::Result<bool> {
        let record = Record { version: VERSION, mount: mount.clone(), exchange: exchange.clone() };
        let record = serde_json::to_string(&record)?;
        let Parts { fuse, table, journal, catalog } = parts;
        let (catalog, table, journal) =
            (catalog.file().try_clone()?.into(), table.try_clone()?.into(), journal.try_clone()?.into());
        // The connection last: where it is, the rest is too.
        let mut kept = true;
        let items = [(CATALOG, "", catalog), (OPENS, "", table), (JOURNAL, "", journal), (CONNECTION, &*record, fuse)];
        for (what, value, fd) in items {
            // Who did not answer once is not waited for again.
            let patience = if kept { PATIENCE } else { Duration::ZERO };
            kept &= self.0.put_now(&key(name, what), value, Some(fd), patience).await;
        }
        Ok(kept)
    }

    pub(super) fn ended(&self, name: &str) {
        self.0.remove_prefix(&key(name, ""));
    }

    pub(super) fn permit(&self, dataset_uid: &str, token: &str) {
        self.0.put(&format!("{PERMITS}{dataset_uid}"), token, None);
    }

    /// No mount of it is left.
    pub(super) fn forbid(&self, dataset_uid: &str) {
        self.0.remove(&format!("{PERMITS}{dataset_uid}"));
    }

    /// Could each session that is held be gone on with, as far as its record tells?
    pub(super) fn check(&self) -> Result<(), KeptError> {
        self.sessions().iter().try_for_each(|name| match self.get(name) {
            // On its way here, or on its way out.
            Ok(_) | Err(KeptError::Missing(..)) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// UIDs of datasets, and their mount tokens.
    pub(super) fn permits(&self) -> Vec<(String, String)> {
        let uids = self.0.keys().into_iter().filter_map(|key| key.strip_prefix(PERMITS).map(str::to_owned));
        uids.filter_map(|uid| self.0.get(&format!("{PERMITS}{uid}")).map(|item| (uid, item.value))).collect()
    }

    /// Names of all sessions that are held.
    pub(super) fn sessions(&self) -> Vec<String> {
        let name = |key: String| Some(key.strip_prefix(names::HELD_SESSIONS)?.strip_suffix("/connection")?.to_owned());
        self.0.keys().into_iter().filter_map(name).collect()
    }

    pub(super) fn get(&self, name: &str) -> Result<Kept, KeptError> {
        let item = |what| {
            let missing = || KeptError::Missing(name.to_owned(), what);
            let item = self.0.get(&key(name, what)).ok_or_else(missing)?;
            let fd = item.fd.ok_or_else(missing)?.try_clone();
            Ok((item.value, fd.map_err(|e| KeptError::Duplicate(name.to_owned(), e))?))
        };
        let (record, fuse) = item(CONNECTION)?;
        let record: Record = serde_json::from_str(&record).map_err(|_| KeptError::Version(name.to_owned()))?;
        if record.version != VERSION {
            return Err(KeptError::Version(name.to_owned()));
        }
        let ((_, table), (_, catalog)) = (item(OPENS)?, item(CATALOG)?);
        let journal = match item(JOURNAL) {
            Ok((_, journal)) => Some(journal.into()),
            Err(KeptError::Missing(..)) => None,
            Err(error) => return Err(error),
        };
        let Record { mount, exchange, .. } = record;
        Ok(Kept { name: name.to_owned(), mount, exchange, fuse, table: table.into(), journal, catalog: catalog.into() })
    }

    /// Does the keeper have everything that this process has?
    pub(super) async fn are_held(&self) -> bool {
        self.0.is_deposited(PATIENCE).await
    }

    /// Gets what others hold; false when there is nobody to ask yet.
    pub(super) async fn fetch(&self, patience: Duration) -> bool {
        self.0.fetch(patience).await
    }
}
