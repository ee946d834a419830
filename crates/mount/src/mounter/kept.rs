//! What the keeper and the node plugin hold of each session, so that the next mounter can go on with it: see
//! `docs/design/takeover.md`.

use crate::filesystem::{Greeting, Opening};
use larder_core::{
    catalog::{Catalog, CatalogError},
    format::{LaterFormat, Versioned},
    names,
};
use larder_fuse::{
    journal::{InFlight, Journal},
    protocol::mounter::Mount,
    session::{Exchange, Session, SessionError},
};
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

impl Kept {
    fn check(self, threads: usize) -> Result<(), KeptError> {
        let Self { name, mount, exchange, table, journal, catalog, .. } = self;
        let part = |what| {
            let name = name.clone();
            move |source| KeptError::Part { name, what, source }
        };
        Opening::check_table(table).map_err(part("open table"))?;
        if let Some(journal) = journal {
            Journal::load(journal, InFlight::default()).map_err(part("journal"))?;
        }
        let catalog = match Catalog::open(catalog) {
            Ok(catalog) => catalog,
            Err(source @ CatalogError::Version(_)) => return Err(KeptError::Catalog { name, source }),
            // A damaged one is no matter of releases.
            Err(_) => return Ok(()),
        };
        let greeting = Greeting::new(&mount.identity, mount.mode, &catalog);
        Session::check(greeting, &exchange, threads).map_err(|source| KeptError::Session { name, source })
    }
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
    #[error("the record of {name} {source}")]
    Later { name: String, source: LaterFormat },
    #[error("the record of {0} is damaged: {1}")]
    Damaged(String, serde_json::Error),
    #[error("the {what} of {name} {source}")]
    Part { name: String, what: &'static str, source: io::Error },
    #[error("the catalog of {name}: {source}")]
    Catalog { name: String, source: CatalogError },
    #[error("go on with {name} as release {VERSION}: {source}", VERSION = larder_telemetry::version())]
    Session { name: String, source: SessionError },
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

    /// Could each session that is held be gone on with? Looks only; asks nobody. Blocks.
    pub(super) fn check(&self, threads: usize) -> Result<(), KeptError> {
        self.sessions().iter().try_for_each(|name| match self.get(name) {
            Ok(kept) => kept.check(threads),
            // On its way here, or on its way out.
            Err(KeptError::Missing(..)) => Ok(()),
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
        let damaged = |error| KeptError::Damaged(name.to_owned(), error);
        let Versioned { version } = serde_json::from_str(&record).map_err(damaged)?;
        LaterFormat::refuse(version, VERSION).map_err(|source| KeptError::Later { name: name.to_owned(), source })?;
        let record: Record = serde_json::from_str(&record).map_err(damaged)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::catalog::{Builder, Listed};
    use std::{io::Write as _, os::unix::fs::FileExt as _};

    /// As this release leaves it to the next: a mount whose mode is passthrough, on Linux 6.18.
    const RECORD: &str = include_str!("../../tests/formats/session-1.json");
    const THREADS: usize = 4;

    fn catalog() -> File {
        let mut builder = Builder::new("s3://b/");
        builder.push(Listed { path: "a".into(), size: 1, mtime_ns: 7, version: "v".into() });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.finish().0).unwrap();
        file
    }

    /// What is held of one mount, and of nothing else.
    fn held(record: &str, table: &File, journal: &File, catalog: &File) -> Keeping {
        let held = Held::start("/nonexistent/keeper.sock".into());
        let fuse = File::open("/dev/null").unwrap();
        for (what, value, file) in
            [(CATALOG, "", catalog), (OPENS, "", table), (JOURNAL, "", journal), (CONNECTION, record, &fuse)]
        {
            held.put(&key("i/1", what), value, Some(file.try_clone().unwrap().into()));
        }
        Keeping::new(held)
    }

    fn files() -> [File; 3] {
        [Opening::table().unwrap(), Opening::journal().unwrap(), catalog()]
    }

    #[tokio::test]
    async fn what_this_release_leaves_behind_is_gone_on_with_and_fields_that_are_not_known_are_passed_over() {
        let [table, journal, catalog] = files();
        let later = RECORD.replacen('{', r#"{"ofALaterRelease":{"a":[1]},"#, 1).replace(r#""gid":0"#, r#""gid":0,"quota":9"#);
        for record in [RECORD, &later] {
            let keeping = held(record, &table, &journal, &catalog);
            keeping.check(THREADS).unwrap();
            let kept = keeping.get("i/1").unwrap();
            assert_eq!(kept.mount.mode, larder_fuse::protocol::mounter::Mode::Passthrough);
            let record = Record { version: VERSION, mount: kept.mount, exchange: kept.exchange };
            assert_eq!(serde_json::to_string(&record).unwrap(), RECORD, "as this release writes it");
        }
    }

    #[tokio::test]
    async fn what_this_release_could_not_go_on_with_is_told_before_its_turn_and_stays_as_it_is() {
        let refused = |record: &str, files: &[File; 3], parts: &[&str]| {
            let before = files.each_ref().map(bytes);
            let keeping = held(record, &files[0], &files[1], &files[2]);
            let told = keeping.check(THREADS).unwrap_err().to_string();
            for part in parts.iter().chain(&["i/1"]) {
                assert!(told.contains(part), "{part} in {told}");
            }
            assert_eq!(files.each_ref().map(bytes), before);
            assert_eq!(keeping.sessions(), ["i/1"]);
        };
        let later = "go back to the release that wrote it";
        // The second cannot be read in any other way.
        for record in [RECORD.replace(r#""version":1"#, r#""version":2"#), r#"{"version":2,"mounts":[]}"#.to_owned()] {
            refused(&record, &files(), &["record", "format 2", "up to 1", later]);
        }
        let mut other: serde_json::Value = serde_json::from_str(RECORD).unwrap();
        other["exchange"]["answer"][20] = 0.into();
        refused(&other.to_string(), &files(), &["this version of the program cannot go on", larder_telemetry::version()]);

        let table = files();
        let mut entry = [0; 32];
        entry[20] = 9;
        table[0].write_all_at(&entry, 0).unwrap();
        refused(RECORD, &table, &["open table", "format 9", "up to 4", later]);

        let journal = files();
        journal[1].write_all_at(&0x4c4a_0002_u32.to_ne_bytes(), 0).unwrap();
        refused(RECORD, &journal, &["journal", "format 2", "up to 1", later]);

        let catalog = files();
        catalog[2].write_all_at(&[9], 8).unwrap();
        refused(RECORD, &catalog, &["catalog", "format 9", "go back to a release"]);
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
