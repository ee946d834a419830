//! The dataset's own volume and claim.

use super::{Owner, from_template, hashed};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
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
    hashed(from_template(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": owner.meta(volume_name(owner), None, owner.labels()),
        "spec": {
            "capacity": { "storage": capacity },
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
    })))
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
            "volumeName": volume_name(owner),
            "resources": { "requests": { "storage": CLAIM_REQUEST } },
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::mk_dataset;
    use super::*;

    #[test]
    fn volume_and_claim_name_each_other() {
        let owner = Owner::of(&mk_dataset()).unwrap();
        let (volume, claim) = (volume(&owner, "3Gi"), claim(&owner));
        let (v, c) = (volume.spec.unwrap(), claim.spec.unwrap());
        assert_eq!(c.volume_name, volume.metadata.name);
        let reference = v.claim_ref.unwrap();
        assert_eq!((reference.name, reference.namespace), (claim.metadata.name, claim.metadata.namespace));
        assert_eq!((v.storage_class_name.as_deref(), c.storage_class_name.as_deref()), (Some(""), Some("")));
        assert_eq!(v.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(v.csi.unwrap().volume_handle, format!("{0}.{0}", owner.uid));
        assert!(c.access_modes.unwrap().iter().all(|m| v.access_modes.as_ref().unwrap().contains(m)));
    }
}
