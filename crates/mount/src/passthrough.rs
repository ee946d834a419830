//! Backing files of one FUSE connection, as the filesystem uses them.
//!
//! Registering needs a right that the mounter has not: [`Plugin`] asks the node plugin. A process that has it uses [`Direct`].

mod direct;
mod plugin;

pub use direct::Direct;
pub(crate) use plugin::Plugin;

use std::{future::Future, io, os::fd::AsFd, pin::Pin, sync::Arc};

/// What registers and forgets backing files.
pub trait Backings: Send + Sync + 'static {
    /// Registers a complete file. MUST end within about two seconds.
    ///
    /// # Errors
    /// [`RegisterError::Refused`]: this file, and most likely every other of its disk, will never be one.
    fn register(
        &self,
        file: Arc<dyn AsFd + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Result<u32, RegisterError>> + Send + '_>>;

    /// Forgets an id, whether or not there is one. MUST end within about two seconds.
    ///
    /// # Errors
    /// Nobody could be asked: the id may be there still.
    fn unregister(&self, id: u32) -> Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send + '_>>;
}

/// Why a file is not a backing file.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The kernel says no.
    #[error("register or forget backing file: {0}")]
    Refused(io::Error),
    /// Nobody could ask it.
    #[error("register or forget backing file: {0}")]
    Unreachable(String),
}
