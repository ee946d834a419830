//! Registers backing files for the mounter, which serves FUSE connections but has no right to.
//!
//! Holds nothing beyond a socket connection: the FUSE descriptor that came over it goes with it. What is registered belongs to the
//! FUSE connection, and outlives this process and the mounter.

use larder_core::names::MOUNTER_UID;
use larder_fuse::{
    backing, device,
    fdpass::{Conn, FdPassError, Listener},
    protocol::backing::{Reply, Request},
};
use nix::{
    errno::Errno,
    unistd::{Gid, Uid, chown},
};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Connections at a time: a few for each mount of the node, of which there are some hundreds at most.
const CONNECTIONS: usize = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackingError {
    #[error(transparent)]
    Listen(#[from] FdPassError),
    #[error("give {} to the mounter: {source}", path.display())]
    Owner { path: PathBuf, source: io::Error },
}

/// The socket, for the mounter and for root.
pub(crate) fn listen(path: &Path) -> Result<Listener, BackingError> {
    let listener = Listener::bind(path, &[MOUNTER_UID, Uid::effective().as_raw()], 0o600)?;
    if Uid::effective().is_root() {
        chown(path, Some(Uid::from_raw(MOUNTER_UID)), Some(Gid::from_raw(MOUNTER_UID)))
            .map_err(|e| BackingError::Owner { path: path.to_owned(), source: e.into() })?;
    }
    Ok(listener)
}

/// Serves until the shutdown.
pub(crate) async fn serve(listener: Listener, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(listener.serve(CONNECTIONS, talk)).await;
}

async fn talk(conn: Conn) -> Result<(), FdPassError> {
    let mut connection = None;
    while let Some((request, fd)) = conn.request::<Request>().await? {
        let reply = answer(&mut connection, &request, fd).unwrap_or_else(|e| {
            tracing::debug!(?request, error = %e, "backing file");
            Reply::Error { errno: e.raw_os_error().unwrap_or(Errno::EPROTO as i32) }
        });
        let sent = conn.send(&reply, None).await;
        if let (Err(_), Reply::Registered { id }, Some(fuse)) = (&sent, &reply, &connection) {
            // The mounter gave up waiting and will never know of it: it would keep the file's space until the mount ends.
            backing::unregister(fuse, *id).unwrap_or_else(|error| tracing::warn!(id, %error, "forget a backing file"));
        }
        sent?;
    }
    Ok(())
}

/// The ioctls wait for nothing but the kernel's own locks.
fn answer(connection: &mut Option<OwnedFd>, request: &Request, fd: Option<OwnedFd>) -> io::Result<Reply> {
    let senseless = || io::Error::from(Errno::EPROTO);
    match (request, fd, &connection) {
        (Request::Attach {}, Some(fuse), None) => {
            device::check(&fuse).map_err(|_| senseless())?;
            *connection = Some(fuse);
            Ok(Reply::Attached {})
        }
        (Request::Register {}, Some(file), Some(fuse)) => Ok(Reply::Registered { id: backing::register(fuse, file)? }),
        (Request::Unregister { id }, None, Some(fuse)) => {
            match backing::unregister(fuse, *id) {
                // Asked again after an answer that was lost.
                Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                result => result?,
            }
            Ok(Reply::Unregistered {})
        }
        _ => Err(senseless()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::fdpass::testing;
    use std::{fs::File, os::fd::AsFd as _};

    async fn ask(conn: &Conn, request: Request, fd: Option<&File>) -> Reply {
        conn.send(&request, fd.map(|f| f.as_fd())).await.unwrap();
        conn.recv().await.unwrap().unwrap().0
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_and_the_talk_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.sock");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listen(&path).unwrap(), stop.clone()));
        let conn = Conn::connect(&path).await.unwrap();
        let file = tempfile::tempfile().unwrap();
        let eproto = Reply::Error { errno: libc::EPROTO };
        assert_eq!(ask(&conn, Request::Register {}, Some(&file)).await, eproto, "not attached");
        assert_eq!(ask(&conn, Request::Attach {}, None).await, eproto, "no descriptor");
        assert_eq!(ask(&conn, Request::Attach {}, Some(&file)).await, eproto, "not FUSE");
        if let Ok(fuse) = File::options().read(true).write(true).open("/dev/fuse") {
            assert_eq!(ask(&conn, Request::Attach {}, Some(&fuse)).await, Reply::Attached {});
            assert_eq!(ask(&conn, Request::Attach {}, Some(&fuse)).await, eproto, "twice");
            // A device that is not mounted has no backing files.
            assert!(matches!(ask(&conn, Request::Register {}, Some(&file)).await, Reply::Error { .. }));
        }
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn whatever_a_peer_sends_costs_no_descriptor_and_no_other_peer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.sock");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listen(&path).unwrap(), stop.clone()));
        let good = r#"{"unregister":{"id":1}}"#;
        testing::misbehave(&path, good).await;
        testing::be_a_stranger(&path, good).await;
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_hung_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.sock");
        let _serving = tokio::spawn(serve(listen(&path).unwrap(), CancellationToken::new()));
        testing::say_nothing(&path).await;
    }
}
