//! Sorted runs → one sorted sequence.

use crate::run::Run;
use std::io;

/// Records of one run, wherever they lie.
pub(crate) enum Source {
    Disk(Run),
    /// Bytes, and where the records lie in them, in their order.
    Memory {
        bytes: Vec<u8>,
        order: Vec<Span>,
        next: usize,
    },
}

/// Part of the bytes.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub at: u32,
    pub len: u16,
}

impl Span {
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.at as usize..][..usize::from(self.len)]
    }
}

impl Source {
    fn advance(&mut self) -> io::Result<bool> {
        match self {
            Self::Disk(run) => run.advance(),
            Self::Memory { order, next, .. } => {
                *next += 1;
                Ok(*next <= order.len())
            }
        }
    }

    /// MUST be asked only after it advanced.
    fn record(&self) -> &[u8] {
        match self {
            Self::Disk(run) => run.record(),
            Self::Memory { bytes, order, next } => order[next - 1].of(bytes),
        }
    }
}

/// Always gives the least record that is left.
pub(crate) struct Merge {
    /// A heap: the source with the least record first.
    sources: Vec<Source>,
    /// The first one's record was given already.
    given: bool,
}

impl Merge {
    pub fn new(sources: Vec<Source>) -> io::Result<Self> {
        let mut heap = Vec::with_capacity(sources.len());
        for mut source in sources {
            if source.advance()? {
                heap.push(source);
            }
        }
        let mut merge = Self { sources: heap, given: false };
        (0..merge.sources.len() / 2).rev().for_each(|i| merge.sink(i));
        Ok(merge)
    }

    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.given
            && let Some(first) = self.sources.first_mut()
        {
            if !first.advance()? {
                self.sources.swap_remove(0);
            }
            self.sink(0);
        }
        self.given = true;
        Ok(self.sources.first().map(Source::record))
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.sources.len());
            let Some(least) = children.min_by_key(|i| self.sources[*i].record()) else { return };
            if self.sources[at].record() <= self.sources[least].record() {
                return;
            }
            self.sources.swap(at, least);
            at = least;
        }
    }
}
