//! A listing that fits into memory → catalog bytes.

use super::{
    record::{Listed, Record, Records},
    tree::Tree,
};
use std::{
    collections::VecDeque,
    io::{self, Cursor},
};

/// A key that is left out of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// Relative to the source's prefix.
    pub key: String,
    /// Why, for people.
    pub reason: &'static str,
}

/// Collects a small listing in any order and makes the catalog. Large ones are sorted on a disk (crate `larder-snapshot`).
#[derive(Debug)]
pub struct Builder {
    origin: String,
    make: Records,
    records: Vec<Vec<u8>>,
    skipped: Vec<Skipped>,
}

impl Builder {
    /// `origin` is the source's URI with its prefix; it is part of every object key.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), make: Records::default(), records: Vec::new(), skipped: Vec::new() }
    }

    /// Takes one object in, or notes why it cannot be a file.
    pub fn push(&mut self, file: Listed) {
        if let Err(reason) = file.check() {
            return self.skipped.push(Skipped { key: file.path, reason });
        }
        let records = &mut self.records;
        let Ok(()) = self.make.of::<std::convert::Infallible>(&file, |record| {
            records.push(record.to_vec());
            Ok(())
        });
    }

    /// The catalog file, and what was left out of it.
    ///
    /// # Panics
    /// Never: memory does not fail, and what is sorted is in order.
    #[must_use]
    #[expect(clippy::expect_used, reason = "see Panics")]
    pub fn finish(self) -> (Vec<u8>, Vec<Skipped>) {
        self.write().expect("a catalog in memory")
    }

    fn write(mut self) -> io::Result<(Vec<u8>, Vec<Skipped>)> {
        self.records.sort_unstable();
        let mut tree = Tree::new(Cursor::new(Vec::new()), VecDeque::new(), &self.origin)?;
        for record in self.records.iter().map(|r| Record::new(r)) {
            if let Some(reason) = tree.push(record)? {
                self.skipped.push(Skipped { key: record.key(), reason });
            }
        }
        Ok((tree.finish()?.sink.into_inner(), self.skipped))
    }
}
