//! The mounter's socket: one request, one reply, in turns.

use super::mounts::{MountError, Mounts};
use larder_fuse::{
    fdpass::{Conn, FdPassError, Listener},
    protocol::mounter::{Reply, Request},
};
use std::{os::fd::OwnedFd, sync::Arc};

/// Connections at a time. The node plugin opens one per publish; the kubelet starts a few dozen pods at once.
const CONNECTIONS: usize = 64;

/// Serves for ever.
pub(super) async fn serve(listener: Listener, mounts: Arc<Mounts>) {
    listener.serve(CONNECTIONS, |conn| talk(conn, Arc::clone(&mounts))).await;
}

async fn talk(conn: Conn, mounts: Arc<Mounts>) -> Result<(), FdPassError> {
    loop {
        let reply = match conn.request::<Request>().await {
            Ok(None) => return Ok(()),
            Ok(Some((request, fd))) => answer(&mounts, request, fd).await,
            Err(FdPassError::Decode(error)) => Reply::Error {
                retry: false,
                message: format!(
                    "that is no request of release {}, which this mounter is of: {error}",
                    larder_telemetry::version()
                ),
            },
            Err(error) => return Err(error),
        };
        conn.send(&reply, None).await?;
    }
}

async fn answer(mounts: &Arc<Mounts>, request: Request, fd: Option<OwnedFd>) -> Reply {
    let result = match request {
        Request::Prepare(mount) => mounts.prepare(mount).await.map(|()| Reply::Ready {}),
        Request::Serve(mount) => match fd {
            Some(fd) => mounts.serve(mount, fd).await.map(|()| Reply::Serving {}),
            None => Err(MountError::NoDescriptor(mount.identity)),
        },
        Request::Permit { dataset_uid, token } => mounts.permit(&dataset_uid, &token).map(|()| Reply::Permitted {}),
        Request::List {} => Ok(Reply::Mounts(mounts.list())),
        Request::Forget { identity } => {
            mounts.forget(&identity);
            Ok(Reply::Forgotten {})
        }
    };
    // The node plugin logs it and tells the kubelet.
    result.unwrap_or_else(|e| Reply::Error { retry: e.retry(), message: e.to_string() })
}
