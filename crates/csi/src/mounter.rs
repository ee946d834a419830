//! Talk with the mounter of this node.

use larder_fuse::{
    fdpass::{Conn, FdPassError},
    protocol::mounter::{Mount, Reply, Request},
};
use std::{
    collections::BTreeSet,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// Why the mounter did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MounterError {
    #[error("reach the mounter of this node: {0}; is its pod (DaemonSet larder-mounter) running?")]
    Away(FdPassError),
    #[error("mounter of this node at {} hung up", .0.display())]
    HungUp(PathBuf),
    #[error("mounter of this node did not answer within {0:?}")]
    Silent(Duration),
    #[error("mounter: {0}")]
    NotNow(String),
    #[error("mounter refused: {0}")]
    Refused(String),
    #[error("mounter gave an unexpected answer: {0:?}")]
    Unexpected(Reply),
}

impl MounterError {
    /// May the same succeed later?
    pub(crate) fn retry(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unexpected(_))
    }
}

/// The mounter behind its socket.
#[derive(Clone, Debug)]
pub(crate) struct Mounter {
    socket: PathBuf,
}

impl Mounter {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Makes it ready to serve; nothing is mounted for it yet.
    pub(crate) async fn prepare(&self, mount: &Mount, patience: Duration) -> Result<(), MounterError> {
        match self.ask(&Request::Prepare(mount.clone()), None, patience).await? {
            Reply::Ready {} => Ok(()),
            other => Err(MounterError::Unexpected(other)),
        }
    }

    /// Hands the descriptor over.
    pub(crate) async fn serve(&self, mount: &Mount, fuse: BorrowedFd<'_>, patience: Duration) -> Result<(), MounterError> {
        match self.ask(&Request::Serve(mount.clone()), Some(fuse), patience).await? {
            Reply::Serving {} => Ok(()),
            other => Err(MounterError::Unexpected(other)),
        }
    }

    /// Lets it read a dataset.
    pub(crate) async fn permit(&self, dataset_uid: &str, token: &str, patience: Duration) -> Result<(), MounterError> {
        let request = Request::Permit { dataset_uid: dataset_uid.to_owned(), token: token.to_owned() };
        match self.ask(&request, None, patience).await? {
            Reply::Permitted {} => Ok(()),
            other => Err(MounterError::Unexpected(other)),
        }
    }

    /// Identities that it serves.
    pub(crate) async fn served(&self, patience: Duration) -> Result<BTreeSet<String>, MounterError> {
        match self.ask(&Request::List {}, None, patience).await? {
            Reply::Mounts(mounts) => Ok(mounts.into_iter().map(|mount| mount.identity).collect()),
            other => Err(MounterError::Unexpected(other)),
        }
    }

    /// Takes `prepare` back.
    pub(crate) async fn forget(&self, identity: &str, patience: Duration) -> Result<(), MounterError> {
        let request = Request::Forget { identity: identity.to_owned() };
        match self.ask(&request, None, patience).await? {
            Reply::Forgotten {} => Ok(()),
            other => Err(MounterError::Unexpected(other)),
        }
    }

    async fn ask(&self, request: &Request, fd: Option<BorrowedFd<'_>>, patience: Duration) -> Result<Reply, MounterError> {
        let talk = async {
            let conn = Conn::connect(&self.socket).await.map_err(MounterError::Away)?;
            conn.send(request, fd).await.map_err(MounterError::Away)?;
            match conn.recv().await.map_err(MounterError::Away)? {
                Some((Reply::Error { retry: true, message }, _)) => Err(MounterError::NotNow(message)),
                Some((Reply::Error { retry: false, message }, _)) => Err(MounterError::Refused(message)),
                Some((reply, _)) => Ok(reply),
                None => Err(MounterError::HungUp(self.socket.clone())),
            }
        };
        tokio::time::timeout(patience, talk).await.unwrap_or(Err(MounterError::Silent(patience)))
    }
}
