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
    use proptest::prelude::*;

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
    fn a_list_says_nothing_of_stripes_when_there_are_none() {
        let whole = r#"{"generation":1,"members":[{"node":"a","weight":1,"since":1}]}"#;
        let striped = whole.replace(r#"}]}"#, r#"}],"stripeBytes":1073741824}"#);
        for (text, bytes) in [(whole, 0), (&striped, 1 << 30)] {
            let list = read(text).unwrap();
            assert_eq!((list.stripe_bytes, serde_json::to_string(&list).unwrap().as_str()), (bytes, text));
        }
        let mut index = Index::default();
        let name = format!("{UID}-members");
        assert!(index.config_map(Change::Set(mk_map(&name, whole))));
        assert!(index.config_map(Change::Set(mk_map(&name, &striped))), "who watches the roster hears of it");
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

    /// What the API server has, and a node that follows it.
    #[derive(Clone, Debug)]
    enum Event {
        Members(Vec<u8>),
        Slice(u8, Vec<(u8, u8)>),
        SliceGone(u8),
        /// This node hears of nothing, until it is told all again.
        Lost(usize),
        Told(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => prop::collection::btree_set(0..6u8, 0..6).prop_map(|nodes| Event::Members(nodes.into_iter().collect())),
            4 => (0..3u8, prop::collection::vec((0..6u8, 0..9u8), 0..4)).prop_map(|(slice, ends)| Event::Slice(slice, ends)),
            1 => (0..3u8).prop_map(Event::SliceGone),
            1 => (0..2usize).prop_map(Event::Lost),
            2 => (0..2usize).prop_map(Event::Told),
        ]
    }

    fn slice_of(slice: u8, ends: &[(u8, u8)]) -> EndpointSlice {
        let ends: Vec<_> = ends
            .iter()
            .map(|(node, ip)| serde_json::json!({"addresses": [format!("10.0.0.{ip}")], "nodeName": format!("gpu-{node}")}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": meta(&format!("s{slice}")), "addressType": "IPv4", "endpoints": ends, "ports": [],
        }))
        .unwrap()
    }

    proptest! {
        /// Each misses some of what happens and hears all again later, in its own order. Slices that are gone are heard of by both: of
        /// one that is missed the addresses stay, see `follow`.
        #[test]
        fn nodes_that_have_heard_all_agree_whatever_they_had_missed(
            events in prop::collection::vec(event(), 1..50),
        ) {
            let (mut map, mut slices, mut generation) = (None, BTreeMap::<u8, EndpointSlice>::new(), 0);
            let mut nodes = [(Index::default(), true), (Index::default(), true)];
            let tell = |index: &mut Index, map: &Option<ConfigMap>, slices: &BTreeMap<u8, EndpointSlice>, turned: bool| {
                let told: Vec<_> = slices.values().cloned().collect();
                if turned {
                    let _ = map.clone().map(|map| index.config_map(Change::Set(map)));
                    told.into_iter().rev().for_each(|slice| _ = index.endpoint_slice(Change::Set(slice)));
                } else {
                    told.into_iter().for_each(|slice| _ = index.endpoint_slice(Change::Set(slice)));
                    let _ = map.clone().map(|map| index.config_map(Change::Set(map)));
                }
            };
            for event in events {
                match event {
                    Event::Members(members) => {
                        generation += 1;
                        let members: Vec<_> = members
                            .iter()
                            .map(|node| serde_json::json!({"node": format!("gpu-{node}"), "weight": 1, "since": generation}))
                            .collect();
                        let text = serde_json::json!({"generation": generation, "members": members}).to_string();
                        let new = mk_map(&format!("{UID}-members"), &text);
                        nodes.iter_mut().filter(|n| n.1).for_each(|n| _ = n.0.config_map(Change::Set(new.clone())));
                        map = Some(new);
                    }
                    Event::Slice(name, ends) => {
                        let new = slice_of(name, &ends);
                        nodes.iter_mut().filter(|n| n.1).for_each(|n| _ = n.0.endpoint_slice(Change::Set(new.clone())));
                        slices.insert(name, new);
                    }
                    Event::SliceGone(name) => {
                        if let Some(old) = slices.remove(&name) {
                            nodes.iter_mut().for_each(|n| _ = n.0.endpoint_slice(Change::Gone(old.clone())));
                        }
                    }
                    Event::Lost(node) => nodes[node].1 = false,
                    Event::Told(node) => {
                        nodes[node].1 = true;
                        tell(&mut nodes[node].0, &map, &slices, node == 0);
                    }
                }
                let [a, b] = [0, 1].map(|node| nodes[node].0.roster(UID));
                if nodes.iter().all(|node| node.1) {
                    prop_assert_eq!(a, b);
                }
            }
            let mut fresh = Index::default();
            tell(&mut fresh, &map, &slices, true);
            for (turned, (index, _)) in nodes.iter_mut().enumerate() {
                tell(index, &map, &slices, turned == 0);
                prop_assert_eq!(index.roster(UID), fresh.roster(UID), "no trace of what it had missed");
            }
        }
    }
}
