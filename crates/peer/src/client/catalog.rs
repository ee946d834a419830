//! Fetches a catalog by its digest.

use super::{Client, http::Failure};
use crate::Roster;
use ::http::StatusCode;
use larder_core::catalog::{Arrival, CatalogError};
use std::{
    fs::File,
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Why a catalog is not there.
#[derive(Debug, thiserror::Error)]
pub enum CatalogFetchError {
    /// No worker that can be asked has it.
    #[error("fetch catalog {digest}: no worker has it; answers: {answers}")]
    Nowhere {
        /// Digest of the snapshot.
        digest: String,
        /// What each node said.
        answers: String,
    },
    /// The own disk.
    #[error("write catalog {path}: {source}; free space on this disk or replace it")]
    Disk {
        /// File that was being written.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

enum Refused {
    ByPeer(String),
    ByDisk(CatalogFetchError),
}

impl Client {
    /// Fetches the catalog from any worker that has it, verifies it whole while it comes in, and puts it at `into`; or leaves
    /// nothing there.
    ///
    /// Everyone with an address is asked, the worker of this node first: a snapshot spreads before its workers are members.
    ///
    /// # Errors
    /// See [`CatalogFetchError`].
    pub async fn catalog(
        &self,
        roster: &Roster,
        dataset_uid: &str,
        digest: &str,
        into: &Path,
    ) -> Result<(), CatalogFetchError> {
        let own = self.inner.node.as_str();
        let (before, after): (Vec<_>, Vec<_>) = roster.addresses.iter().partition(|(node, _)| node.as_str() <= own);
        // From the own place on: nodes that start together do not all ask the same one.
        let own_first = before.iter().rev().take(1).filter(|(node, _)| node.as_str() == own).copied().collect::<Vec<_>>();
        let rest = after.into_iter().chain(before.into_iter().filter(|(node, _)| node.as_str() != own));
        let mut answers = Vec::new();
        for (node, ip) in own_first.into_iter().chain(rest) {
            let address = SocketAddr::new(*ip, self.inner.options.port);
            match self.catalog_from(address, dataset_uid, digest, into).await {
                Ok(()) => return Ok(()),
                Err(Refused::ByDisk(e)) => return Err(e),
                Err(Refused::ByPeer(text)) => answers.push(format!("{node}: {text}")),
            }
        }
        if answers.is_empty() {
            answers.push("no worker has an address yet".to_owned());
        }
        Err(CatalogFetchError::Nowhere { digest: digest.to_owned(), answers: answers.join("; ") })
    }

    async fn catalog_from(&self, address: SocketAddr, uid: &str, digest: &str, into: &Path) -> Result<(), Refused> {
        let path = format!("/v1/{uid}/catalogs/{digest}");
        let peer = |f: Failure| match f {
            Failure::NoAnswer(t) | Failure::Broken(t) | Failure::Status(_, t) => Refused::ByPeer(t),
        };
        let (_, mut body) = self.inner.transport.get(address, uid, &path, None, StatusCode::OK).await.map_err(peer)?;
        let disk = |source: io::Error| Refused::ByDisk(CatalogFetchError::Disk { path: into.to_owned(), source });
        let folder = into.parent().ok_or_else(|| disk(io::ErrorKind::InvalidInput.into()))?.to_owned();
        let part = folder.join(format!(".{digest}.{}.part", PART.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        let mut guard = Part(Some(part.clone()));
        let mut file = blocking({
            let part = part.clone();
            move || File::options().write(true).create_new(true).open(part)
        })
        .await
        .map_err(disk)?;
        let unusable = |e: CatalogError| Refused::ByPeer(format!("sent what cannot be used: {e}"));
        let mut arrival = Arrival::new();
        while let Some(piece) = self.inner.transport.next(&mut body).await.map_err(peer)? {
            arrival.update(&piece).map_err(unusable)?;
            file = blocking(move || file.write_all(&piece).map(|()| file)).await.map_err(disk)?;
        }
        arrival.finish(digest).map_err(unusable)?;
        let into = into.to_owned();
        let placed = blocking(move || {
            file.sync_all()?;
            std::fs::rename(&part, &into)?;
            File::open(&folder)?.sync_all()
        });
        placed.await.map_err(disk)?;
        guard.0 = None;
        Ok(())
    }
}

/// Numbers the unfinished files of this process: two fetches of one catalog do not write into one file.
static PART: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Removes the unfinished file, also when the fetch is dropped half-way.
struct Part(Option<PathBuf>);

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(e) = std::fs::remove_file(path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %e, "remove unfinished catalog");
        }
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(f).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
