//! The file that describes the dataset: a CacheDataset, with the folder of the cache in its tier.
//!
//! The same file works in a cluster once `path` is taken out: there, folders are the administrator's to choose. What only means
//! something in a cluster (`workers`, the tier's name) is checked and otherwise not looked at.

mod unknown;

use kube::CustomResourceExt as _;
use larder_api::{
    CacheDataset,
    cache_dataset::{CacheDatasetSpec, MAX_TIERS, PreloadPolicy, Tier},
    quantity,
};
use larder_core::key::listing_id;
use larder_proto::control::v1 as pb;
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatasetError {
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("read {}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}: unknown field {field}; there are {known}", path.display())]
    Unknown { path: PathBuf, field: String, known: String },
    #[error("{}: {field}: {message}", path.display())]
    Field { path: PathBuf, field: String, message: String },
}

/// A dataset on this machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dataset {
    pub name: String,
    /// Stays the same as long as the source does, whatever the file is called and says besides.
    pub uid: String,
    pub spec: CacheDatasetSpec,
    pub disks: Vec<Disk>,
    /// Of the preload, in bytes a second; 0: no limit.
    pub bandwidth: u64,
}

/// Where the dataset is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Folder of the cache; the dataset's is beneath it.
    pub tier: PathBuf,
    pub quota: u64,
}

impl Dataset {
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let text = fs::read_to_string(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// `path` names the file in errors; its folder is where relative paths in it begin.
    fn parse(path: &Path, text: &str) -> Result<Self, DatasetError> {
        let field =
            |field: &str, message: String| DatasetError::Field { path: path.to_owned(), field: field.to_owned(), message };
        // As kubectl reads it.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        let mut value: Value = serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| DatasetError::Syntax { path: path.to_owned(), message: e.to_string() })?;
        for (name, wanted) in [("apiVersion", "larder.dev/v1alpha1"), ("kind", "CacheDataset")] {
            if value[name].as_str() != Some(wanted) {
                return Err(field(name, format!("must be {wanted}")));
            }
        }
        let paths = take_paths(&mut value).map_err(|(name, message)| field(&name, message))?;
        if let Some(unknown) = unknown::find(&value, &schema()) {
            return Err(DatasetError::Unknown { path: path.to_owned(), field: unknown.field, known: unknown.known });
        }
        let dataset: CacheDataset =
            serde_path_to_error::deserialize(value).map_err(|e| field(&e.path().to_string(), e.inner().to_string()))?;
        let spec = dataset.spec;
        for (name, mode) in [("fileMode", spec.mount.file_mode), ("dirMode", spec.mount.dir_mode)] {
            if mode > 0o777 {
                return Err(field(&format!("spec.mount.{name}"), format!("{mode:#o}: must be permissions up to 0777")));
            }
        }
        let folder = std::path::absolute(path.parent().unwrap_or(Path::new("."))).unwrap_or_default();
        let disk = |(n, (path, tier)): (usize, (PathBuf, &Tier))| {
            let quota = quantity::bytes(&tier.quota).filter(|q| *q > 0);
            let bad = || field(&format!("spec.cache.tiers[{n}].quota"), "must be more than 0, such as 100Gi".to_owned());
            Ok(Disk { tier: folder.join(path), quota: quota.ok_or_else(bad)? })
        };
        let disks = paths.into_iter().zip(&spec.cache.tiers).enumerate().map(disk).collect::<Result<Vec<_>, _>>()?;
        let bandwidth = match &spec.preload.bandwidth {
            None => 0,
            Some(text) => quantity::bytes(text).filter(|b| *b > 0).ok_or_else(|| {
                let message =
                    format!("{:?}: must be more than 0 bytes a second, such as 1Gi; leave it out for no limit", text.0);
                field("spec.preload.bandwidth", message)
            })?,
        };
        Ok(Self { name: dataset.metadata.name.unwrap_or_default(), uid: uid(&spec), disks, bandwidth, spec })
    }

    /// Folders of the dataset in the cache, one on each disk.
    pub fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.disks.iter().map(|disk| disk.tier.join(larder_core::names::TIER_DIR).join(&self.uid))
    }

    /// The folder that the data comes from, if it comes from one.
    pub fn folder(&self) -> Option<PathBuf> {
        self.spec.source.uri.strip_prefix("file://").map(PathBuf::from)
    }

    pub fn wants_preload(&self) -> bool {
        self.spec.preload.policy == PreloadPolicy::OnCreate
    }

    /// Identifies what is listed.
    pub fn listing(&self) -> String {
        let s = &self.spec.source;
        listing_id(&s.folder_uri(), s.endpoint.as_deref().unwrap_or_default(), &s.include, &s.exclude)
    }

    /// As an operator would write it into a worker's orders.
    pub fn source(&self) -> pb::Source {
        let s = self.spec.source.clone();
        pb::Source {
            uri: s.folder_uri(),
            endpoint: s.endpoint.unwrap_or_default(),
            region: s.region.unwrap_or_default(),
            path_style: s.path_style,
            include: s.include,
            exclude: s.exclude,
            anonymous: s.credentials.anonymous.is_some(),
            credentials_generation: String::new(),
            ca_generation: String::new(),
        }
    }
}

