//! Registers through the node plugin, over its unix socket. The plugin may be away or come back at any time; what was
//! registered stays meanwhile.

use super::{Backings, RegisterError};
use crate::asker::Asker;
use larder_fuse::protocol::backing::{Reply, Request};
use std::{
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
};

/// The node plugin, asked about one FUSE connection.
#[derive(Debug)]
pub(crate) struct Plugin(Asker<Request, Reply>);

impl Plugin {
    /// `connection` is a duplicate of the descriptor that is served.
    pub(crate) fn new(socket: PathBuf, connection: OwnedFd) -> Self {
        Self(Asker::with_greeting(socket, Request::Attach {}, connection))
    }

    async fn ask(&self, request: Request, file: Option<BorrowedFd<'_>>) -> Result<Reply, RegisterError> {
        match self.0.ask(&request, file).await {
            Ok((Reply::Error { errno }, _)) => Err(RegisterError::Refused(io::Error::from_raw_os_error(errno))),
            Ok((reply, _)) => Ok(reply),
            Err(e) => Err(RegisterError::Unreachable(e.to_string())),
        }
    }
}

fn unexpected(reply: &Reply) -> RegisterError {
    RegisterError::Unreachable(format!("the node plugin answered {reply:?}"))
}

impl Backings for Plugin {
    fn register(
        &self,
        file: Arc<dyn AsFd + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Result<u32, RegisterError>> + Send + '_>> {
        Box::pin(async move {
            match self.ask(Request::Register {}, Some(file.as_fd())).await? {
                Reply::Registered { id } => Ok(id),
                reply => Err(unexpected(&reply)),
            }
        })
    }

    fn unregister(&self, id: u32) -> Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send + '_>> {
        Box::pin(async move {
            match self.ask(Request::Unregister { id }, None).await? {
                Reply::Unregistered {} => Ok(()),
                reply => Err(unexpected(&reply)),
            }
        })
    }
}
