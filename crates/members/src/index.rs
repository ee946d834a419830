//! ConfigMaps and EndpointSlices → rosters. Pure.

use crate::UID_LABEL;
use k8s_openapi::api::{core::v1::ConfigMap, discovery::v1::EndpointSlice};
use kube::ResourceExt as _;
use larder_core::{
    format::{LaterFormat, Versioned},
    names::MEMBERS_KEY,
    placement::Members,
};
use larder_peer::Roster;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// One step of a watch.
pub(crate) enum Change<K> {
    Set(K),
    Gone(K),
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    datasets: HashMap<String, Dataset>,
}

#[derive(Debug, Default)]
struct Dataset {
    members: Members,
    /// By name of the slice: a Service may have several.
    slices: BTreeMap<String, BTreeMap<String, IpAddr>>,
    roster: Arc<Roster>,
}

/// A list of a later release could be misread: two nodes that read it in different ways would look for a file in different places.
fn read(text: &str) -> Result<Members, String> {
    let Versioned { version } = serde_json::from_str(text).map_err(|e| e.to_string())?;
    LaterFormat::refuse(version, Members::FORMAT).map_err(|e| format!("it {e}"))?;
    serde_json::from_str(text).map_err(|e| e.to_string())
}

impl Index {
    pub(crate) fn roster(&self, uid: &str) -> Arc<Roster> {
        self.datasets.get(uid).map(|d| Arc::clone(&d.roster)).unwrap_or_default()
    }

    /// Takes a change in; `true` when a roster is not what it was.
    pub(crate) fn config_map(&mut self, change: Change<ConfigMap>) -> bool {
        let (map, gone) = match change {
            Change::Set(m) => (m, false),
            Change::Gone(m) => (m, true),
        };
        let Some(uid) = map.labels().get(UID_LABEL).cloned() else { return false };
        if map.name_any() != larder_core::names::members_config_map(&uid) {
            return false; // another ConfigMap of the dataset
        }
        if gone {
            return self.datasets.remove(&uid).is_some();
        }
        let text = map.data.as_ref().and_then(|d| d.get(MEMBERS_KEY)).map_or("", String::as_str);
        match read(text) {
            Ok(members) => self.update(&uid, |d| d.members = members),
            Err(error) => {
                tracing::error!(config_map = map.name_any(), %error, "member list is not readable; going on with the last known one");
                false
            }
        }
    }

    /// Takes a change in; `true` when a roster is not what it was.
    pub(crate) fn endpoint_slice(&mut self, change: Change<EndpointSlice>) -> bool {
        let (slice, gone) = match change {
            Change::Set(s) => (s, false),
            Change::Gone(s) => (s, true),
        };
        let Some(uid) = slice.labels().get(UID_LABEL).cloned() else { return false };
        let name = slice.name_any();
        if gone {
            return self.datasets.contains_key(&uid) && self.update(&uid, |d| drop(d.slices.remove(&name)));
        }
        let addresses =
            slice.endpoints.iter().filter_map(|e| Some((e.node_name.clone()?, e.addresses.first()?.parse().ok()?))).collect();
        self.update(&uid, |d| drop(d.slices.insert(name, addresses)))
    }

    fn update(&mut self, uid: &str, change: impl FnOnce(&mut Dataset)) -> bool {
        let dataset = self.datasets.entry(uid.to_owned()).or_default();
        change(dataset);
        let addresses = dataset.slices.values().flatten().map(|(n, a)| (n.clone(), *a)).collect();
        let roster = Roster { members: dataset.members.clone(), addresses };
        let new = roster != *dataset.roster;
        if new {
            dataset.roster = Arc::new(roster);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ObjectMeta;

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            labels: Some([(UID_LABEL.to_owned(), UID.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    fn mk_map(name: &str, text: &str) -> ConfigMap {
        ConfigMap {
            metadata: meta(name),
            data: Some([(MEMBERS_KEY.to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        }
    }

    fn mk_slice(name: &str, node: &str, ip: &str) -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "metadata": meta(name), "addressType": "IPv4", "endpoints": [{"addresses": [ip], "nodeName": node}], "ports": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_roster_has_members_and_addresses() {
        let mut index = Index::default();
        let text = r#"{"generation":3,"members":[{"node":"gpu-1","weight":1}]}"#;
        assert!(index.config_map(Change::Set(mk_map(&format!("{UID}-members"), text))));
        assert!(index.endpoint_slice(Change::Set(mk_slice("s1", "gpu-1", "10.0.0.7"))));
        assert!(!index.endpoint_slice(Change::Set(mk_slice("s1", "gpu-1", "10.0.0.7"))), "nothing new");
        let r = index.roster(UID);
        assert_eq!(r.members.members[0].node, "gpu-1");
        assert_eq!(r.addresses["gpu-1"], "10.0.0.7".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_worker_that_comes_back_elsewhere_is_found() {
        let mut index = Index::default();
        index.endpoint_slice(Change::Set(mk_slice("s1", "gpu-1", "10.0.0.7")));
        assert!(index.endpoint_slice(Change::Set(mk_slice("s1", "gpu-1", "10.0.0.9"))));
        assert_eq!(index.roster(UID).addresses["gpu-1"], "10.0.0.9".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn an_unreadable_list_leaves_the_last_known_one() {
        let mut index = Index::default();
        let name = format!("{UID}-members");
        index.config_map(Change::Set(mk_map(&name, r#"{"generation":1,"members":[{"node":"a","weight":1}]}"#)));
        assert!(!index.config_map(Change::Set(mk_map(&name, "{"))));
        assert_eq!(index.roster(UID).members.members.len(), 1);
    }

    #[test]
    fn other_config_maps_of_the_dataset_are_not_member_lists() {
        let mut index = Index::default();
        assert!(!index.config_map(Change::Set(mk_map(&format!("{UID}-ca"), "{}"))));
        assert!(index.roster(UID).members.members.is_empty());
    }

    #[test]
    fn a_list_of_a_later_format_leaves_the_last_known_one_and_fields_that_are_not_known_are_passed_over() {
        let mut index = Index::default();
        let name = format!("{UID}-members");
        let known = r#"{"version":1,"zones":["a"],"generation":1,"members":[{"node":"a","weight":1,"since":1,"zone":0}]}"#;
        assert!(index.config_map(Change::Set(mk_map(&name, known))));
        let later = known.replace(r#""version":1"#, r#""version":2"#).replace(r#""node":"a""#, r#""node":"b""#);
        assert!(!index.config_map(Change::Set(mk_map(&name, &later))));
        assert_eq!(index.roster(UID).members.members[0].node, "a");
        let told = read(&later).unwrap_err();
        assert!(told.contains("format 2") && told.contains("up to 1"), "{told}");
    }
}
