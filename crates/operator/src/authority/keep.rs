//! Brings Secret and ConfigMap to what [`upkeep`] says, and takes from them what this process signs and shows.

use crate::controllers::cache_dataset::MANAGER;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
};
use larder_core::names;
use larder_trust::{
    Authority, AuthorityError, Bundle, BundleError, Credentials, CredentialsError, Identity, Kept, Lifetimes, now, upkeep,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Between looks at a CA that is there, and at one that is not there yet.
const LOOK: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(1);

/// Why there is no CA, or an old one.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("get {object}: {source}")]
    Get { object: &'static str, source: kube::Error },
    #[error("write {object}: {source}")]
    Write { object: &'static str, source: kube::Error },
    #[error("Secret larder-authority holds no key of a CA in {key}: {reason}; delete the Secret to have a new CA made")]
    Stored { key: String, reason: String },
    #[error("ConfigMap larder-authority: {0}; delete the ConfigMap to have it written again")]
    Published(BundleError),
    #[error("there is no CA yet; the leading operator makes it")]
    NotYet,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

const SECRET: &str = "Secret larder-authority";
const CONFIG_MAP: &str = "ConfigMap larder-authority";

pub(super) struct Keep {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    lifetimes: Lifetimes,
    held: watch::Sender<Option<Arc<Credentials>>>,
    kept: watch::Sender<Option<Arc<Kept>>>,
}

impl Keep {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        lifetimes: Lifetimes,
        held: watch::Sender<Option<Arc<Credentials>>>,
        kept: watch::Sender<Option<Arc<Kept>>>,
    ) -> Self {
        let (secrets, config_maps) = (Api::namespaced(client.clone(), namespace), Api::namespaced(client, namespace));
        Self { secrets, config_maps, lifetimes, held, kept }
    }

    pub(super) async fn run(self, mut leads: watch::Receiver<bool>) {
        let mut last = None;
        loop {
            let leader = *leads.borrow_and_update();
            let failed = self.round(leader).await.err();
            let pause = if failed.is_none() { LOOK } else { WAIT };
            let told = failed.map(|e| e.to_string());
            if let Some(error) = told.as_ref().filter(|error| last.as_ref() != Some(*error)) {
                tracing::warn!(error, "the CA is not as it should be; trying again");
            }
            last = told;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = leads.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    async fn round(&self, leader: bool) -> Result<(), KeepError> {
        let secret =
            self.secrets.get_opt(names::AUTHORITY).await.map_err(|source| KeepError::Get { object: SECRET, source })?;
        let map = self.config_maps.get_opt(names::AUTHORITY).await;
        let map = map.map_err(|source| KeepError::Get { object: CONFIG_MAP, source })?;
        let mut stored = secret.as_ref().and_then(|s| s.data.clone()).unwrap_or_default();
        stored.retain(|key, _| key.ends_with(".crt") || key.ends_with(".key"));
        let published = map.as_ref().and_then(|m| m.data.as_ref()?.get(names::AUTHORITY_BUNDLE_KEY).cloned());
        let bundle = published.as_deref().map(Bundle::from_pem).transpose().map_err(KeepError::Published)?;
        let kept = upkeep(authorities(&stored)?, bundle.as_ref(), &self.lifetimes, now())?;

        let (keys, pem) = (data(&kept.authorities), kept.bundle.to_pem());
        if (keys != stored || published.as_ref() != Some(&pem)) && !leader {
            // Until the leader has written it, this one goes on with what it has.
            return if self.kept.borrow().is_some() { Ok(()) } else { Err(KeepError::NotYet) };
        }
        // The key before what others are to trust, and both before anything is signed.
        if keys != stored {
            let wanted = Secret { type_: Some("Opaque".into()), data: Some(keys), ..Secret::default() };
            write(&self.secrets, wanted, secret.as_ref(), SECRET).await?;
            tracing::info!(authorities = kept.authorities.len(), "the keys of the CA are written");
        }
        if published.as_ref() != Some(&pem) {
            let data = Some([(names::AUTHORITY_BUNDLE_KEY.to_owned(), pem)].into());
            write(&self.config_maps, ConfigMap { data, ..ConfigMap::default() }, map.as_ref(), CONFIG_MAP).await?;
            tracing::info!("the certificates of the CA are published");
        }
        self.certify(&kept)?;
        self.kept.send_replace(Some(Arc::new(kept)));
        Ok(())
    }

    /// A certificate for this process, if it needs one.
    fn certify(&self, kept: &Kept) -> Result<(), KeepError> {
        let good = |held: &Arc<Credentials>| held.leaf().renew_at() > now() && *held.bundle() == kept.bundle;
        if self.held.borrow().as_ref().is_some_and(good) {
            return Ok(());
        }
        let leaf = kept.signer().leaf(&Identity::Operator, &self.lifetimes)?;
        let credentials = Credentials::new(leaf, kept.bundle.clone())?;
        self.held.send_replace(Some(Arc::new(credentials)));
        Ok(())
    }
}

/// Replaces what was read, and nothing that was written since.
async fn write<K>(api: &Api<K>, mut wanted: K, found: Option<&K>, object: &'static str) -> Result<(), KeepError>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
{
    *wanted.meta_mut() = ObjectMeta {
        name: Some(names::AUTHORITY.to_owned()),
        resource_version: found.and_then(K::resource_version),
        ..ObjectMeta::default()
    };
    let written = api.patch(names::AUTHORITY, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&wanted)).await;
    written.map(drop).map_err(|source| KeepError::Write { object, source })
}

/// `<a name>.crt` and `<the same>.key` of each CA.
fn authorities(data: &BTreeMap<String, ByteString>) -> Result<Vec<Authority>, KeepError> {
    let names = data.keys().filter_map(|key| key.strip_suffix(".crt"));
    let text = |key: &str| data.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default();
    names
        .map(|name| {
            let authority = Authority::from_pem(text(&format!("{name}.crt")), text(&format!("{name}.key")));
            authority.map_err(|e| KeepError::Stored { key: format!("{name}.key"), reason: e.to_string() })
        })
        .collect()
}

fn data(authorities: &[Authority]) -> BTreeMap<String, ByteString> {
    authorities
        .iter()
        .flat_map(|authority| {
            let (certificate, key) = authority.to_pem();
            let name = authority.name();
            [(format!("{name}.crt"), ByteString(certificate.into())), (format!("{name}.key"), ByteString(key.into()))]
        })
        .collect()
}

#[cfg(test)]
mod tests;
