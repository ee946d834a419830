//! The connection to the keeper, again and again.

use super::{Item, Shared};
use larder_fuse::{
    fdpass::{Conn, FdPassError},
    protocol::keeper::{Reply, Request, Value},
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    mem,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Between two attempts to connect. Nothing else waits for a unix socket, and an attempt costs some microseconds.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two comparisons with what the keeper has.
const POLL: Duration = Duration::from_secs(1);
/// Longest wait for an answer of the keeper, which waits for nothing itself.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Conn(#[from] FdPassError),
    #[error("the keeper hung up")]
    HungUp,
    #[error("the keeper did not answer within {PATIENCE:?}")]
    Silent,
    #[error("the keeper said what it was not asked")]
    Senseless,
}

/// Keeps a connection, for ever.
pub(super) async fn keep(shared: Arc<Shared>, socket: PathBuf) {
    let mut away = false;
    loop {
        let talked = match Conn::connect(&socket).await {
            Ok(conn) => Link { conn, shared: &shared, refusal: None }.talk(&mut away).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = talked
            && !mem::replace(&mut away, true)
        {
            tracing::warn!(%error, "the keeper is away; until it is back, what is held ends with the processes that hold it");
        }
        sleep(PAUSE).await;
    }
}

struct Link<'s> {
    conn: Conn,
    shared: &'s Shared,
    /// Why the keeper refused the last item that it did.
    refusal: Option<String>,
}

impl Link<'_> {
    /// Until the connection ends.
    async fn talk(&mut self, away: &mut bool) -> Result<Infallible, LinkError> {
        let mut life = self.learn().await?;
        let mut next = Instant::now() + POLL;
        loop {
            self.tell(life).await?;
            if mem::take(away) {
                tracing::info!("the keeper is back");
            }
            tokio::select! {
                () = self.shared.work.notified() => {}
                () = sleep_until(next) => {}
                unasked = self.conn.recv::<Reply>() => {
                    return Err(if unasked?.is_some() { LinkError::Senseless } else { LinkError::HungUp });
                }
            }
            if Instant::now() >= next || self.is_asked() {
                life = self.learn().await?;
                next = Instant::now() + POLL;
            }
        }
    }

    fn is_asked(&self) -> bool {
        let state = self.shared.state.lock();
        !state.is_learned(state.asked())
    }

    /// Copies what the keeper has and this process has not, and drops what others removed; which keeper it is.
    async fn learn(&mut self) -> Result<u64, LinkError> {
        let round = self.shared.state.lock().asked();
        let (life, listed) = self.list().await?;
        let wanted = self.shared.state.lock().compare(life, &listed);
        let mut all = true;
        for key in wanted {
            all &= self.copy(life, key).await?;
        }
        if all {
            self.shared.state.lock().learned(round);
        }
        self.shared.progress.send_replace(());
        Ok(life)
    }

    async fn list(&mut self) -> Result<(u64, BTreeMap<String, u64>), LinkError> {
        let mut listed = BTreeMap::new();
        loop {
            let after = listed.last_key_value().map(|(key, _): (&String, _)| key.clone()).unwrap_or_default();
            match self.ask(&Request::Keys { after }, None).await? {
                (Reply::Keys { life, keys }, None) if keys.is_empty() => return Ok((life, listed)),
                (Reply::Keys { keys, .. }, None) => listed.extend(keys),
                _ => return Err(LinkError::Senseless),
            }
        }
    }

    /// False if this process cannot take it.
    async fn copy(&mut self, life: u64, key: String) -> Result<bool, LinkError> {
        match self.ask(&Request::Get { key: key.clone() }, None).await {
            Ok((Reply::Item { stamp, value }, fd)) => {
                let item = Item { value: value.0, fd: fd.map(Arc::new) };
                self.shared.state.lock().copy(life, key, stamp, item);
                Ok(true)
            }
            // Removed meanwhile.
            Ok((Reply::Absent {}, None)) => Ok(true),
            Ok(_) => Err(LinkError::Senseless),
            // The limit of open files, most likely.
            Err(LinkError::Conn(error @ FdPassError::Descriptors(_))) => {
                tracing::warn!(key, %error, "copy what the keeper holds");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells the keeper what was put and removed here. Removals first: they make room.
    async fn tell(&mut self, life: u64) -> Result<(), LinkError> {
        let (removals, puts) = {
            let state = self.shared.state.lock();
            (state.untold(), state.unkept())
        };
        for (key, stamp) in removals {
            match self.ask(&Request::Remove { key: key.clone(), stamp }, None).await? {
                (Reply::Removed {}, None) => self.shared.state.lock().told(&key, stamp),
                _ => return Err(LinkError::Senseless),
            }
        }
        for key in puts {
            // What was removed or replaced meanwhile is told in its turn.
            let unkept = self.shared.state.lock().unkept_item(&key);
            let Some((stamp, item)) = unkept else { continue };
            let kept = self.put(&key, stamp, item).await?;
            self.shared.state.lock().answered(&key, stamp, kept.then_some(life));
            self.shared.progress.send_replace(());
        }
        Ok(())
    }

    async fn put(&mut self, key: &str, stamp: u64, item: Item) -> Result<bool, LinkError> {
        let request = Request::Put { key: key.to_owned(), stamp, value: Value(item.value) };
        let message = match self.ask(&request, item.fd.as_ref().map(|fd| fd.as_fd())).await {
            Ok((Reply::Kept {}, None)) => return Ok(true),
            Ok((Reply::Error { message }, None)) => message,
            Ok(_) => return Err(LinkError::Senseless),
            Err(LinkError::Conn(error @ FdPassError::TooLong)) => error.to_string(),
            Err(error) => return Err(error),
        };
        // Tried again each second; told once.
        if self.refusal.as_ref() != Some(&message) {
            tracing::error!(key, message, "the keeper does not hold this; it ends with the processes that hold it");
            self.refusal = Some(message);
        }
        Ok(false)
    }

    async fn ask(&self, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<(Reply, Option<OwnedFd>), LinkError> {
        let asking = async {
            self.conn.send(request, fd).await?;
            self.conn.recv().await?.ok_or(LinkError::HungUp)
        };
        timeout(PATIENCE, asking).await.unwrap_or(Err(LinkError::Silent))
    }
}
