//! Who may be asked, and for what.

use larder_core::{key::ObjectKey, placement::Members};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Who owns, and where they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roster {
    /// The member list of the dataset, as the operator wrote it.
    pub members: Members,
    /// Node name → address of its worker. A member without a worker just now is missing here.
    pub addresses: BTreeMap<String, IpAddr>,
}

/// Gives the roster as it is now. A read asks again before each round, so that it finds a worker that came back elsewhere.
pub trait RosterSource: Sync {
    /// The newest roster.
    fn current(&self) -> Arc<Roster>;
}

impl RosterSource for Roster {
    fn current(&self) -> Arc<Roster> {
        Arc::new(self.clone())
    }
}

impl RosterSource for Arc<Roster> {
    fn current(&self) -> Arc<Roster> {
        Arc::clone(self)
    }
}

impl<F: Fn() -> Arc<Roster> + Sync> RosterSource for F {
    fn current(&self) -> Arc<Roster> {
        self()
    }
}

/// One file of one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef<'a> {
    /// UID of the dataset.
    pub dataset_uid: &'a str,
    /// Digest of the snapshot.
    pub snapshot: &'a str,
    /// Inode number: position in the catalog + 1.
    pub inode: u64,
    /// Name of the content; decides who owns it.
    pub key: ObjectKey,
}
