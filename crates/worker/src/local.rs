//! Answers to the mounter of this node: descriptors of complete files and catalogs.

use crate::{
    catalogs::Open,
    worker::{Located, Worker, locate},
};
use larder_core::{catalog::CatalogError, names::is_digest};
use larder_fuse::{
    fdpass::{Conn, FdPassError, Listener},
    protocol::worker::{Reply, Request},
};
use std::{fs::File, io, os::fd::AsFd as _, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Connections at a time: a few for each mount of the node, of which there are some hundreds at most. One that tells of reads
/// lasts as long as its mount.
const CONNECTIONS: usize = 4096;
/// Files told in one message, so that it is no longer than one may be.
const ARRIVALS: usize = 2048;

/// Serves until it is dropped.
pub(crate) async fn serve(worker: Arc<Worker>, listener: Listener) {
    // The talks end with it: they hold the worker, whose folder the next one waits for.
    let over = CancellationToken::new();
    let _guard = over.clone().drop_guard();
    let talk = |conn| {
        let (worker, over) = (Arc::clone(&worker), over.clone());
        async move { over.run_until_cancelled(talk(&worker, &conn)).await.unwrap_or(Ok(())) }
    };
    listener.serve(CONNECTIONS, talk).await;
}

async fn talk(worker: &Arc<Worker>, conn: &Conn) -> Result<(), FdPassError> {
    while let Some((request, _)) = conn.request::<Request>().await? {
        let (reply, file) = match request {
            Request::Open { snapshot, inode } => open(worker, &snapshot, inode).await,
            Request::Catalog { digest } => catalog(worker, &digest).await,
            Request::Reads { snapshot, files } => return follow(worker, conn, snapshot.into(), files).await,
        };
        conn.send(&reply, file.as_ref().map(File::as_fd)).await?;
    }
    Ok(())
}

/// Takes reports of what was read elsewhere, and tells what has come here since.
async fn follow(worker: &Worker, conn: &Conn, snapshot: Arc<str>, files: Vec<(u64, u64)>) -> Result<(), FdPassError> {
    let mut arrivals = worker.kept.arrivals();
    worker.kept.told(&snapshot, files);
    loop {
        tokio::select! {
            message = conn.recv() => match message? {
                Some((Request::Reads { files, .. }, _)) => worker.kept.told(&snapshot, files),
                _ => return Ok(()),
            },
            first = arrivals.recv() => {
                // Too many to be told one by one: the end of the connection says that.
                let Ok(first) = first else { return Ok(()) };
                let more = std::iter::from_fn(|| arrivals.try_recv().ok()).take(ARRIVALS - 1);
                let inodes: Vec<u64> =
                    std::iter::once(first).chain(more).filter(|a| a.snapshot == snapshot).map(|a| a.inode).collect();
                if !inodes.is_empty() {
                    conn.send(&Reply::Arrived { inodes }, None).await?;
                }
            }
        }
    }
}

pub(crate) async fn open(worker: &Arc<Worker>, snapshot: &str, inode: u64) -> (Reply, Option<File>) {
    let error = |text: String| (Reply::Error(text), None);
    if worker.erased.is_cancelled() {
        return error("the dataset was erased from this node".to_owned());
    }
    let Some(catalog) = worker.catalogs.get(snapshot) else {
        worker.catalogs.wanted.ask(snapshot);
        // It comes; until then reads go to the peers.
        return (Reply::Absent { owner: true }, None);
    };
    let task = Arc::clone(worker);
    match tokio::task::spawn_blocking(move || open_now(&task, &catalog, inode)).await {
        Ok(Ok(Some((_, Some(file))))) => (Reply::File {}, Some(file)),
        Ok(Ok(Some((at, None)))) => match worker.cache.open_complete(&at.key).await {
            Some(file) => (Reply::File {}, Some(file)),
            // One that is here and not checked yet may be asked for again soon.
            None => (Reply::Absent { owner: worker.cache.contains(&at.key) || worker.holds_all(&at.key, at.size) }, None),
        },
        Ok(Ok(None)) => error(format!("inode {inode} of snapshot {snapshot} is no file")),
        Ok(Err(e)) => error(format!("look up inode {inode} of snapshot {snapshot}: {e}")),
        Err(e) => error(format!("look up inode {inode} of snapshot {snapshot}: {e}")),
    }
}

/// A file of a catalog, and its content if it is here and needs no more than to be opened. Blocks for the disk only.
pub(crate) fn open_now(worker: &Worker, catalog: &Open, inode: u64) -> Result<Option<(Located, Option<File>)>, CatalogError> {
    let located = inode.checked_sub(1).map_or(Ok(None), |index| locate(catalog, index))?;
    Ok(located.map(|at| {
        let file = worker.cache.open_now(&at.key);
        (at, file)
    }))
}

async fn catalog(worker: &Arc<Worker>, digest: &str) -> (Reply, Option<File>) {
    if !is_digest(digest) || worker.catalogs.get(digest).is_none() {
        worker.catalogs.wanted.ask(digest);
        return (Reply::Absent { owner: false }, None);
    }
    let path = worker.catalogs.path(digest);
    match tokio::task::spawn_blocking(move || File::open(path)).await.unwrap_or_else(|e| Err(io::Error::other(e))) {
        Ok(file) => (Reply::File {}, Some(file)),
        Err(e) => (Reply::Error(format!("open catalog {digest}: {e}")), None),
    }
}
