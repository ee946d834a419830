//! Sorted records → folders and files.

use super::{
    record::Record,
    write::{Writer, Written},
};
use std::{
    collections::VecDeque,
    io::{self, Seek, Write},
};

/// Folders whose children are still to come: first in, first out. One that lives on a disk keeps memory bounded.
pub trait Queue {
    /// Takes a folder in.
    ///
    /// # Errors
    /// The disk's.
    fn push(&mut self, position: u64, path: &[u8]) -> io::Result<()>;

    /// Gives the position of the next folder and puts its path into `path`; `None`: there is no folder left.
    ///
    /// # Errors
    /// The disk's.
    fn pop(&mut self, path: &mut Vec<u8>) -> io::Result<Option<u64>>;
}

impl Queue for VecDeque<(u64, Vec<u8>)> {
    fn push(&mut self, position: u64, path: &[u8]) -> io::Result<()> {
        self.push_back((position, path.to_vec()));
        Ok(())
    }

    fn pop(&mut self, path: &mut Vec<u8>) -> io::Result<Option<u64>> {
        Ok(self.pop_front().map(|(position, next)| {
            *path = next;
            position
        }))
    }
}

/// Writes a catalog from records that come sorted. What is one level deeper comes after everything above it, in the order of its
/// folders; so all that has to be remembered is the folders of one level.
#[derive(Debug)]
pub struct Tree<W, Q> {
    writer: Writer<W>,
    folders: Q,
    /// The folder whose children are written now.
    parent: u64,
    parent_path: Vec<u8>,
    last: Option<(Vec<u8>, bool)>,
}

impl<W: Write + Seek, Q: Queue> Tree<W, Q> {
    /// `folders` is empty.
    ///
    /// # Errors
    /// Those of the sink and of the queue, as everywhere here.
    pub fn new(sink: W, folders: Q, origin: &str) -> io::Result<Self> {
        let mut writer = Writer::new(sink, origin)?;
        writer.begin_children()?;
        Ok(Self { writer, folders, parent: 0, parent_path: Vec::new(), last: None })
    }

    /// Entries written so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.writer.entries()
    }

    /// Takes the next record. Gives the reason if it is left out of the snapshot.
    ///
    /// # Errors
    /// Also records that are not sorted, or whose folder was never there.
    pub fn push(&mut self, record: Record<'_>) -> io::Result<Option<&'static str>> {
        let (path, is_folder) = (record.path(), record.is_folder());
        if let Some((_, folder)) = self.last.as_ref().filter(|(last, _)| last == path) {
            // A folder that was listed in parts, or a file that was listed twice; the newest came first.
            return Ok((*folder && !is_folder).then_some("is also a folder"));
        }
        let (parent, name) = record.split();
        while self.parent_path != parent {
            if !self.next_folder()? {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{:?} came out of order", record.key())));
            }
        }
        if is_folder {
            let position = self.writer.folder(self.parent, name)?;
            self.folders.push(position, path)?;
        } else {
            let file = record.file();
            self.writer.file(self.parent, name, file.size, file.mtime_ns, file.version)?;
        }
        let last = self.last.get_or_insert_default();
        last.0.clear();
        last.0.extend_from_slice(path);
        last.1 = is_folder;
        Ok(None)
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// Those of the sink and of the queue.
    pub fn finish(mut self) -> io::Result<Written<W>> {
        while self.next_folder()? {}
        self.writer.finish()
    }

    fn next_folder(&mut self) -> io::Result<bool> {
        let Some(position) = self.folders.pop(&mut self.parent_path)? else { return Ok(false) };
        self.parent = position;
        self.writer.begin_children()?;
        Ok(true)
    }
}
