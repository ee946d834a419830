//! The folders whose children are still to come, on the disk if there are many.

use larder_core::catalog::Queue;
use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

/// Written and read at a time; so much lies in memory at either end.
const PIECE: usize = 1 << 20;

pub(crate) struct Spool {
    folder: PathBuf,
    piece: usize,
    front: Vec<u8>,
    /// How much of the front was given.
    given: usize,
    back: Vec<u8>,
    file: Option<File>,
    /// Lengths of the pieces that lie in the file, one behind the other from `read` on.
    pieces: VecDeque<usize>,
    read: u64,
    written: u64,
}

impl Spool {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            piece: PIECE,
            front: Vec::new(),
            given: 0,
            back: Vec::new(),
            file: None,
            pieces: VecDeque::new(),
            read: 0,
            written: 0,
        }
    }

    fn write_back(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.folder)?),
        };
        if self.pieces.is_empty() {
            // Everything was read: the file begins anew.
            file.set_len(0)?;
            (self.read, self.written) = (0, 0);
        }
        file.write_all_at(&self.back, self.written)?;
        self.written += self.back.len() as u64;
        self.pieces.push_back(self.back.len());
        self.back.clear();
        Ok(())
    }

    fn fill_front(&mut self) -> io::Result<()> {
        self.given = 0;
        self.front.clear();
        match (self.pieces.pop_front(), &self.file) {
            (Some(len), Some(file)) => {
                self.front.resize(len, 0);
                file.read_exact_at(&mut self.front, self.read)?;
                self.read += len as u64;
            }
            _ => std::mem::swap(&mut self.front, &mut self.back),
        }
        Ok(())
    }
}

impl Queue for Spool {
    fn push(&mut self, position: u64, path: &[u8]) -> io::Result<()> {
        let len = u16::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.back.extend_from_slice(&position.to_le_bytes());
        self.back.extend_from_slice(&len.to_le_bytes());
        self.back.extend_from_slice(path);
        if self.back.len() >= self.piece { self.write_back() } else { Ok(()) }
    }

    fn pop(&mut self, path: &mut Vec<u8>) -> io::Result<Option<u64>> {
        if self.given == self.front.len() {
            self.fill_front()?;
        }
        let rest = &self.front[self.given..];
        let Some((head, rest)) = rest.split_first_chunk::<10>() else { return Ok(None) };
        let (position, len) = head.split_at(8);
        let position = u64::from_le_bytes(position.try_into().unwrap_or_default());
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        path.clear();
        path.extend_from_slice(rest.get(..len).ok_or(io::ErrorKind::InvalidData)?);
        self.given += head.len() + len;
        Ok(Some(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(steps in proptest::collection::vec(any::<bool>(), 0..300), piece in 1usize..100) {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool { piece, ..Spool::new(dir.path().to_owned()) };
            let (mut model, mut path) = (VecDeque::new(), Vec::new());
            for (i, push) in steps.into_iter().enumerate() {
                if push {
                    let name = format!("folder {}", i % 17).into_bytes();
                    spool.push(i as u64, &name).unwrap();
                    model.push_back((i as u64, name));
                } else {
                    let popped = spool.pop(&mut path).unwrap().map(|p| (p, path.clone()));
                    prop_assert_eq!(popped, model.pop_front());
                }
            }
            while let Some(expected) = model.pop_front() {
                let popped = spool.pop(&mut path).unwrap().map(|p| (p, path.clone()));
                prop_assert_eq!(popped, Some(expected));
            }
            prop_assert_eq!(spool.pop(&mut path).unwrap(), None);
        }
    }
}
