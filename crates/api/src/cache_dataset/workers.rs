//! `spec.workers`: on which nodes the data is kept.

use k8s_openapi::{api::core::v1::Toleration, apimachinery::pkg::api::resource::Quantity};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// On which nodes the data is kept: one worker runs on each of them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// Labels that a node must have. Default `nvidia.com/gpu.present: "true"`; `{}` selects all nodes.
    #[serde(default = "default_node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that workers tolerate. Default: `nvidia.com/gpu` with effect NoSchedule.
    #[serde(default = "default_tolerations")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Memory and CPU of each worker. Default: requests of 50m CPU and 128Mi memory, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Memory and CPU.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is reserved on the node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::quantity::map_schema")]
    pub requests: BTreeMap<String, Quantity>,
    /// What is never exceeded. A memory limit that is too small kills workers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::quantity::map_schema")]
    pub limits: BTreeMap<String, Quantity>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { node_selector: default_node_selector(), tolerations: default_tolerations(), resources: None }
    }
}

fn default_node_selector() -> BTreeMap<String, String> {
    [("nvidia.com/gpu.present".to_owned(), "true".to_owned())].into()
}

fn default_tolerations() -> Vec<Toleration> {
    vec![Toleration {
        key: Some("nvidia.com/gpu".into()),
        operator: Some("Exists".into()),
        effect: Some("NoSchedule".into()),
        ..Default::default()
    }]
}
