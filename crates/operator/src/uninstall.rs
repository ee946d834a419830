//! `larder uninstall-check`: the hook that keeps `helm uninstall` from taking mounted data away from pods.

use crate::controllers::cache_dataset;
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use larder_core::names::DRIVER;
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;

/// Objects per list call.
const PAGE: u32 = 500;
/// Pods named in the message.
const NAMED: usize = 10;

/// Flags of `larder uninstall-check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Seconds to wait for the API server
    #[arg(long, default_value_t = 60)]
    pub timeout_seconds: u32,
}

/// Fails, naming them, while pods use claims of Larder's volumes.
///
/// # Errors
/// When there are such pods, or the API server does not answer.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let check = async {
        let client = Client::try_default().await.context("make a Kubernetes client")?;
        let users = users(&client).await?;
        if users.is_empty() {
            tracing::info!("no pod uses a claim of {DRIVER}");
            return Ok(());
        }
        bail!(message(&users))
    };
    let limit = Duration::from_secs(args.timeout_seconds.into());
    tokio::select! {
        result = tokio::time::timeout(limit, check) => result.context("ask the API server")?,
        () = shutdown.cancelled() => bail!("interrupted"),
    }
}

fn message(users: &[String]) -> String {
    let named = users.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = users.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("pods use data that Larder mounts: {named}{more}; delete them first")
}

/// `namespace/name` of pods that use claims bound to our volumes.
async fn users(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut claims = BTreeSet::new();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = volumes.list(&params).await.context("list PersistentVolumes")?;
        for spec in page.items.iter().filter_map(|v| v.spec.as_ref()) {
            if spec.csi.as_ref().is_none_or(|csi| csi.driver != DRIVER) {
                continue;
            }
            if let Some((namespace, name)) = spec.claim_ref.as_ref().and_then(|c| c.namespace.clone().zip(c.name.clone())) {
                claims.insert((namespace, name));
            }
        }
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => break,
        }
    }
    let namespaces: BTreeSet<&String> = claims.iter().map(|(namespace, _)| namespace).collect();
    let mut users = vec![];
    for namespace in namespaces {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let pods = pods.list(&ListParams::default()).await.with_context(|| format!("list pods in namespace {namespace}"))?;
        let ours: Vec<&String> = claims.iter().filter(|(n, _)| n == namespace).map(|(_, claim)| claim).collect();
        for pod in pods.items {
            if ours.iter().any(|claim| cache_dataset::uses(&pod, claim)) {
                users.push(format!("{namespace}/{}", pod.name_any()));
            }
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_pods_and_the_remedy() {
        let users: Vec<String> = (0..12).map(|i| format!("vision/train-{i}")).collect();
        let text = message(&users);
        assert!(
            text.starts_with("pods use data that Larder mounts: vision/train-0, ")
                && text.contains("vision/train-9 and 2 more; delete them first"),
            "{text}"
        );
    }
}
