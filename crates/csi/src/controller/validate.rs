//! Requests to the controller → what they mean, or the error that the specification has for them.

use crate::{
    arguments::{capability, object_name, text},
    error::CallError,
    volumes::{Dataset, Volume},
};
use larder_api::labels;
use larder_proto::csi::v1::{CapacityRange, CreateVolumeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability};
use std::collections::HashMap;

/// A capacity that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) required: i64,
    /// None for any.
    limit: Option<i64>,
}

impl Range {
    fn new(range: Option<&CapacityRange>) -> Result<Self, CallError> {
        let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
        let limit = (limit != 0).then_some(limit);
        if required < 0 || limit.is_some_and(|limit| limit < 0) {
            return Err(CallError::OutOfRange("a size is negative"));
        }
        if limit.is_some_and(|limit| limit < required) {
            return Err(CallError::OutOfRange("limit_bytes is less than required_bytes"));
        }
        Ok(Self { required, limit })
    }

    pub(super) fn holds(self, capacity: i64) -> bool {
        self.required <= capacity && self.limit.is_none_or(|limit| capacity <= limit)
    }
}

/// A volume that can be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Create<'a> {
    pub(super) name: &'a str,
    pub(super) dataset: Dataset,
    pub(super) range: Range,
}

pub(super) fn create(request: &CreateVolumeRequest) -> Result<Create<'_>, CallError> {
    text("name", &request.name)?;
    capabilities(&request.volume_capabilities)?;
    let dataset = dataset(&request.parameters)?;
    nothing_mutable(&request.mutable_parameters)?;
    if request.volume_content_source.is_some() {
        return Err(CallError::invalid("volume_content_source", "a volume shows its dataset; it is made of no other"));
    }
    Ok(Create { name: &request.name, dataset, range: Range::new(request.capacity_range.as_ref())? })
}

/// Why a volume is not what a caller takes it for.
pub(super) fn fits(volume: &Volume, request: &ValidateVolumeCapabilitiesRequest) -> Result<(), CallError> {
    capabilities(&request.volume_capabilities)?;
    nothing_mutable(&request.mutable_parameters)?;
    let is = volume.dataset.parameters();
    for (field, map) in [("volume_context", &request.volume_context), ("parameters", &request.parameters)] {
        if !map.is_empty() && *map != is {
            return Err(CallError::invalid(field, "is not that of the volume; give what CreateVolume answered"));
        }
    }
    Ok(())
}

fn capabilities(all: &[VolumeCapability]) -> Result<(), CallError> {
    const FIELD: &str = "volume_capabilities";
    if all.is_empty() {
        return Err(CallError::invalid(FIELD, "is empty, and must not be"));
    }
    all.iter().try_for_each(|one| capability(FIELD, one))
}

fn nothing_mutable(parameters: &HashMap<String, String>) -> Result<(), CallError> {
    if parameters.is_empty() {
        return Ok(());
    }
    Err(CallError::invalid("mutable_parameters", "a volume has nothing that can be changed; change the CacheDataset"))
}

