//! The CA of the daemons: keys in the Secret `larder-authority`, certificates in the ConfigMap of the same name.
//!
//! ```text
//! Secret, ConfigMap ──► keep (the leader writes) ──► signer ──► serve: Issue, MountToken ◄──gRPC── daemons
//!                              │                                    │
//!                              ▼                                    ▼
//!                     own certificate, as the operator     review: whose token is it? what is its pod?
//! ```
//!
//! Every operator reads the Secret, has a certificate and issues others; only the leader makes CAs. So two at once sign with the
//! same key, and a daemon may ask either.

mod keep;
mod review;
mod serve;

use crate::settings::Settings;
use larder_trust::{Held, Kept, Lifetimes, Security};
use std::sync::Arc;
use tokio::{sync::watch, task::JoinHandle};

/// Keeps CA and own certificate; ends with it.
pub(crate) struct Keeper {
    client: kube::Client,
    settings: Settings,
    leads: watch::Sender<bool>,
    kept: watch::Receiver<Option<Arc<Kept>>>,
    held: Held,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Begins to keep them.
    pub(crate) fn start(client: &kube::Client, settings: &Settings) -> Self {
        let (leads, led) = watch::channel(false);
        let (sender, kept) = watch::channel(None);
        let (certified, held) = Held::new();
        let keep = keep::Keep::new(client.clone(), &settings.namespace, Lifetimes::default(), certified, sender);
        let task = tokio::spawn(keep.run(led));
        Self { client: client.clone(), settings: settings.clone(), leads, kept, held, task }
    }

    /// This operator leads from now on; how it talks to workers.
    pub(crate) fn leads(&self) -> Security {
        self.leads.send_replace(true);
        self.security()
    }

    fn security(&self) -> Security {
        Security::Mutual(self.held.clone())
    }
}
