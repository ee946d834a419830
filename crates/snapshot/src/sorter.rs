//! Sorts records, on the disk if there are many.

use crate::{
    merge::{Merge, Source, Span},
    run::{Run, RunWriter},
};
use std::{io, path::PathBuf};

/// Bytes of records sorted in memory: half of what a worker may use while it lists is left for the listing itself, the merge and
/// what else the worker does. 100 million objects are about 100 runs.
pub(crate) const MEMORY: usize = 128 << 20;
/// Runs merged at once. More are merged into one first.
const FAN_IN: usize = 256;

pub(crate) struct Sorter {
    folder: PathBuf,
    memory: usize,
    fan_in: usize,
    bytes: Vec<u8>,
    order: Vec<Span>,
    runs: Vec<Run>,
    spilled: u64,
}

impl Sorter {
    pub fn new(folder: PathBuf, memory: usize) -> Self {
        // Offsets have 32 bits.
        let memory = memory.min(u32::MAX as usize);
        Self { folder, memory, fan_in: FAN_IN, bytes: Vec::new(), order: Vec::new(), runs: Vec::new(), spilled: 0 }
    }

    pub fn push(&mut self, record: &[u8]) -> io::Result<()> {
        let len = u16::try_from(record.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if self.bytes.len() + record.len() > self.memory && !self.bytes.is_empty() {
            self.spill()?;
        }
        self.order.push(Span { at: self.bytes.len() as u32, len });
        self.bytes.extend_from_slice(record);
        Ok(())
    }

    /// All records, sorted; an equal one may come several times. And the bytes that were written to the disk for it.
    pub fn finish(mut self) -> io::Result<(Merge, u64)> {
        if self.runs.is_empty() {
            self.sort();
            let source = Source::Memory { bytes: self.bytes, order: self.order, next: 0 };
            return Ok((Merge::new(vec![source])?, 0));
        }
        self.spill()?;
        // The memory is for the merge now.
        (self.bytes, self.order) = (Vec::new(), Vec::new());
        Ok((merge(self.runs)?, self.spilled))
    }

    /// Stable, although nothing depends on it: that sort finds the parts which the listing brought in order.
    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.order.sort_by(|a, b| a.of(bytes).cmp(b.of(bytes)));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut run = RunWriter::new(&self.folder)?;
        self.order.iter().try_for_each(|span| run.push(span.of(&self.bytes)))?;
        self.keep(run)?;
        self.bytes.clear();
        self.order.clear();
        if self.runs.len() >= self.fan_in {
            let mut all = merge(std::mem::take(&mut self.runs))?;
            let mut run = RunWriter::new(&self.folder)?;
            while let Some(record) = all.next()? {
                run.push(record)?;
            }
            self.keep(run)?;
        }
        Ok(())
    }

    fn keep(&mut self, run: RunWriter) -> io::Result<()> {
        let run = run.finish()?;
        self.spilled += run.len();
        self.runs.push(run);
        Ok(())
    }
}

fn merge(runs: Vec<Run>) -> io::Result<Merge> {
    Merge::new(runs.into_iter().map(|run| Source::Disk(run.open())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn sorted(records: &[Vec<u8>], memory: usize, fan_in: usize) -> Vec<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter { fan_in, ..Sorter::new(dir.path().to_owned(), memory) };
        records.iter().try_for_each(|r| sorter.push(r)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a killed process would leave something");
        let (mut merge, mut out) = (sorter.finish().unwrap().0, Vec::new());
        while let Some(record) = merge.next().unwrap() {
            out.push(record.to_vec());
        }
        out
    }

    proptest! {
        #[test]
        fn records_come_sorted_however_much_fits_into_memory(
            records in proptest::collection::vec(proptest::collection::vec(0u8..4, 1..12), 0..200),
            memory in 1usize..400,
            fan_in in 2usize..6,
        ) {
            let out = sorted(&records, memory, fan_in);
            prop_assert!(out.windows(2).all(|w| w[0] <= w[1]));
            let (found, expected): (BTreeSet<_>, BTreeSet<_>) = (out.iter().collect(), records.iter().collect());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_fits_into_memory_never_touches_the_disk() {
        let nowhere = PathBuf::from("/no/such/folder");
        let mut sorter = Sorter::new(nowhere, 100);
        sorter.push(b"b").unwrap();
        sorter.push(b"a").unwrap();
        let (mut merge, spilled) = sorter.finish().unwrap();
        assert_eq!(spilled, 0);
        assert_eq!(merge.next().unwrap(), Some(&b"a"[..]));
        assert_eq!(merge.next().unwrap(), Some(&b"b"[..]));
        assert_eq!(merge.next().unwrap(), None);
        assert_eq!(merge.next().unwrap(), None);
    }
}
