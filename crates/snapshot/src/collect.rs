//! The blocking half: items of a listing → catalog file.

use crate::{Progress, Skips, sorter::Sorter, spool::Spool};
use larder_core::catalog::{Record, Records, Tree, Written};
use larder_origin::Item;
use std::{
    fs::File,
    io::{self, BufWriter},
    path::Path,
};

/// Written at a time.
const BUFFER: usize = 1 << 20;
/// Records between two looks at whether anybody still waits.
const STEP: u64 = 4096;

/// Takes items in, in any order.
pub(crate) struct Collector {
    make: Records,
    sorter: Sorter,
    skips: Skips,
}

impl Collector {
    pub fn new(folder: &Path, memory: usize) -> Self {
        Self { make: Records::default(), sorter: Sorter::new(folder.to_owned(), memory), skips: Skips::default() }
    }

    pub fn item(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::File(file) => match file.check() {
                Ok(()) => return self.make.of(&file, |record| self.sorter.push(record)),
                Err(reason) => self.skips.add(file.path, reason),
            },
            Item::Skipped { key, reason } => self.skips.add(key, reason),
        }
        Ok(())
    }

    /// Writes the catalog; stops with an error when nobody waits for it any more.
    pub fn write(
        self,
        folder: &Path,
        origin: &str,
        into: File,
        progress: &Progress,
        wanted: impl Fn() -> bool,
    ) -> io::Result<Collected> {
        let mut skips = self.skips;
        let (mut records, sorted_bytes) = self.sorter.finish()?;
        let mut tree = Tree::new(BufWriter::with_capacity(BUFFER, into), Spool::new(folder.to_owned()), origin)?;
        while let Some(record) = records.next()? {
            let record = Record::new(record);
            if let Some(reason) = tree.push(record)? {
                skips.add(record.key(), reason);
            }
            if tree.entries().is_multiple_of(STEP) {
                progress.wrote(tree.entries());
                if !wanted() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
        let Written { sink, digest, files, bytes, entries, len } = tree.finish()?;
        let sink = sink.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Collected { catalog: Written { sink, digest, files, bytes, entries, len }, skips, sorted_bytes })
    }
}

/// A catalog, written and not yet safe on the disk.
pub(crate) struct Collected {
    pub catalog: Written<File>,
    pub skips: Skips,
    pub sorted_bytes: u64,
}
