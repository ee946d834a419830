//! The keeper's socket: each connection asks, and is answered in turn.

use crate::{metrics::Metrics, store::Store};
use larder_fuse::{
    fdpass::{Conn, FdPassError, Listener},
    protocol::keeper::{Reply, Request},
};
use parking_lot::Mutex;
use std::{os::fd::AsFd as _, path::Path, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Connections at a time; there are two that stay, and each may have a message of 64 KiB here.
const CONNECTIONS: usize = 64;
/// Who may talk is decided by its user, not by the file.
const MODE: u32 = 0o666;

/// A keeper that listens.
pub struct Keeper {
    listener: Listener,
    store: Arc<Mutex<Store>>,
}

impl Keeper {
    /// Listens on `socket`, for these users.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind(socket: &Path, users: &[u32], metrics: Metrics) -> Result<Self, FdPassError> {
        let listener = Listener::bind(socket, users, MODE)?;
        Ok(Self { listener, store: Arc::new(Mutex::new(Store::new(metrics))) })
    }

    /// Serves; when the future is dropped, all connections end and everything that is held is closed.
    pub async fn serve(self) {
        let stop = CancellationToken::new();
        let _with_this = stop.clone().drop_guard();
        let talk = |conn| {
            let (stop, store) = (stop.clone(), Arc::clone(&self.store));
            async move { stop.run_until_cancelled(talk(conn, &store)).await.unwrap_or(Ok(())) }
        };
        self.listener.serve(CONNECTIONS, talk).await;
    }
}

async fn talk(conn: Conn, store: &Mutex<Store>) -> Result<(), FdPassError> {
    loop {
        let (reply, fd) = match conn.request::<Request>().await {
            Ok(None) => return Ok(()),
            Ok(Some((request, fd))) => store.lock().answer(request, fd),
            // The reason would tell parts of the message, which may be a secret.
            Err(FdPassError::Decode(_)) => (Reply::Error { message: "that is no request of version 1".into() }, None),
            Err(error @ (FdPassError::TooLong | FdPassError::Descriptors(_))) => {
                (Reply::Error { message: error.to_string() }, None)
            }
            Err(error) => return Err(error),
        };
        conn.send(&reply, fd.as_ref().map(|fd| fd.as_fd())).await?;
    }
}
