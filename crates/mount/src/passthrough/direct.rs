//! Registers in this process, which must have CAP_SYS_ADMIN.

use super::{Backings, RegisterError};
use larder_fuse::backing;
use std::{
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
};

/// Backing files of a connection that this process may change.
#[derive(Debug)]
pub struct Direct(OwnedFd);

impl Direct {
    /// `connection` is a duplicate of the descriptor that is served.
    #[must_use]
    pub fn new(connection: OwnedFd) -> Self {
        Self(connection)
    }
}

impl Backings for Direct {
    fn register(
        &self,
        file: Arc<dyn AsFd + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Result<u32, RegisterError>> + Send + '_>> {
        // The ioctl waits for nothing but the kernel's own locks.
        Box::pin(std::future::ready(backing::register(&self.0, file.as_fd()).map_err(RegisterError::Refused)))
    }

    fn unregister(&self, id: u32) -> Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send + '_>> {
        let forgotten = match backing::unregister(&self.0, id) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(RegisterError::Refused),
        };
        Box::pin(std::future::ready(forgotten))
    }
}
