//! Mount tokens of this node: asked of the operator when a dataset is mounted, given to the mounter, renewed long before they
//! expire, kept in a file.
//!
//! A token of days outlives an absence of the operator. With the file, also a plugin that starts meanwhile mounts what was mounted
//! on this node before.

use crate::mounter::{Mounter, MounterError};
use larder_trust::{Bundle, IssueError, Issuer, MountToken, now};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;

/// Between looks at what has to be renewed.
pub(crate) const LOOK: Duration = Duration::from_secs(600);
/// A token that has less than this left is renewed. They are given for seven days, so this is daily.
const RENEW: i64 = 6 * 24 * 3600;
/// Longest wait for the mounter, and in the background for the operator.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the mounter may not read a dataset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PermitError {
    #[error("no mount token for dataset {dataset_uid}: {source}")]
    Issue { dataset_uid: String, source: IssueError },
    #[error("no mount token for dataset {dataset_uid}: no answer of the operator within {patience:?}")]
    Silent { dataset_uid: String, patience: Duration },
    #[error("give the mounter its token for dataset {dataset_uid}: {source}")]
    Mounter { dataset_uid: String, source: MounterError },
}

/// The tokens, by dataset.
type Tokens = BTreeMap<String, String>;

pub(crate) struct Permits {
    issuer: Issuer,
    bundle: watch::Receiver<Option<String>>,
    mounter: Mounter,
    path: PathBuf,
    tokens: Mutex<Tokens>,
}

impl Permits {
    /// With the tokens of the process before. Blocks for a small file.
    pub(crate) fn open(issuer: Issuer, bundle: watch::Receiver<Option<String>>, mounter: Mounter, path: &Path) -> Self {
        let tokens = load(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "mount tokens are not readable; new ones are asked for");
            Tokens::new()
        });
        Self { issuer, bundle, mounter, path: path.to_owned(), tokens: Mutex::new(tokens) }
    }

    /// Lets the mounter read a dataset, with the token that is here or a new one.
    pub(crate) async fn permit(&self, dataset_uid: &str, patience: Duration) -> Result<(), PermitError> {
        let held = self.tokens.lock().get(dataset_uid).cloned().filter(|token| left(token) > 0);
        let token = match held {
            Some(token) => token,
            None => self.issue(dataset_uid, patience).await?,
        };
        self.give(dataset_uid, &token).await
    }

    /// Renews the tokens of these datasets that are due, and forgets those of others.
    pub(crate) async fn renew(&self, datasets: &BTreeSet<String>) {
        self.tokens.lock().retain(|dataset, token| datasets.contains(dataset) || left(token) > 0);
        for dataset in datasets {
            if self.tokens.lock().get(dataset).is_some_and(|token| left(token) > RENEW) {
                continue;
            }
            let renewed = match self.issue(dataset, PATIENCE).await {
                Ok(token) => self.give(dataset, &token).await,
                Err(error) => Err(error),
            };
            if let Err(error) = renewed {
                tracing::warn!(%error, "mount token is not renewed; trying again");
            }
        }
    }

    async fn issue(&self, dataset_uid: &str, patience: Duration) -> Result<String, PermitError> {
        let issue = async {
            let bundle = self.bundle.borrow().clone().and_then(|text| Bundle::from_pem(&text).ok());
            self.issuer.mount_token(&bundle.ok_or(IssueError::NoBundle)?, dataset_uid).await
        };
        let dataset_uid = || dataset_uid.to_owned();
        let issued = tokio::time::timeout(patience, issue).await;
        let issued = issued.map_err(|_| PermitError::Silent { dataset_uid: dataset_uid(), patience })?;
        let token = issued.map_err(|source| PermitError::Issue { dataset_uid: dataset_uid(), source })?;
        self.tokens.lock().insert(dataset_uid(), token.clone());
        self.save();
        Ok(token)
    }

    async fn give(&self, dataset_uid: &str, token: &str) -> Result<(), PermitError> {
        let given = self.mounter.permit(dataset_uid, token, PATIENCE).await;
        given.map_err(|source| PermitError::Mounter { dataset_uid: dataset_uid.to_owned(), source })
    }

    /// Without the file, a plugin that starts while the operator is away has to wait for it.
    fn save(&self) {
        let tokens = self.tokens.lock();
        if let Err(error) = store(&self.path, &tokens) {
            tracing::warn!(path = %self.path.display(), %error, "mount tokens are not stored");
        }
    }
}

/// Seconds of its life; none for what is no token.
fn left(token: &str) -> i64 {
    MountToken::parse(token).map_or(0, |token| token.expiry() - now())
}

fn load(path: &Path) -> io::Result<Tokens> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Tokens::new()),
        Err(e) => Err(e),
    }
}

fn store(path: &Path, tokens: &Tokens) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec_pretty(tokens)?)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_fuse::{
        fdpass::Listener,
        protocol::mounter::{Reply, Request},
    };
    use larder_trust::testing::Ca;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    /// A mounter that takes one token, and an operator that is away.
    async fn permit(token: Option<String>) -> (Result<(), PermitError>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = (dir.path().join("m.sock"), dir.path().join("tokens.json"));
        if let Some(token) = token {
            store(&path, &[(UID.to_owned(), token)].into()).unwrap();
        }
        let me = nix::unistd::geteuid().as_raw();
        let listener = Listener::bind(&socket, &[me], 0o600).unwrap();
        let (_sender, bundle) = watch::channel(None);
        let permits = Permits::open(Issuer::new("127.0.0.1:1", &path), bundle, Mounter::new(&socket), &path);
        let taken = async {
            let conn = listener.accept().await;
            let Some((Request::Permit { token, .. }, _)) = conn.recv().await.unwrap() else { panic!("another request") };
            conn.send(&Reply::Permitted {}, None).await.unwrap();
            token
        };
        tokio::select! {
            biased;
            token = taken => (Ok(()), Some(token)),
            result = permits.permit(UID, Duration::from_secs(5)) => (result, None),
        }
    }

    #[tokio::test]
    async fn a_plugin_that_starts_without_an_operator_permits_what_was_permitted_before() {
        let token = Ca::new().token(UID, "gpu-1").as_str().to_owned();
        assert_eq!(permit(Some(token.clone())).await.1, Some(token));
    }

    #[tokio::test]
    async fn a_token_that_is_over_or_none_is_not_given_and_the_operator_is_named() {
        for token in [None, Some("no token".to_owned())] {
            let error = permit(token).await.0.unwrap_err().to_string();
            assert!(error.contains(UID) && error.contains("is the operator running?"), "{error}");
        }
    }
}
