//! A mount namespace of this process and its children, in which mounts are seen by nobody else. For a user who is not root it
//! takes a user namespace, in which that user may mount FUSE; user and group stay what they are.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use std::{fs, io};

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error(
        "make a user namespace: {0} (this machine may forbid it: see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)"
    )]
    User(io::Error),
    #[error("make a mount namespace: {0}")]
    Mount(io::Error),
    #[error("keep user and group in the user namespace: {0}")]
    Map(io::Error),
    #[error("keep mounts in the namespace: {0}")]
    Private(io::Error),
}

/// To be called while the process has one thread: a namespace of users is a process's, and the kernel refuses it to threads.
pub(crate) fn enter() -> Result<(), NamespaceError> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| NamespaceError::Mount(e.into()))?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|e| NamespaceError::User(e.into()))?;
        // The kernel wants that before it lets an unprivileged process map its group.
        fs::write("/proc/self/setgroups", "deny").map_err(NamespaceError::Map)?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).map_err(NamespaceError::Map)?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).map_err(NamespaceError::Map)?;
    }
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(|e| NamespaceError::Private(e.into()))
}
