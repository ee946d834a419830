//! Mount tokens of this node: asked of the operator when a dataset is mounted, given to the mounter, renewed long before they
//! expire, kept in a file.
//!
//! A token of days outlives an absence of the operator. With the file, also a plugin that starts meanwhile mounts what was mounted
//! on this node before.

use crate::mounter::{Mounter, MounterError};
use larder_io::replace::{PowerLoss, Readers, replace};
use larder_trust::{Bundle, IssueError, Issuer, MountToken, now};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;

/// Between looks at what has to be renewed.
pub(crate) const LOOK: Duration = Duration::from_secs(600);
/// A token that has less than this left is renewed. They are given for seven days, so this is daily.
const RENEW: i64 = 6 * DAY;
/// A token that has less left is given to a mount only when there is no other.
const SPARE: i64 = DAY;
const DAY: i64 = 24 * 3600;
/// Longest wait in the background for the operator, and for the mounter.
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
        let token = match self.held(dataset_uid) {
            Some((token, left)) if left > SPARE => token,
            // Half of the time, because the mounter has to be told too.
            Some((token, _)) => self.issue(dataset_uid, patience / 2).await.unwrap_or(token),
            None => self.issue(dataset_uid, patience).await?,
        };
        self.give(dataset_uid, &token, patience).await
    }

    /// The token that is here and the seconds that it has left, if workers will take it.
    fn held(&self, dataset_uid: &str) -> Option<(String, i64)> {
        let text = self.tokens.lock().get(dataset_uid).cloned()?;
        let token = MountToken::parse(&text).ok()?;
        let left = token.expiry() - now();
        // The CA may be another one since: the operator's Secret was lost, or Larder installed anew.
        let vouched_for = self.bundle().is_none_or(|bundle| token.is_vouched_for(&bundle));
        (left > 0 && vouched_for).then_some((text, left))
    }

    fn bundle(&self) -> Option<Bundle> {
        Bundle::from_pem(self.bundle.borrow().as_ref()?).ok()
    }

    /// Renews the tokens of these datasets that are due, and forgets those of others.
    pub(crate) async fn renew(&self, datasets: &BTreeSet<String>) {
        self.tokens.lock().retain(|dataset, token| datasets.contains(dataset) || !is_over(token));
        for dataset in datasets {
            if self.held(dataset).is_some_and(|(_, left)| left > RENEW) {
                continue;
            }
            let renewed = match self.issue(dataset, PATIENCE).await {
                Ok(token) => self.give(dataset, &token, PATIENCE).await,
                Err(error) => Err(error),
            };
            if let Err(error) = renewed {
                tracing::warn!(%error, "mount token is not renewed; trying again");
            }
        }
    }

    async fn issue(&self, dataset_uid: &str, patience: Duration) -> Result<String, PermitError> {
        let issue = async { self.issuer.mount_token(&self.bundle().ok_or(IssueError::NoBundle)?, dataset_uid).await };
        let dataset_uid = || dataset_uid.to_owned();
        let issued = tokio::time::timeout(patience, issue).await;
        let issued = issued.map_err(|_| PermitError::Silent { dataset_uid: dataset_uid(), patience })?;
        let token = issued.map_err(|source| PermitError::Issue { dataset_uid: dataset_uid(), source })?;
        self.tokens.lock().insert(dataset_uid(), token.clone());
        self.save();
        Ok(token)
    }

    async fn give(&self, dataset_uid: &str, token: &str, patience: Duration) -> Result<(), PermitError> {
        let given = self.mounter.permit(dataset_uid, token, patience).await;
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

fn is_over(token: &str) -> bool {
    MountToken::parse(token).map_or(true, |token| token.expiry() <= now())
}

fn load(path: &Path) -> io::Result<Tokens> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Tokens::new()),
        Err(e) => Err(e),
    }
}

fn store(path: &Path, tokens: &Tokens) -> io::Result<()> {
    replace(path, &serde_json::to_vec_pretty(tokens)?, Readers::Owner, PowerLoss::KeepsOne)
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
    async fn permit(token: Option<String>, ca: Option<&Ca>) -> (Result<(), PermitError>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let (socket, path) = (dir.path().join("m.sock"), dir.path().join("tokens.json"));
        if let Some(token) = token {
            store(&path, &[(UID.to_owned(), token)].into()).unwrap();
        }
        let me = nix::unistd::geteuid().as_raw();
        let listener = Listener::bind(&socket, &[me], 0o600).unwrap();
        let (_sender, bundle) = watch::channel(ca.map(|ca| ca.bundle().to_pem()));
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
        // The second has so little left that the operator is asked for another first.
        for ca in [Ca::new(), Ca::with_token(Duration::from_secs(60))] {
            let token = ca.token(UID, "gpu-1").as_str().to_owned();
            for ca in [None, Some(&ca)] {
                assert_eq!(permit(Some(token.clone()), ca).await.1, Some(token.clone()));
            }
        }
    }

    #[tokio::test]
    async fn a_token_of_a_ca_that_no_longer_counts_is_not_given() {
        let token = Ca::new().token(UID, "gpu-1").as_str().to_owned();
        let error = permit(Some(token), Some(&Ca::new())).await.0.unwrap_err();
        assert!(matches!(error, PermitError::Issue { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_token_that_is_over_or_none_is_not_given_and_the_operator_is_named() {
        for token in [None, Some("no token".to_owned())] {
            let error = permit(token, None).await.0.unwrap_err().to_string();
            assert!(error.contains(UID) && error.contains("is the operator running?"), "{error}");
        }
    }
}
