//! `larder uninstall-check`: the hook that keeps `helm uninstall` from taking mounted data away from pods, and from taking the operator
//! away from CacheDatasets that are deleted with their CRD: their finalizer would wait for it for ever.

use crate::controllers::cache_dataset;
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use larder_api::CacheDataset;
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
    /// The CRD goes with the release, and every CacheDataset with it (chart value `crds.keep` is false)
    #[arg(long)]
    pub crds_go: bool,
}

/// Fails, naming them, while pods use claims of Larder's volumes, or there are CacheDatasets that would be deleted.
///
/// # Errors
/// When there are such pods or CacheDatasets, or the API server does not answer.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let check = async {
        let client = Client::try_default().await.context("make a Kubernetes client")?;
        check(&client, args.crds_go).await
    };
    let limit = Duration::from_secs(args.timeout_seconds.into());
    tokio::select! {
        result = tokio::time::timeout(limit, check) => result.context("ask the API server")?,
        () = shutdown.cancelled() => bail!("interrupted"),
    }
}

async fn check(client: &Client, crds_go: bool) -> anyhow::Result<()> {
    let users = users(client).await?;
    if !users.is_empty() {
        bail!("pods use data that Larder mounts: {}; delete them first", list(&users));
    }
    tracing::info!("no pod uses a claim of {DRIVER}");
    if crds_go {
        let datasets = datasets(client).await?;
        if !datasets.is_empty() {
            bail!(
                "the chart's value crds.keep is false, so that these CacheDatasets would be deleted, and nobody would be left to remove their finalizer: {}; delete them first (kubectl delete cds -A --all), which erases what is cached, or keep them (helm upgrade with crds.keep=true)",
                list(&datasets)
            );
        }
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(NAMED);
    if more > 0 { format!("{named} and {more} more") } else { named }
}

/// `namespace/name` of all CacheDatasets.
async fn datasets(client: &Client) -> anyhow::Result<Vec<String>> {
    match Api::<CacheDataset>::all(client.clone()).list_metadata(&ListParams::default()).await {
        Ok(found) => {
            Ok(found.items.iter().map(|d| format!("{}/{}", d.namespace().unwrap_or_default(), d.name_any())).collect())
        }
        // The CRD is gone already.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(vec![]),
        Err(e) => Err(e).context("list CacheDatasets"),
    }
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
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    #[test]
    fn long_lists_are_cut() {
        let users: Vec<String> = (0..12).map(|i| format!("vision/train-{i}")).collect();
        let text = list(&users);
        assert!(text.starts_with("vision/train-0, ") && text.ends_with("vision/train-9 and 2 more"), "{text}");
    }

    /// What the check says in a cluster with these pods and CacheDatasets; no CRD where there is no list of them.
    async fn said(pods: &[&str], datasets: Option<&[&str]>, crds_go: bool) -> Result<(), String> {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let named = |kind: &str, name: &str, rest: Value| {
            let mut object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": "vision" } });
            object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            object
        };
        let volume = json!({ "spec": {
            "csi": { "driver": DRIVER, "volumeHandle": "h" },
            "claimRef": { "namespace": "vision", "name": "imagenet" },
        } });
        let user = json!({ "spec": {
            "containers": [],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "imagenet" } }],
        } });
        let volumes = vec![named("PersistentVolume", "larder-x", volume)];
        let pods: Vec<Value> = pods.iter().map(|name| named("Pod", name, user.clone())).collect();
        let datasets: Option<Vec<Value>> =
            datasets.map(|all| all.iter().map(|name| named("PartialObjectMetadata", name, json!({}))).collect());
        tokio::spawn(async move {
            while let Some((request, answer)) = handle.next_request().await {
                let items = match request.uri().path() {
                    "/api/v1/persistentvolumes" => Some(volumes.clone()),
                    "/api/v1/namespaces/vision/pods" => Some(pods.clone()),
                    "/apis/larder.dev/v1alpha1/cachedatasets" => datasets.clone(),
                    other => panic!("{other} is asked for"),
                };
                let (code, text) = match items {
                    Some(items) => (200, json!({ "metadata": {}, "items": items })),
                    None => (
                        404,
                        json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404 }),
                    ),
                };
                let body = Body::from(serde_json::to_vec(&text).unwrap());
                answer.send_response(Response::builder().status(code).body(body).unwrap());
            }
        });
        check(&Client::new(service, "default"), crds_go).await.map_err(|e| format!("{e:#}"))
    }

    #[tokio::test]
    async fn pods_are_named_with_the_remedy() {
        let error = said(&["train-0"], Some(&[]), false).await.unwrap_err();
        assert_eq!(error, "pods use data that Larder mounts: vision/train-0; delete them first");
    }

    #[tokio::test]
    async fn datasets_keep_a_release_that_would_delete_them_from_going() {
        let error = said(&[], Some(&["imagenet", "coco"]), true).await.unwrap_err();
        assert!(
            error.contains("crds.keep is false") && error.contains("vision/imagenet, vision/coco; delete them first"),
            "{error}"
        );
        assert_eq!(said(&[], Some(&["imagenet"]), false).await, Ok(()), "the CRD stays, and the datasets with it");
        for none in [Some(&[][..]), None] {
            assert_eq!(said(&[], none, true).await, Ok(()));
        }
    }
}
