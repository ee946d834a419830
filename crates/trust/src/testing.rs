//! A CA for tests of other crates.

use crate::{Authority, Bundle, Credentials, Held, Identity, Lifetimes, MountToken, Security, now};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// A CA that signs what a test asks for.
pub struct Ca {
    authority: Authority,
    lifetimes: Lifetimes,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    /// With the lifetimes of an installation.
    #[must_use]
    pub fn new() -> Self {
        Self::with_leaf(Lifetimes::default().leaf)
    }

    /// With certificates that are valid so long.
    #[must_use]
    pub fn with_leaf(leaf: Duration) -> Self {
        Self::with(Lifetimes { leaf, ..Lifetimes::default() })
    }

    /// With mount tokens that are valid so long.
    #[must_use]
    pub fn with_token(token: Duration) -> Self {
        Self::with(Lifetimes { token, ..Lifetimes::default() })
    }

    fn with(lifetimes: Lifetimes) -> Self {
        Self { authority: Authority::generate(&lifetimes, now()).expect("a CA"), lifetimes }
    }

    /// Its certificate.
    ///
    /// # Panics
    /// When the CA does not work.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        Bundle::new(vec![self.authority.certificate().clone()]).expect("a bundle")
    }

    /// New ones.
    ///
    /// # Panics
    /// When the CA does not work.
    #[must_use]
    pub fn credentials(&self, identity: &Identity) -> Credentials {
        let leaf = self.authority.leaf(identity, &self.lifetimes).expect("a leaf");
        Credentials::new(leaf, self.bundle()).expect("credentials")
    }

    /// New ones, held; the sender is for renewals.
    #[must_use]
    pub fn security(&self, identity: &Identity) -> (watch::Sender<Option<Arc<Credentials>>>, Security) {
        let (sender, held) = Held::new();
        sender.send_replace(Some(self.credentials(identity).into()));
        (sender, Security::Mutual(held))
    }

    /// For the mounter of a node.
    ///
    /// # Panics
    /// When these are no names.
    #[must_use]
    pub fn token(&self, dataset: &str, node: &str) -> MountToken {
        self.authority.mount_token(dataset, node, &self.lifetimes).expect("a token")
    }
}
