//! What a process that takes a connection over knows of the requests that the one before it had read and not answered: see
//! `docs/design/takeover.md`.
//!
//! Where the kernel does not send them again they are in a memory file that others hold too. [`crate::relay`] writes it.

use crate::relay::{self, answer};
use fuser::{Errno, ReplyData, Request};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    str::FromStr,
    sync::{Arc, OnceLock},
};

/// How a process answers what the one before it has left unanswered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InFlight {
    /// The kernel sends it again; where it cannot, there is a journal.
    #[default]
    Auto,
    /// The kernel sends it again; where it cannot, mounts end with the process that serves them.
    Resend,
    /// There is a journal, on every kernel.
    Journal,
}

impl FromStr for InFlight {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "resend" => Ok(Self::Resend),
            "journal" => Ok(Self::Journal),
            _ => Err("must be auto, resend or journal"),
        }
    }
}

/// A new memory file for a journal.
///
/// # Errors
/// Out of memory or descriptors.
pub fn file() -> io::Result<File> {
    Ok(memfd_create("larder-journal", MFdFlags::MFD_CLOEXEC)?.into())
}

/// The journal of one connection.
#[derive(Debug)]
pub struct Journal {
    file: File,
    wanted: InFlight,
    /// By the process before this one.
    was_written: bool,
    /// Set when the kernel's INIT is answered.
    is_written: OnceLock<bool>,
    /// Set when the session starts, if it is written.
    connection: OnceLock<OwnedFd>,
}

impl Journal {
    /// Of a [`file`], new or left by another process.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(file: File, wanted: InFlight) -> io::Result<Arc<Self>> {
        let was_written = relay::is_written(&file)?;
        Ok(Arc::new(Self { file, wanted, was_written, is_written: OnceLock::new(), connection: OnceLock::new() }))
    }

    /// Does this process write it? To be asked when the kernel has said whether it sends again what was not answered.
    pub fn choose(&self, kernel_resends: bool) -> bool {
        *self.is_written.get_or_init(|| match self.wanted {
            InFlight::Auto => !kernel_resends,
            InFlight::Resend => false,
            InFlight::Journal => true,
        })
    }

    pub(crate) fn is_written(&self) -> bool {
        self.is_written.get().is_some_and(|is| *is)
    }

    /// Is what the process before this one left unanswered in it?
    pub(crate) fn is_to_be_replayed(&self) -> bool {
        self.was_written && self.is_written()
    }

    /// Whoever comes next must not rely on what this process does not write.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// The file, to be written from now on, and the connection that long answers go to.
    pub(crate) fn open(&self, connection: OwnedFd) -> &File {
        // A session starts once.
        let _ = self.connection.set(connection);
        &self.file
    }
}

/// The answer to a READ. It is too long for a message of the socket on which fuser is when there is a journal.
#[derive(Debug)]
pub struct Data {
    reply: ReplyData,
    direct: Option<(Arc<Journal>, u64)>,
}

impl Data {
    /// `journal` is that of the connection, if it is written.
    #[must_use]
    pub fn new(request: &Request, reply: ReplyData, journal: Option<&Arc<Journal>>) -> Self {
        Self { reply, direct: journal.map(|journal| (Arc::clone(journal), request.unique().0)) }
    }

    /// Answers with these bytes.
    pub fn data(self, bytes: &[u8]) {
        let Some((journal, id)) = self.direct else { return self.reply.data(bytes) };
        if let Some(Err(error)) = journal.connection.get().map(|connection| answer(connection, id, 0, bytes)) {
            tracing::debug!(%error, "answer a read");
        }
        // Says to the relay that there is an answer. To the kernel it is one more, which it ignores; or else the only one.
        self.reply.error(Errno::EIO);
    }

    /// Fails the read.
    pub fn error(self, error: Errno) {
        self.reply.error(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn what_was_in_flight_is_looked_for_where_the_process_before_has_noted_it() {
        let file = file().unwrap();
        let next = |wanted, kernel_resends| {
            let journal = Journal::load(file.try_clone().unwrap(), wanted).unwrap();
            let found = (journal.choose(kernel_resends), journal.is_to_be_replayed());
            if journal.is_written() { relay::Slots::open(&journal.file).map(drop) } else { journal.close() }.unwrap();
            found
        };
        assert_eq!(next(InFlight::Auto, true), (false, false));
        assert_eq!(next(InFlight::Auto, false), (true, false), "the one before wrote none");
        assert_eq!(next(InFlight::Auto, false), (true, true));
        assert_eq!(next(InFlight::Journal, true), (true, true));
        assert_eq!(next(InFlight::Resend, false), (false, false), "forced off");
        assert_eq!(next(InFlight::Journal, true), (true, false), "and emptied");
        assert_eq!(next(InFlight::Auto, true), (false, false), "the kernel sends it all again");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_journal_of_a_later_format_is_refused_and_left_as_it_is() {
        let file = file().unwrap();
        relay::Slots::open(&file).map(drop).unwrap();
        assert!(Journal::load(file.try_clone().unwrap(), InFlight::Auto).is_ok());
        let length = file.metadata().unwrap().len();
        // Its files may have another length too.
        for length in [length, 64] {
            file.set_len(length).unwrap();
            file.write_all_at(&0x4c4a_0002_u32.to_ne_bytes(), 0).unwrap();
            let told = Journal::load(file.try_clone().unwrap(), InFlight::Auto).unwrap_err().to_string();
            assert!(told.contains("format 2") && told.contains("up to 1"), "{told}");
            let mut mark = [0; 4];
            file.read_exact_at(&mut mark, 0).unwrap();
            assert_eq!((u32::from_ne_bytes(mark), file.metadata().unwrap().len()), (0x4c4a_0002, length));
        }
    }
}
