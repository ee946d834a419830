//! Records: small JSON files in a folder of the driver's own.

use larder_core::format::{LaterFormat, Versioned};
use larder_io::replace::{PowerLoss, Readers, replace};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("read the records in {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("record {} {source}", path.display())]
    Later { path: PathBuf, source: LaterFormat },
    #[error("write record {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("remove record {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// A folder of records. What is in it is read once, by [`Records::open`].
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    /// The folder, made if it is missing, and the records in it by name, of formats up to `reads`. One that cannot be read, or is not
    /// sound under its name, is left where it is and logged.
    ///
    /// # Errors
    /// The disk's; one of a later format, because whoever goes on without it takes something away that it stands for.
    pub(crate) fn open<T: DeserializeOwned>(
        folder: &Path,
        reads: u32,
        is_sound: impl Fn(&T, &str) -> bool,
    ) -> Result<(Self, BTreeMap<String, T>), RecordError> {
        let wrap = |source| RecordError::Folder { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(wrap)?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(wrap)? {
            let path = entry.map_err(wrap)?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            let read = fs::read(&path).map_err(|e| e.to_string());
            if let Some(Versioned { version }) = read.as_ref().ok().and_then(|bytes| serde_json::from_slice(bytes).ok()) {
                LaterFormat::refuse(version, reads).map_err(|source| RecordError::Later { path: path.clone(), source })?;
            }
            match read.and_then(|bytes| serde_json::from_slice::<T>(&bytes).map_err(|e| e.to_string())) {
                Ok(record) if is_sound(&record, &name) => {
                    records.insert(name, record);
                }
                Ok(_) => tracing::error!(path = %path.display(), "record is not sound; ignoring it"),
                Err(error) => tracing::error!(path = %path.display(), error, "record is not readable; ignoring it"),
            }
        }
        Ok((Self { folder: folder.to_owned() }, records))
    }

    /// All or nothing, also when the power fails.
    pub(crate) fn write(&self, name: &str, record: &impl Serialize) -> Result<(), RecordError> {
        let path = self.path(name);
        let encoded = serde_json::to_vec(record).map_err(io::Error::from);
        let written = encoded.and_then(|bytes| replace(&path, &bytes, Readers::Usual, PowerLoss::KeepsNew));
        written.map_err(|source| {
            // Half a file, on a disk that may be full.
            let _ = fs::remove_file(path.with_extension("part"));
            RecordError::Write { path, source }
        })
    }

    /// Does nothing when there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}
