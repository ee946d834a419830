//! The dataset's own volume and claim.
//!
//! The volume is reserved for the claim by name, the claim finds it by label. The claim does not name the volume: Kubernetes' own
//! controller looks at a volume and at its claim in two workers that write both. When one is refused because the other was
//! faster, a claim that does not name its volume is looked at again at once, one that does only every 15 s. A claim that comes
//! before its volume is known waits as long, so it is made when the volume is `Available`.

use super::{Owner, from_template, hashed};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use larder_api::labels;
use larder_core::names;
use serde_json::json;

/// What the claim asks for. The volume always has more, and nothing is allocated: quotas on storage are not for cached data.
pub(in super::super) const CLAIM_REQUEST: &str = "1";

/// Name of the volume.
pub(in super::super) fn volume_name(owner: &Owner) -> String {
    format!("larder-{}", owner.uid)
}

/// The volume, reserved for the dataset's claim. `capacity` is for people: the driver does not look at it.
pub(in super::super) fn volume(owner: &Owner, capacity: &str) -> PersistentVolume {
    let mut volume: PersistentVolume = hashed(from_template(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": owner.meta(volume_name(owner), None, owner.labels()),
        "spec": {
            // The kubelet tells the driver the first one; reading is all there is, whatever a claim asks for.
            "accessModes": ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": "Filesystem",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": owner.namespace,
                "name": owner.name,
            },
            "csi": {
                "driver": names::DRIVER,
                // The volume is made before its claim has a uid; the dataset's own stands for it.
                "volumeHandle": format!("{0}.{0}", owner.uid),
                "volumeAttributes": {
                    (labels::DATASET_NAMESPACE): owner.namespace,
                    (labels::DATASET_NAME): owner.name,
                },
            },
        },
    })));
    // Not in the hash: the API server writes the same amount in another way (1024Mi, 1Gi), which is no change of the text.
    let capacity = [("storage".to_owned(), Quantity(capacity.to_owned()))];
    volume.spec.get_or_insert_default().capacity = Some(capacity.into());
    volume
}

/// The claim, with the dataset's name in the dataset's namespace.
pub(in super::super) fn claim(owner: &Owner) -> PersistentVolumeClaim {
    from_template(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": owner.meta(owner.name.clone(), Some(&owner.namespace), owner.labels()),
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeMode": "Filesystem",
            "selector": { "matchLabels": { (labels::DATASET_UID): owner.uid } },
            "resources": { "requests": { "storage": CLAIM_REQUEST } },
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::mk_dataset;
    use super::*;

    #[test]
    fn the_volume_is_reserved_for_the_claim_and_the_claim_takes_no_other() {
        let owner = Owner::of(&mk_dataset()).unwrap();
        let (volume, claim) = (volume(&owner, "3Gi"), claim(&owner));
        let (v, c) = (volume.spec.unwrap(), claim.spec.unwrap());
        // A named volume would be looked for again every 15 s only.
        assert_eq!(c.volume_name, None);
        assert_eq!(c.selector.unwrap().match_labels.unwrap(), [(labels::DATASET_UID.to_owned(), owner.uid.clone())].into());
        assert_eq!(volume.metadata.labels.unwrap()[labels::DATASET_UID], owner.uid);
        let reference = v.claim_ref.unwrap();
        assert_eq!((reference.name, reference.namespace), (claim.metadata.name, claim.metadata.namespace));
        assert_eq!((v.storage_class_name.as_deref(), c.storage_class_name.as_deref()), (Some(""), Some("")));
        assert_eq!(v.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(v.csi.unwrap().volume_handle, format!("{0}.{0}", owner.uid));
        assert!(c.access_modes.unwrap().iter().all(|m| v.access_modes.as_ref().unwrap().contains(m)));
    }
}
