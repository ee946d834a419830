//! Who acts: of all operators of a namespace the one that holds the Lease `larder-operator`.
//!
//! ```text
//! stand by ──Lease is free, ours, or not renewed for its whole duration──► lead ──renewal fails too long, or is refused──► exit
//! ```
//!
//! Times of other machines are not trusted: a Lease has expired when *this* process saw it unchanged for its duration. Every write
//! carries the `resourceVersion` that was read, so of two that try one wins. A leader that cannot renew stops acting a third of
//! the duration before anyone else may begin. It stops by ending the process: the next one begins from what the cluster says.

use anyhow::Context as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use larder_api::labels;
use std::time::Duration;
use tokio::time::Instant;

/// Name of the Lease.
const NAME: &str = "larder-operator";
/// The values of Kubernetes' own controllers.
const DURATION: Duration = Duration::from_secs(15);
const RENEW_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// One that stands by or leads.
pub(crate) struct Candidate {
    api: Api<Lease>,
    /// Name of the pod. A container that is started again in it is the same candidate: the one before is dead.
    me: String,
}

/// Who leads.
pub(crate) struct Leader {
    candidate: Candidate,
    lease: Lease,
    renewed: Instant,
}

impl Candidate {
    pub(crate) fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me }
    }

    /// Waits until this one leads. `standby` is called once if another one does.
    pub(crate) async fn lead(self, standby: impl FnOnce()) -> Leader {
        let mut standby = Some(standby);
        // What the Lease looked like, and since when.
        let mut seen: Option<(LeaseSpec, Instant)> = None;
        loop {
            let asked = Instant::now();
            match self.attempt(&mut seen).await {
                Ok(Some(lease)) => {
                    tracing::info!(me = self.me, "leads");
                    return Leader { candidate: self, lease, renewed: asked };
                }
                Ok(None) => {
                    if let Some(standby) = standby.take() {
                        let holder = seen.as_ref().and_then(|(spec, _)| spec.holder_identity.as_deref());
                        tracing::info!(me = self.me, holder, "stands by");
                        standby();
                    }
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the Lease was not taken; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The Lease, if it could be taken.
    async fn attempt(&self, seen: &mut Option<(LeaseSpec, Instant)>) -> anyhow::Result<Option<Lease>> {
        let Some(found) = self.api.get_opt(NAME).await.context("get Lease larder-operator")? else {
            return taken(self.api.create(&PostParams::default(), &self.claim(None)).await)
                .context("create Lease larder-operator");
        };
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(DURATION, Duration::from_secs);
        let same = seen.as_ref().filter(|(before, _)| *before == spec).map(|(_, since)| *since);
        let since = same.unwrap_or_else(|| seen.insert((spec.clone(), Instant::now())).1);
        if !holder.is_empty() && holder != self.me && since.elapsed() < duration {
            return Ok(None);
        }
        taken(self.api.replace(NAME, &PostParams::default(), &self.claim(Some(&found))).await)
            .context("take over Lease larder-operator")
    }

    /// The Lease as ours.
    fn claim(&self, found: Option<&Lease>) -> Lease {
        let now = Some(MicroTime(jiff::Timestamp::now()));
        let before = found.and_then(|l| l.spec.clone()).unwrap_or_default();
        let again = before.holder_identity.as_deref() == Some(self.me.as_str());
        let meta = || ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some([(labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_LARDER.to_owned())].into()),
            ..ObjectMeta::default()
        };
        Lease {
            metadata: found.map_or_else(meta, |l| l.metadata.clone()),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if again { before.acquire_time } else { now.clone() },
                lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(found.is_some() && !again)),
                renew_time: now,
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Someone else was faster: no error, and no Lease.
fn taken(result: kube::Result<Lease>) -> anyhow::Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Leader {
    /// Renews the Lease until it is lost, and says how.
    pub(crate) async fn lost(&mut self) -> String {
        loop {
            tokio::time::sleep(RETRY).await;
            let asked = Instant::now();
            let deadline = self.renewed + RENEW_WITHIN;
            let (params, claim) = (PostParams::default(), self.candidate.claim(Some(&self.lease)));
            let renewed = self.candidate.api.replace(NAME, &params, &claim);
            match tokio::time::timeout_at(deadline, renewed).await {
                Ok(Ok(lease)) => (self.lease, self.renewed) = (lease, asked),
                // A write of ours whose answer was lost looks the same; beginning anew is right then too.
                Ok(Err(kube::Error::Api(e))) if e.code == 409 || e.code == 404 => {
                    return format!("the Lease {NAME} was taken by another one or deleted: {}", e.message);
                }
                Ok(Err(error)) if Instant::now() < deadline => {
                    tracing::warn!(%error, "the Lease was not renewed; trying again")
                }
                Ok(Err(error)) => return format!("the Lease {NAME} could not be renewed within {RENEW_WITHIN:?}: {error}"),
                Err(_) => return format!("the Lease {NAME} could not be renewed within {RENEW_WITHIN:?}: no answer"),
            }
        }
    }

    /// Gives the Lease back, so that the next one need not wait. Only when nothing acts any more.
    pub(crate) async fn step_down(self) {
        let mut lease = self.candidate.claim(Some(&self.lease));
        if let Some(spec) = &mut lease.spec {
            (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        }
        match tokio::time::timeout(RETRY, self.candidate.api.replace(NAME, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => tracing::info!(me = self.candidate.me, "stepped down"),
            Ok(Err(error)) => tracing::warn!(%error, "the Lease was not given back; it expires"),
            Err(_) => tracing::warn!("the Lease was not given back; it expires"),
        }
    }
}

#[cfg(test)]
mod tests;