/// Takes what the API does not know out of the tiers. Else the field, and what is wrong with it.
fn take_paths(value: &mut Value) -> Result<Vec<PathBuf>, (String, String)> {
    let wrong = |field: &str, message: &str| (field.to_owned(), message.to_owned());
    for (pointer, name) in [("/spec", "spec"), ("/spec/cache", "spec.cache")] {
        if value.pointer(pointer).is_some_and(|value| !value.is_object()) {
            return Err(wrong(name, "must have fields beneath it"));
        }
    }
    let tiers = value.pointer_mut("/spec/cache/tiers").and_then(Value::as_array_mut);
    let tiers = tiers.filter(|tiers| (1..=MAX_TIERS).contains(&tiers.len()));
    let take = |(n, tier): (usize, &mut Value)| {
        let name = format!("spec.cache.tiers[{n}]");
        let tier = tier.as_object_mut().ok_or_else(|| wrong(&name, "must have path and quota"))?;
        let name = format!("{name}.path");
        let path = match tier.remove("path") {
            Some(Value::String(path)) if !path.is_empty() => path,
            Some(_) => return Err(wrong(&name, "must be the name of a folder")),
            None => {
                let message = "is missing; without a cluster there are no tiers to name: give the folder for the cache";
                return Err(wrong(&name, message));
            }
        };
        // What a cluster calls this disk means nothing here.
        tier.entry("name").or_insert_with(|| format!("local-{n}").into());
        Ok(path.into())
    };
    let none = || wrong("spec.cache.tiers", &format!("must have 1 to {MAX_TIERS} entries"));
    tiers.ok_or_else(none)?.iter_mut().enumerate().map(take).collect()
}

/// The schema that the API server checks against.
fn schema() -> Value {
    let crd = CacheDataset::crd();
    let version = crd.spec.versions.into_iter().next().and_then(|v| v.schema).and_then(|s| s.open_api_v3_schema);
    let mut schema = serde_json::to_value(version).unwrap_or_default();
    // What every kind has is not in a kind's own schema.
    for field in ["apiVersion", "kind", "metadata"] {
        schema["properties"][field] = serde_json::json!({});
    }
    schema
}

/// From what names the data: two files about the same source share one cache.
fn uid(spec: &CacheDatasetSpec) -> String {
    let mut hash = blake3::Hasher::new_derive_key("larder 2026 dataset uid of a machine v1");
    for part in [spec.source.folder_uri().as_str(), spec.source.endpoint.as_deref().unwrap_or_default()] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex = hash.finalize().to_hex();
    // Of version 8: "the meaning of the bits is the application's".
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}

