//! What the origin is reached with: from the environment, or from files named by flags. Secrets and ConfigMaps of a cluster
//! cannot be looked up here.

use crate::{Source, dataset::Dataset};
use larder_origin::{Access, Credentials, CredentialsError, Folders};
use std::{fs, io, path::PathBuf};

/// Why there is no access.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error(
        "spec.source.credentials.secretRef names a Secret, and there is no cluster to look it up in; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --credentials a folder with the Secret's keys as files"
    )]
    NoSecret,
    #[error("spec.source.credentials: must have exactly one of secretRef and anonymous")]
    NotOne,
    #[error("the environment has {has} and not {lacks}; set both")]
    Half { has: &'static str, lacks: &'static str },
    #[error("--credentials {}: holds neither accessKeyId and secretAccessKey nor AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", .0.display())]
    Empty(PathBuf),
    #[error("--credentials: {0}")]
    Folder(#[from] CredentialsError),
    #[error(
        "spec.source.ca names a ConfigMap, and there is no cluster to look it up in; give the certificate authority with --ca FILE"
    )]
    NoConfigMap,
    #[error("--ca {}: {source}", path.display())]
    Ca { path: PathBuf, source: io::Error },
}

const ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";

/// `env` looks a variable up.
pub(crate) fn find(dataset: &Dataset, flags: &Source, env: impl Fn(&str) -> Option<String>) -> Result<Access, AccessError> {
    let source = &dataset.spec.source;
    let ca = match &flags.ca {
        Some(path) => Some(fs::read(path).map_err(|source| AccessError::Ca { path: path.clone(), source })?),
        None if source.ca.is_some() => return Err(AccessError::NoConfigMap),
        None => None,
    };
    // Whoever mounts could read a folder anyway.
    let folders = Folders::Any;
    if source.uri.starts_with("file:") {
        return Ok(Access { ca, folders, ..Access::default() });
    }
    let credentials = match (source.credentials.secret_ref.is_some(), source.credentials.anonymous.is_some()) {
        (true, true) | (false, false) => return Err(AccessError::NotOne),
        (false, true) => None,
        (true, false) => Some(match &flags.credentials {
            Some(folder) => Credentials::load(folder)?.ok_or_else(|| AccessError::Empty(folder.clone()))?,
            None => from_environment(env)?,
        }),
    };
    Ok(Access { credentials, ca, folders, ..Access::default() })
}

fn from_environment(env: impl Fn(&str) -> Option<String>) -> Result<Credentials, AccessError> {
    let env = |name| env(name).filter(|value| !value.is_empty());
    match (env(ID), env(SECRET)) {
        (Some(id), Some(secret)) => Ok(Credentials::new(&id, &secret, env(TOKEN).as_deref())),
        (None, None) => Err(AccessError::NoSecret),
        (Some(_), None) => Err(AccessError::Half { has: ID, lacks: SECRET }),
        (None, Some(_)) => Err(AccessError::Half { has: SECRET, lacks: ID }),
    }
}
