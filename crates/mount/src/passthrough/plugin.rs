//! Registers through the node plugin, over its unix socket. The plugin may be away or come back at any time; what was
//! registered stays meanwhile.

use super::{Backings, RegisterError};
use crate::asker::Asker;
use larder_fuse::protocol::backing::{Reply, Request};
use std::{
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Between two attempts to have an id forgotten.
const RETRY: Duration = Duration::from_secs(5);

/// The node plugin, asked about one FUSE connection.
#[derive(Debug)]
pub(crate) struct Plugin {
    asker: Arc<Asker<Request, Reply>>,
    unused: mpsc::UnboundedSender<u32>,
}

impl Plugin {
    /// `connection` is a duplicate of the descriptor that is served. Ids to forget are told by a task of its own, so that nobody
    /// waits for it; it ends with this. There are never more of them than files were open.
    pub(crate) fn new(socket: PathBuf, connection: OwnedFd, runtime: &tokio::runtime::Handle) -> Self {
        let asker = Arc::new(Asker::with_greeting(socket, Request::Attach {}, connection));
        let (unused, waiting) = mpsc::unbounded_channel();
        runtime.spawn(forget(Arc::clone(&asker), waiting));
        Self { asker, unused }
    }
}

impl Backings for Plugin {
    fn register(
        &self,
        file: Arc<dyn AsFd + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Result<u32, RegisterError>> + Send + '_>> {
        Box::pin(async move {
            match self.asker.ask(&Request::Register {}, Some(file.as_fd())).await {
                Ok((Reply::Registered { id }, _)) => Ok(id),
                Ok((Reply::Error { errno }, _)) => Err(RegisterError::Refused(io::Error::from_raw_os_error(errno))),
                Ok((reply, _)) => Err(RegisterError::Unreachable(format!("the node plugin answered {reply:?}"))),
                Err(e) => Err(RegisterError::Unreachable(e.to_string())),
            }
        })
    }

    fn unregister(&self, id: u32) {
        // Fails only when the task is gone, and it ends with this or with the process.
        let _ = self.unused.send(id);
    }
}

async fn forget(asker: Arc<Asker<Request, Reply>>, mut waiting: mpsc::UnboundedReceiver<u32>) {
    while let Some(id) = waiting.recv().await {
        // An id that is not forgotten keeps its file's space on the disk.
        while let Err(error) = asker.ask(&Request::Unregister { id }, None).await {
            tracing::debug!(id, %error, "forget backing file; trying again");
            // The mount is over: the connection takes its ids along.
            if waiting.is_closed() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
