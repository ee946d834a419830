//! Who asks? The API server says whose token it is and which pod it is bound to; the pod says the rest.

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use larder_api::labels;
use larder_core::names;
use larder_trust::Identity;

/// Why nothing is given. Never holds the token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("no token was shown")]
    NoToken,
    #[error("the API server does not know the token: {0}")]
    NotAuthenticated(String),
    #[error("the token is for others than {}", names::AUTHORITY_AUDIENCE)]
    Audience,
    #[error("the token is of {0}, which is no daemon of Larder")]
    Stranger(String),
    #[error("the token is not bound to a pod on a node")]
    Unbound,
    #[error("pod {0} is not there any more, or is another one by now")]
    Gone(String),
    #[error("pod {0} is not what its ServiceAccount is for: no worker of a dataset on the node that its token names")]
    Pod(String),
    #[error("ask the API server about {what}: {why}")]
    Unavailable { what: String, why: String },
}

/// ServiceAccounts of the chart.
const MOUNTER: &str = "larder-mounter";
const NODE: &str = "larder-node";

/// What a token proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proven {
    service_account: String,
    pod: String,
    pod_uid: String,
    node: String,
}

/// Asks the API server.
pub(super) async fn review(client: &Client, namespace: &str, token: &str) -> Result<Proven, Refused> {
    let spec = TokenReviewSpec { audiences: Some(vec![names::AUTHORITY_AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let answer = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|e| Refused::Unavailable { what: "a token".to_owned(), why: e.to_string() })?;
    proven(&answer.status.unwrap_or_default(), namespace)
}

fn proven(status: &TokenReviewStatus, namespace: &str) -> Result<Proven, Refused> {
    if status.authenticated != Some(true) {
        return Err(Refused::NotAuthenticated(status.error.clone().unwrap_or_default()));
    }
    if !status.audiences.iter().flatten().any(|a| a == names::AUTHORITY_AUDIENCE) {
        return Err(Refused::Audience);
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let service_account = name.strip_prefix(&format!("system:serviceaccount:{namespace}:"));
    let service_account = service_account.ok_or_else(|| Refused::Stranger(name.clone()))?.to_owned();
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        values.first().filter(|v| !v.is_empty()).cloned()
    };
    let (pod, pod_uid, node) = (extra("pod-name"), extra("pod-uid"), extra("node-name"));
    match (pod, pod_uid, node) {
        (Some(pod), Some(pod_uid), Some(node)) => Ok(Proven { service_account, pod, pod_uid, node }),
        _ => Err(Refused::Unbound),
    }
}

impl Proven {
    /// Whose certificate it may have.
    pub(super) async fn identity(&self, client: &Client, namespace: &str, workers: &str) -> Result<Identity, Refused> {
        if self.service_account == MOUNTER {
            return Ok(Identity::Mounter { node: self.node.clone() });
        }
        if self.service_account != workers {
            return Err(Refused::Stranger(self.service_account.clone()));
        }
        let pod = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(&self.pod).await;
        let pod = pod.map_err(|e| Refused::Unavailable { what: format!("pod {}", self.pod), why: e.to_string() })?;
        self.worker(pod.as_ref())
    }

    /// The operator's DaemonSet says of which dataset, on the pod's labels; the worker is not asked.
    fn worker(&self, pod: Option<&Pod>) -> Result<Identity, Refused> {
        let pod = pod.filter(|p| p.uid().as_ref() == Some(&self.pod_uid)).ok_or_else(|| Refused::Gone(self.pod.clone()))?;
        let label = |key| pod.labels().get(key).map(String::as_str);
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        match label(labels::DATASET_UID) {
            Some(dataset)
                if names::is_uid(dataset)
                    && label(labels::COMPONENT) == Some(labels::COMPONENT_WORKER)
                    && node == Some(self.node.as_str()) =>
            {
                Ok(Identity::Worker { dataset: dataset.to_owned(), node: self.node.clone() })
            }
            _ => Err(Refused::Pod(self.pod.clone())),
        }
    }

    /// For which node it may have mount tokens.
    pub(super) fn mounting_node(&self) -> Result<&str, Refused> {
        if self.service_account == NODE { Ok(&self.node) } else { Err(Refused::Stranger(self.service_account.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn mk_status(change: impl Fn(&mut Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["larder-operator"],
            "user": {
                "username": "system:serviceaccount:larder-system:larder-worker",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["worker-x"],
                    "authentication.kubernetes.io/pod-uid": ["u-1"],
                    "authentication.kubernetes.io/node-name": ["gpu-1"],
                },
            },
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    fn mk_pod(change: impl Fn(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "worker-x", "uid": "u-1",
                "labels": { "larder.dev/dataset-uid": UID, "app.kubernetes.io/component": "worker" },
            },
            "spec": { "nodeName": "gpu-1", "containers": [] },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn of(change: impl Fn(&mut Value)) -> Result<Proven, Refused> {
        proven(&mk_status(change), "larder-system")
    }

    #[test]
    fn a_token_proves_account_pod_and_node() {
        let proven = of(|_| ()).unwrap();
        assert_eq!(
            (proven.service_account.as_str(), proven.pod.as_str(), proven.node.as_str()),
            ("larder-worker", "worker-x", "gpu-1")
        );
        assert!(proven.mounting_node().is_err(), "a worker gets no mount tokens");
    }

    #[test]
    fn a_token_of_anyone_else_or_for_anyone_else_proves_nothing() {
        assert!(matches!(of(|s| s["authenticated"] = json!(false)), Err(Refused::NotAuthenticated(_))));
        assert_eq!(of(|s| s["audiences"] = json!(["https://kubernetes.default.svc"])), Err(Refused::Audience));
        let other = |name: &'static str| move |s: &mut Value| s["user"]["username"] = json!(name);
        for stranger in ["system:serviceaccount:vision:larder-worker", "admin", "system:node:gpu-1"] {
            assert!(matches!(of(other(stranger)), Err(Refused::Stranger(_))), "{stranger}");
        }
        for key in ["pod-name", "pod-uid", "node-name"] {
            let unbound = of(|s| s["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = json!([]));
            assert_eq!(unbound, Err(Refused::Unbound), "{key}");
        }
    }

    #[test]
    fn the_label_that_the_operator_set_decides_of_which_dataset_a_worker_is() {
        let proven = of(|_| ()).unwrap();
        let identity = proven.worker(Some(&mk_pod(|_| ()))).unwrap();
        assert_eq!(identity, Identity::Worker { dataset: UID.into(), node: "gpu-1".into() });
        assert_eq!(proven.worker(None), Err(Refused::Gone("worker-x".into())));
        let again = mk_pod(|p| p["metadata"]["uid"] = json!("u-2"));
        assert_eq!(proven.worker(Some(&again)), Err(Refused::Gone("worker-x".into())));
        for pod in [
            mk_pod(|p| p["metadata"]["labels"]["larder.dev/dataset-uid"] = json!("../x")),
            mk_pod(|p| p["metadata"]["labels"]["app.kubernetes.io/component"] = json!("mounter")),
            mk_pod(|p| p["spec"]["nodeName"] = json!("gpu-2")),
        ] {
            assert_eq!(proven.worker(Some(&pod)), Err(Refused::Pod("worker-x".into())));
        }
    }

    #[test]
    fn only_a_node_plugin_gets_mount_tokens() {
        let name = |s: &mut Value| s["user"]["username"] = json!("system:serviceaccount:larder-system:larder-node");
        assert_eq!(of(name).unwrap().mounting_node(), Ok("gpu-1"));
    }
}
