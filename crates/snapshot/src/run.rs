//! A sorted run of records on the disk, in a file without a name.
//!
//! Neighbours have much in common: of each record only what differs from the one before is written, behind the length of what
//! does not.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _},
    path::Path,
};

/// Written and read at a time. Together with the number of runs merged at once this bounds the memory of a merge.
const BUFFER: usize = 128 << 10;
/// Longest that a record's length may claim to be: far above any record, far below what would hurt.
const RECORD_MAX: usize = 64 << 10;

pub(crate) struct RunWriter {
    file: BufWriter<File>,
    last: Vec<u8>,
    len: u64,
}

impl RunWriter {
    pub fn new(folder: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER, tempfile::tempfile_in(folder)?);
        Ok(Self { file, last: Vec::new(), len: 0 })
    }

    /// Records MUST come sorted; one that is equal to the one before is left out.
    pub fn push(&mut self, record: &[u8]) -> io::Result<()> {
        if self.last == record && !record.is_empty() {
            return Ok(());
        }
        let common = self.last.iter().zip(record).take_while(|(a, b)| a == b).count();
        let mut lengths = [0; 4];
        lengths[..2].copy_from_slice(&(common as u16).to_le_bytes());
        lengths[2..].copy_from_slice(&((record.len() - common) as u16).to_le_bytes());
        self.file.write_all(&lengths)?;
        self.file.write_all(&record[common..])?;
        self.len += (lengths.len() + record.len() - common) as u64;
        self.last.truncate(common);
        self.last.extend_from_slice(&record[common..]);
        Ok(())
    }

    pub fn finish(self) -> io::Result<Run> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Run { file: BufReader::with_capacity(0, file), left: self.len, record: Vec::new() })
    }
}

/// Gives its records once, in order.
pub(crate) struct Run {
    file: BufReader<File>,
    left: u64,
    record: Vec<u8>,
}

impl Run {
    /// Begins to read: only now the run takes memory.
    pub fn open(mut self) -> Self {
        self.file = BufReader::with_capacity(BUFFER, self.file.into_inner());
        self
    }

    pub fn len(&self) -> u64 {
        self.left
    }

    /// Goes to the next record; `false`: that was the last one.
    pub fn advance(&mut self) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let mut lengths = [0; 4];
        self.file.read_exact(&mut lengths)?;
        let common = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
        let rest = usize::from(u16::from_le_bytes([lengths[2], lengths[3]]));
        if common > self.record.len() || common + rest > RECORD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a sorted part of the listing is damaged on the disk"));
        }
        self.record.resize(common + rest, 0);
        self.file.read_exact(&mut self.record[common..])?;
        let used = (lengths.len() + rest) as u64;
        self.left = self.left.checked_sub(used).ok_or(io::ErrorKind::InvalidData)?;
        Ok(true)
    }

    pub fn record(&self) -> &[u8] {
        &self.record
    }
}