#[cfg(test)]
impl Dataset {
    /// One without disks.
    pub fn of_source(uri: &str) -> Self {
        let file = serde_json::json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CacheDataset",
            "metadata": { "name": "demo" },
            "spec": { "source": { "uri": uri }, "cache": { "tiers": [{ "path": "cache", "quota": "1Gi" }] } },
        });
        Self { disks: Vec::new(), ..Self::parse(Path::new("/ds.yaml"), &file.to_string()).unwrap() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: larder.dev/v1alpha1
kind: CacheDataset
metadata: { name: imagenet }
spec:
  source:
    uri: s3://datasets/imagenet
    credentials: { anonymous: {} }
  cache:
    tiers: [{ path: cache, quota: 2Gi }]
  mount: { fileMode: 0440 }
";

    fn parse(text: &str) -> Result<Dataset, DatasetError> {
        Dataset::parse(Path::new("/home/me/imagenet.yaml"), text)
    }

    fn refused(from: &str, to: &str) -> String {
        assert!(FILE.contains(from), "{from}");
        parse(&FILE.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn a_cache_dataset_with_a_path_is_read() {
        let dataset = parse(FILE).unwrap();
        assert_eq!(dataset.name, "imagenet");
        assert_eq!(dataset.disks, [Disk { tier: "/home/me/cache".into(), quota: 2 << 30 }]);
        assert_eq!(dataset.spec.mount.file_mode, 0o440);
        assert!(dataset.wants_preload());
        assert_eq!(dataset.bandwidth, 0);
        assert_eq!(parse(&format!("{FILE}  preload: {{ bandwidth: 2Mi }}\n")).unwrap().bandwidth, 2 << 20);
        assert!(larder_core::names::is_uid(&dataset.uid), "{}", dataset.uid);
        let source = dataset.source();
        assert_eq!((source.uri.as_str(), source.anonymous), ("s3://datasets/imagenet/", true));
    }

    #[test]
    fn errors_name_the_field_and_say_what_there_is() {
        for (from, to, says) in [
            ("mount: {", "mounts: {", "unknown field spec.mounts; there are cache, mount"),
            ("quota: 2Gi", "quota: 2Gi, size: 1", "unknown field spec.cache.tiers[0].size; there are name, quota"),
            ("uri: s3://datasets/imagenet", "uri: [1]", "spec.source.uri: invalid type"),
            ("quota: 2Gi", "quota: none", "spec.cache.tiers[0].quota: must be more than 0"),
            ("path: cache, ", "", "spec.cache.tiers[0].path: is missing"),
            ("tiers: [{ path: cache, quota: 2Gi }]", "tiers: []", "spec.cache.tiers: must have 1 to 8 entries"),
            ("{ path: cache, quota: 2Gi }", "/nvme", "spec.cache.tiers[0]: must have path and quota"),
            ("cache:\n    tiers: [{ path: cache, quota: 2Gi }]", "cache: /nvme", "spec.cache: must have fields"),
            ("cache:\n    tiers: [{ path: cache, quota: 2Gi }]", "cache: [{ path: cache }]", "spec.cache: must have fields"),
            (
                "  mount: {",
                "  preload: { bandwidth: fast }\n  mount: {",
                "spec.preload.bandwidth: \"fast\": must be more than 0",
            ),
            ("  mount: {", "  preload: { bandwidth: '0' }\n  mount: {", "spec.preload.bandwidth: \"0\": must be more than 0"),
            (
                "  mount: {",
                "  preload: { bandwidth: -1Gi }\n  mount: {",
                "spec.preload.bandwidth: \"-1Gi\": must be more than 0",
            ),
            ("0440", "01777", "spec.mount.fileMode: 0o1777"),
            ("CacheDataset\n", "Pod\n", "kind: must be CacheDataset"),
            ("kind:", "kind: a: b", "imagenet.yaml: "),
        ] {
            let error = refused(from, to);
            assert!(error.starts_with("/home/me/imagenet.yaml") || error.starts_with("read /home/me/imagenet.yaml"), "{error}");
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }

    /// Places of everything in the document, and the document itself.
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| pointers(value, &format!("{at}/{name}"), found)),
            Value::Array(items) => items.iter().enumerate().for_each(|(n, item)| pointers(item, &format!("{at}/{n}"), found)),
            _ => {}
        }
    }

    #[test]
    fn whatever_stands_where_something_else_should_is_an_error_and_no_panic() {
        let file = serde_json::json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CacheDataset",
            "metadata": { "name": "demo", "labels": { "a": "b" } },
            "spec": {
                "source": {
                    "uri": "s3://b/p/", "endpoint": "http://minio", "region": "r", "pathStyle": true, "include": ["a"], "exclude": ["b"],
                    "credentials": { "secretRef": { "name": "s" } }, "ca": { "configMapRef": { "name": "c" } },
                },
                "cache": { "tiers": [{ "path": "cache", "quota": "2Gi", "name": "n" }], "replicas": 1 },
                "mount": { "uid": 1, "gid": 1, "fileMode": 288, "dirMode": 365, "mode": "Auto" },
                "preload": { "policy": "OnCreate", "paths": ["a/"], "bandwidth": "1Gi" },
                "workers": { "nodeSelector": { "a": "b" }, "tolerations": [] },
            },
        });
        parse(&file.to_string()).unwrap();
        let mut places = Vec::new();
        pointers(&file, "", &mut places);
        assert!(places.len() > 40);
        let others = ["\"/nvme\"", "\"\"", "7", "-1", "1e99", "[1]", "[]", "{}", "{\"a\":1}", "null", "true"];
        for (place, other) in places.iter().flat_map(|place| others.map(|other| (place, other))) {
            let mut changed = file.clone();
            *changed.pointer_mut(place).unwrap() = serde_json::from_str(other).unwrap();
            if let Err(e) = parse(&changed.to_string()) {
                assert!(e.to_string().contains("/home/me/imagenet.yaml"), "{place} {other}: {e}");
            }
        }
        for place in ["/spec", "/spec/cache", "/spec/cache/tiers"] {
            let mut changed = file.clone();
            *changed.pointer_mut(place).unwrap() = "x".into();
            let said = parse(&changed.to_string()).unwrap_err().to_string();
            assert!(said.contains(&format!(": {}: ", place[1..].replace('/', "."))), "{said}");
        }
    }

    #[test]
    fn the_uid_is_the_sources() {
        let uid = |from: &str, to: &str| parse(&FILE.replace(from, to)).unwrap().uid;
        let same = parse(FILE).unwrap().uid;
        assert_eq!(uid("name: imagenet", "name: other"), same);
        assert_eq!(uid("s3://datasets/imagenet", "s3://datasets/imagenet/"), same);
        assert_eq!(uid("quota: 2Gi", "quota: 3Gi"), same);
        assert_ne!(uid("s3://datasets/imagenet", "s3://datasets/other"), same);
        assert_ne!(uid("credentials:", "endpoint: http://minio\n    credentials:"), same);
    }

    #[test]
    fn a_folder_needs_no_credentials() {
        let text =
            FILE.replace("s3://datasets/imagenet", "file:///data/imagenet").replace("    credentials: { anonymous: {} }\n", "");
        assert_eq!(parse(&text).unwrap().source().uri, "file:///data/imagenet/");
    }
}
