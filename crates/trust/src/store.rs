//! Credentials in a file, so that a worker that starts while the operator is away serves as before.
//!
//! The file lies beside the data that they give access to, readable to its owner alone: who can read it can read the data.

use crate::{Bundle, BundleError, Credentials, CredentialsError, Held, Leaf, LeafError, leaf, now};
use larder_io::replace::{PowerLoss, Readers, replace};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why there are no credentials in a file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("read credentials in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// Not whole.
    #[error("credentials in {} are not whole: {source}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Too old.
    #[error("credentials in {} have expired", .0.display())]
    Expired(PathBuf),
    /// Not signed by anyone.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No leaf.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// Not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    leaf: leaf::Stored,
    bundle: String,
}

/// What an earlier process left, if it is still valid; `None` when there is no file. Blocks.
///
/// # Errors
/// See [`StoreError`].
pub fn load(path: &Path) -> Result<Option<Credentials>, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Read { path: path.to_owned(), source }),
    };
    let stored: Stored = serde_json::from_slice(&text).map_err(|source| StoreError::Text { path: path.to_owned(), source })?;
    let leaf = Leaf::stored(&stored.leaf)?;
    if leaf.not_after() <= now() {
        return Err(StoreError::Expired(path.to_owned()));
    }
    Ok(Some(Credentials::new(leaf, Bundle::from_pem(&stored.bundle)?)?))
}

/// Writes the newest ones into the file, again and again. Ends when there will be no others.
pub async fn keep(mut held: Held, path: PathBuf) {
    loop {
        if let Ok(credentials) = held.now() {
            let stored = Stored { leaf: credentials.leaf().store(), bundle: credentials.bundle().to_pem() };
            let to = path.clone();
            let saved = tokio::task::spawn_blocking(move || save(&to, &stored)).await;
            match saved.unwrap_or_else(|e| Err(io::Error::other(e))) {
                Ok(()) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "credentials are not stored"),
            }
        }
        if !held.changed().await {
            return;
        }
    }
}

fn save(path: &Path, stored: &Stored) -> io::Result<()> {
    replace(path, &serde_json::to_vec_pretty(stored)?, Readers::Owner, PowerLoss::KeepsOne)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, testing::Ca};
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn what_was_kept_is_loaded_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        assert!(load(&path).unwrap().is_none());
        let ca = Ca::new();
        let (sender, held) = Held::new();
        sender.send_replace(Some(ca.credentials(&Identity::Mounter { node: "gpu-1".into() }).into()));
        drop(sender);
        keep(held.clone(), path.clone()).await;
        assert_eq!(load(&path).unwrap().unwrap().leaf(), held.now().unwrap().leaf());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_has_expired_or_is_not_whole_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        fs::write(&path, b"{\"leaf\":").unwrap();
        assert!(matches!(load(&path), Err(StoreError::Text { .. })));
        let ca = Ca::with_leaf(std::time::Duration::ZERO);
        let (sender, held) = Held::new();
        sender.send_replace(Some(ca.credentials(&Identity::Operator).into()));
        drop(sender);
        keep(held, path.clone()).await;
        assert!(matches!(load(&path), Err(StoreError::Expired(_))));
    }
}
