//! Opens what lies beneath a folder, and nothing else: the kernel checks each step, whoever moves or links what meanwhile.

use crate::{Error, Reason};
use rustix::{
    fs::{CWD, Dir, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Which folders a source may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folders {
    /// Any: who names it could read it anyway.
    Any,
    /// These and what lies beneath them.
    Beneath(Vec<PathBuf>),
}

impl Default for Folders {
    /// None.
    fn default() -> Self {
        Self::Beneath(Vec::new())
    }
}

impl Folders {
    /// May a source name it?
    #[must_use]
    pub fn admit(&self, folder: &Path) -> bool {
        match self {
            Self::Any => true,
            Self::Beneath(allowed) => allowed.iter().any(|a| folder.starts_with(a)),
        }
    }

    /// Outer error: it may not be opened. Inner: it cannot be. Blocks.
    pub(super) fn open(&self, folder: &Path) -> Result<io::Result<Root>, Error> {
        let Self::Beneath(allowed) = self else {
            return Ok(open(CWD, folder, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_MAGICLINKS).map(Root));
        };
        let Some((allowed, rest)) = allowed.iter().find_map(|a| Some((a, folder.strip_prefix(a).ok()?))) else {
            let names: Vec<_> = allowed.iter().map(|a| a.display().to_string()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let text = format!(
                "source.uri file://{}/: not beneath a folder that the administrator allows (chart value fileOrigins: {names}); name one of those",
                folder.display()
            );
            return Err(Error::new(Reason::FolderNotAllowed, text));
        };
        let opened = open(CWD, allowed, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_MAGICLINKS);
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        Ok(opened.and_then(|a| open(&a, rest, OFlags::PATH | OFlags::DIRECTORY, BENEATH)).map(Root))
    }
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// Someone who moves folders about makes the kernel give up a lookup, which is then done again.
const RACES: usize = 32;

impl Root {
    /// A file, for reading. A pipe or a device that took its place is not waited for.
    pub fn file(&self, path: &str) -> io::Result<File> {
        open(&self.0, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, BENEATH).map(File::from)
    }

    /// Whatever it is, for looking at; links are followed. Opens no device.
    pub fn any(&self, path: &str) -> io::Result<File> {
        open(&self.0, path, OFlags::PATH, BENEATH).map(File::from)
    }

    /// A folder beneath it that is no link; the empty path is the root itself.
    pub fn folder(&self, path: &str) -> io::Result<Dir> {
        let path = if path.is_empty() { "." } else { path };
        let fd = open(&self.0, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?;
        Ok(Dir::new(fd)?)
    }
}

fn open(
    at: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let mut last = Errno::AGAIN;
    for _ in 0..RACES {
        match openat2(&at, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(e @ (Errno::AGAIN | Errno::INTR)) => last = e,
            opened => return Ok(opened?),
        }
    }
    Err(last.into())
}

/// Leads it out of the folder, or in a circle?
pub(super) fn leads_nowhere(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::XDEV | Errno::LOOP))
}

/// Did a server not answer?
pub(super) fn is_timeout(e: &io::Error) -> bool {
    let away = [Errno::TIMEDOUT, Errno::HOSTDOWN, Errno::HOSTUNREACH, Errno::NOTCONN, Errno::CONNREFUSED, Errno::REMOTEIO];
    e.kind() == io::ErrorKind::TimedOut || Errno::from_io_error(e).is_some_and(|e| away.contains(&e))
}
