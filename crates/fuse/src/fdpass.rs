//! Talk between daemons of one node: a unix socket that keeps message borders (SEQPACKET), one JSON message with at most one
//! file descriptor each way.
//!
//! Who may talk is decided by SO_PEERCRED at accept: the kernel's word, not the peer's. What arrives and is not exactly one
//! message of at most 64 KiB with at most one whole descriptor is refused, and every descriptor that came with it is closed.
//! A [`Conn`] has no state beside the socket; when either process dies the other reads the end of the stream.

mod message;
mod quick;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use message::MESSAGE_MAX;
pub(crate) use message::{check, receive};
pub use quick::QuickConn;

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::Permissions,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Semaphore,
};

/// Connections that wait for `accept`. The mounter opens a handful per node; more than this many at once is a mistake.
const BACKLOG: i32 = 64;
/// `connect` of a full backlog is tried again for this long.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// Who waits for requests hangs up on a peer that sends none for this long. Ours close what they do not need sooner.
pub const IDLE: Duration = Duration::from_secs(60);
/// Longest wait for a peer that does not take what is sent to it.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// What can go wrong between two daemons of one node.
#[derive(Debug, thiserror::Error)]
pub enum FdPassError {
    /// The socket cannot be made.
    #[error("listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens, or we may not talk to it.
    #[error("connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket broke.
    #[error("receive message: {0}")]
    Receive(io::Error),
    /// The socket broke.
    #[error("send message: {0}")]
    Send(io::Error),
    /// Longer than [`MESSAGE_MAX`].
    #[error("message is longer than {MESSAGE_MAX} bytes")]
    TooLong,
    /// More than one descriptor, or one that could not be taken over whole.
    #[error("message carries descriptors that cannot be taken: {0}")]
    Descriptors(&'static str),
    /// No message of this protocol.
    #[error("decode message: {0}")]
    Decode(serde_json::Error),
    /// It cannot be written as JSON.
    #[error("encode message: {0}")]
    Encode(serde_json::Error),
}

/// Accepts connections of chosen users.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
    allowed: Vec<u32>,
}

impl Listener {
    /// Listens on `path` with file mode `mode`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// A folder that is missing or not ours, a path longer than 107 bytes, something at the path that is no socket.
    pub fn bind(path: &Path, allowed_uids: &[u32], mode: u32) -> Result<Self, FdPassError> {
        let wrap = |source: io::Error| FdPassError::Listen { path: path.to_owned(), source };
        remove_stale(path).map_err(wrap)?;
        let bind = || -> io::Result<OwnedFd> {
            let fd = seqpacket()?;
            socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            // Before listen: nobody can have connected under another mode.
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            socket::listen(&fd, Backlog::new(BACKLOG)?)?;
            Ok(fd)
        };
        let fd = bind().map_err(wrap)?;
        let socket = register(fd).map_err(wrap)?;
        Ok(Self { socket, path: path.to_owned(), allowed: allowed_uids.to_vec() })
    }

    /// The next connection of a user that may talk to us; others are hung up on and logged.
    pub async fn accept(&self) -> Conn {
        loop {
            match self.try_accept().await {
                Ok(conn) if self.allowed.contains(&conn.peer_uid) => return conn,
                Ok(conn) => {
                    tracing::warn!(socket = %self.path.display(), uid = conn.peer_uid, "refused connection of a user that may not talk to this socket");
                }
                Err(error) => {
                    tracing::warn!(socket = %self.path.display(), %error, "accept connection");
                    // Out of descriptors or memory: without a pause this loop would take a core until that is over.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Talks with everyone who connects, with so many at a time; the others wait in the backlog. Only dropping it ends it; the
    /// talks that are under way go on.
    pub async fn serve<F>(&self, places: usize, talk: impl Fn(Conn) -> F)
    where
        F: Future<Output = Result<(), FdPassError>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(places));
        // Never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let conn = self.accept().await;
            let (uid, talk, socket) = (conn.peer_uid, talk(conn), self.path.clone());
            tokio::spawn(async move {
                if let Err(error) = talk.await {
                    tracing::warn!(socket = %socket.display(), uid, %error, "talk with another daemon of this node broke off");
                }
                drop(place);
            });
        }
    }

    async fn try_accept(&self) -> io::Result<Conn> {
        let fd = self
            .socket
            .async_io(Interest::READABLE, |s| {
                let raw = socket::accept4(s.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
                // SAFETY: accept4 has just made this descriptor; nobody else knows it.
                Ok(unsafe { OwnedFd::from_raw_fd(raw) })
            })
            .await?;
        Conn::new(fd)
    }
}

/// One connection. Requests and replies take turns; who sends when is the protocol's matter.
#[derive(Debug)]
pub struct Conn {
    socket: AsyncFd<OwnedFd>,
    peer_uid: u32,
}

impl Conn {
    /// Connects to the daemon that listens on `path`.
    ///
    /// # Errors
    /// Nobody listens, or its backlog stays full for a second.
    pub async fn connect(path: &Path) -> Result<Self, FdPassError> {
        let wrap = |source: io::Error| FdPassError::Connect { path: path.to_owned(), source };
        let deadline = tokio::time::Instant::now() + CONNECT_PATIENCE;
        loop {
            let attempt = || -> nix::Result<OwnedFd> {
                let fd = seqpacket()?;
                socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
                Ok(fd)
            };
            match attempt() {
                Ok(fd) => return Self::new(fd).map_err(wrap),
                // A full backlog; a unix socket has no event that says when there is room.
                Err(Errno::EAGAIN) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(e) => return Err(wrap(e.into())),
            }
        }
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        let peer_uid = socket::getsockopt(&fd, sockopt::PeerCredentials)?.uid();
        Ok(Self { socket: register(fd)?, peer_uid })
    }

    /// User of the process at the other end when it connected (or listened).
    #[must_use]
    pub fn peer_uid(&self) -> u32 {
        self.peer_uid
    }

    /// The next message; none when the peer has closed.
    ///
    /// # Errors
    /// Everything that is not one message within the limits. After [`FdPassError::Decode`] the connection may be used on.
    pub async fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Option<OwnedFd>)>, FdPassError> {
        let received = self.socket.async_io(Interest::READABLE, |s| message::receive(s.as_raw_fd())).await;
        let Some((bytes, fd)) = message::check(received.map_err(FdPassError::Receive)?)? else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&bytes).map_err(FdPassError::Decode)?, fd)))
    }

    /// As [`Conn::recv`], for those who serve: a peer that says nothing for [`IDLE`] has closed.
    ///
    /// # Errors
    /// As [`Conn::recv`].
    pub async fn request<T: DeserializeOwned>(&self) -> Result<Option<(T, Option<OwnedFd>)>, FdPassError> {
        tokio::time::timeout(IDLE, self.recv()).await.unwrap_or(Ok(None))
    }

    /// Sends one message. The descriptor stays the caller's; the kernel gives the peer one of its own.
    ///
    /// # Errors
    /// A message that is too long, a peer that is gone, or that takes nothing for ten seconds.
    pub async fn send<T: Serialize + Sync>(&self, value: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), FdPassError> {
        let bytes = serde_json::to_vec(value).map_err(FdPassError::Encode)?;
        if bytes.len() > MESSAGE_MAX {
            return Err(FdPassError::TooLong);
        }
        let sending = self.socket.async_io(Interest::WRITABLE, |s| message::send(s.as_raw_fd(), &bytes, fd));
        let sent = tokio::time::timeout(SEND_PATIENCE, sending).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(FdPassError::Send)
    }
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and the same, as long as the AsyncFd that owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is in the way")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
