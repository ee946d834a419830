//! Reading a folder: a slice of the catalog.
//!
//! An offset says where to go on and is a pure function of the snapshot: 0 the start, 1 behind `.`, 2 behind `..`, and `p + 2`
//! behind the child at position `p` (the root is position 0, so that children start at 1).

use super::DatasetFs;
use crate::{backend::Backend, error::FsError};
use fuser::INodeNo;
use larder_core::catalog::{Entry, Scanned};

/// One name in a folder.
pub(super) struct Child<'a> {
    pub(super) index: u64,
    pub(super) entry: Entry,
    pub(super) name: &'a str,
    /// Offset behind this name.
    pub(super) next: u64,
}

const BEHIND_DOT: u64 = 1;
const BEHIND_DOT_DOT: u64 = 2;

impl<B: Backend> DatasetFs<B> {
    /// Gives the names from `offset` on to `add` until it says that the buffer is full.
    pub(super) fn list(&self, folder: INodeNo, offset: u64, mut add: impl FnMut(&Child<'_>) -> bool) -> Result<(), FsError> {
        let dir = self.folder(folder)?;
        let own = self.catalog.entry(dir)?;
        if offset < BEHIND_DOT && add(&Child { index: dir, entry: own, name: ".", next: BEHIND_DOT }) {
            return Ok(());
        }
        if offset < BEHIND_DOT_DOT {
            let parent = self.catalog.entry(own.parent)?;
            if add(&Child { index: own.parent, entry: parent, name: "..", next: BEHIND_DOT_DOT }) {
                return Ok(());
            }
        }
        let children = self.catalog.children(dir)?;
        let first = offset.saturating_sub(BEHIND_DOT_DOT).saturating_add(u64::from(offset > BEHIND_DOT_DOT));
        let mut scan = self.catalog.scan(first.max(children.start)..children.end);
        while let Some(Scanned { index, entry, name }) = scan.next()? {
            if add(&Child { index, entry, name, next: index + BEHIND_DOT_DOT }) {
                break;
            }
        }
        Ok(())
    }
}