fn dataset(parameters: &HashMap<String, String>) -> Result<Dataset, CallError> {
    const FIELD: &str = "parameters";
    let unknown = parameters.keys().filter(|key| ![labels::DATASET_NAMESPACE, labels::DATASET_NAME].contains(&key.as_str()));
    // Always the same of several.
    if let Some(key) = unknown.min() {
        return Err(CallError::invalid(FIELD, format!("{key:?} is none of the driver's; remove it")));
    }
    let value = |key: &str| {
        let name = object_name(parameters, key);
        name.map(str::to_owned)
            .ok_or_else(|| CallError::invalid(FIELD, format!("{key} is missing or no name; give the dataset's")))
    };
    Ok(Dataset { namespace: value(labels::DATASET_NAMESPACE)?, name: value(labels::DATASET_NAME)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_proto::csi::v1::{
        VolumeContentSource,
        volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    };
    use tonic::Code;

    fn mk_capability(access_type: Option<AccessType>, mode: Mode) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
    }

    fn mk_mount(mode: Mode) -> VolumeCapability {
        mk_capability(Some(AccessType::Mount(MountVolume::default())), mode)
    }

    fn mk_dataset() -> Dataset {
        Dataset { namespace: "vision".into(), name: "imagenet".into() }
    }

    fn mk_request() -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: "pvc-1".into(),
            volume_capabilities: vec![mk_mount(Mode::MultiNodeReaderOnly)],
            parameters: mk_dataset().parameters(),
            ..CreateVolumeRequest::default()
        }
    }

    /// The request with a change is refused with a code, by a message that names the field.
    fn expect(code: Code, field: &str, change: impl FnOnce(&mut CreateVolumeRequest)) {
        let mut request = mk_request();
        change(&mut request);
        let Err(error) = create(&request) else { panic!("{field} is taken") };
        assert_eq!((error.code(), error.to_string().starts_with(field)), (code, true), "{error}");
    }

    fn refuse(field: &str, change: impl FnOnce(&mut CreateVolumeRequest)) {
        expect(Code::InvalidArgument, field, change);
    }

    #[test]
    fn a_name_is_what_the_specification_lets_it_be() {
        for good in ["a", "../../etc", "a/b", "é 名\t\n", "%00", &"x".repeat(128), &"é".repeat(64)] {
            let request = CreateVolumeRequest { name: good.into(), ..mk_request() };
            assert_eq!(create(&request).unwrap().name, good);
        }
        for bad in ["", "a\0b", "a\u{7f}", "\u{85}", "\u{1b}[31m", &"x".repeat(129), &"é".repeat(65), &"x".repeat(1 << 20)] {
            refuse("name", |r| r.name = bad.into());
        }
    }

    #[test]
    fn parameters_name_a_dataset_and_nothing_else() {
        let created = mk_request();
        assert_eq!(create(&created).unwrap().dataset, mk_dataset());
        refuse("parameters", |r| r.parameters.clear());
        for key in [labels::DATASET_NAME, labels::DATASET_NAMESPACE] {
            refuse("parameters", |r| drop(r.parameters.remove(key)));
            for bad in ["", "../x", "a/b", "-a", "A", "a\0", "é", &"a".repeat(254)] {
                refuse("parameters", |r| drop(r.parameters.insert(key.into(), bad.into())));
            }
        }
        // The same key in another case is another key.
        for key in ["Larder.dev/dataset-name", "larder.dev/DATASET-NAME", "", "path", "../x\0", &"k".repeat(1 << 16)] {
            refuse("parameters", |r| drop(r.parameters.insert(key.into(), "imagenet".into())));
        }
        let mut two = mk_request();
        two.parameters.extend([("zebra".to_owned(), String::new()), ("apple".to_owned(), String::new())]);
        assert!(create(&two).unwrap_err().to_string().contains("\"apple\""));
    }

    #[test]
    fn every_capability_must_be_one_of_a_file_system() {
        let field = "volume_capabilities";
        refuse(field, |r| r.volume_capabilities.clear());
        refuse(field, |r| r.volume_capabilities.push(VolumeCapability::default()));
        refuse(field, |r| r.volume_capabilities.push(mk_mount(Mode::Unknown)));
        refuse(field, |r| r.volume_capabilities.push(mk_capability(None, Mode::SingleNodeWriter)));
        let block = Some(AccessType::Block(BlockVolume {}));
        refuse(field, |r| r.volume_capabilities.push(mk_capability(block, Mode::SingleNodeWriter)));
        // A number that no release of the specification that we know has.
        let access_mode = Some(AccessMode { mode: 99 });
        refuse(field, |r| r.volume_capabilities.push(VolumeCapability { access_mode, ..mk_mount(Mode::Unknown) }));
        let mount_flags = vec!["fd=3".to_owned()];
        let flags = Some(AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() }));
        refuse(field, |r| r.volume_capabilities.push(mk_capability(flags, Mode::SingleNodeWriter)));
    }

    #[test]
    fn a_volume_is_made_of_nothing_and_has_nothing_to_change() {
        refuse("volume_content_source", |r| r.volume_content_source = Some(VolumeContentSource::default()));
        refuse("mutable_parameters", |r| drop(r.mutable_parameters.insert("a".into(), "b".into())));
    }

    #[test]
    fn a_range_holds_what_lies_in_it() {
        let range = |required_bytes, limit_bytes| Range::new(Some(&CapacityRange { required_bytes, limit_bytes }));
        for (required, limit) in [(-1, 0), (0, -1), (2, 1), (i64::MIN, i64::MAX)] {
            let capacity_range = Some(CapacityRange { required_bytes: required, limit_bytes: limit });
            expect(Code::OutOfRange, "capacity_range", |r| r.capacity_range = capacity_range);
        }
        let holds = |required, limit, capacity| range(required, limit).unwrap().holds(capacity);
        assert!(holds(1, 1, 1) && holds(1, 0, i64::MAX) && holds(0, 3, 0) && holds(0, 0, 7));
        assert!(!holds(2, 0, 1) && !holds(0, 1, 2) && !holds(1, 0, 0));
        assert_eq!(Range::new(None).unwrap(), range(0, 0).unwrap());
    }

    #[test]
    fn a_volume_fits_only_those_who_take_it_for_what_it_is() {
        let volume = Volume::new("a", &mk_dataset(), "uid".into(), 0);
        let is = mk_dataset().parameters();
        let fits = |change: &dyn Fn(&mut ValidateVolumeCapabilitiesRequest)| {
            let mut request = ValidateVolumeCapabilitiesRequest {
                volume_id: volume.id(),
                volume_capabilities: vec![mk_mount(Mode::SingleNodeWriter)],
                ..Default::default()
            };
            change(&mut request);
            fits(&volume, &request).map_err(|e| e.to_string())
        };
        assert_eq!(fits(&|_| {}), Ok(()));
        assert_eq!(fits(&|r| (r.volume_context, r.parameters) = (is.clone(), is.clone())), Ok(()));
        let other = Dataset { namespace: "speech".into(), ..mk_dataset() }.parameters();
        assert!(fits(&|r| r.volume_context = other.clone()).unwrap_err().starts_with("volume_context"));
        assert!(fits(&|r| r.parameters = other.clone()).unwrap_err().starts_with("parameters"));
        assert!(fits(&|r| r.mutable_parameters = is.clone()).unwrap_err().starts_with("mutable_parameters"));
        let block = mk_capability(Some(AccessType::Block(BlockVolume {})), Mode::SingleNodeWriter);
        assert!(fits(&|r| r.volume_capabilities.push(block.clone())).unwrap_err().starts_with("volume_capabilities"));
    }
}
