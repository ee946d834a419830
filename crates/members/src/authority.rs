//! The certificates of the operator's CA, in a ConfigMap that only the operator writes.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use larder_core::names;
use tokio::sync::watch;

/// Follows them; `None` until they are there first. What was known last stands when they, or the API server, go away. Ends when
/// nobody listens any more.
#[must_use]
pub fn bundle(client: Client, namespace: &str) -> watch::Receiver<Option<String>> {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", names::AUTHORITY));
    let maps = watcher(Api::<ConfigMap>::namespaced(client, namespace), config).default_backoff();
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut maps = std::pin::pin!(maps);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                event = maps.next() => match event {
                    Some(Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map))) => {
                        let Some(text) = map.data.and_then(|mut data| data.remove(names::AUTHORITY_BUNDLE_KEY)) else { continue };
                        sender.send_if_modified(|old| old.replace(text.clone()).is_none_or(|old| old != text));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::warn!(%error, "watch of the CA's certificates interrupted; going on with the last known ones");
                    }
                    None => return,
                },
            }
        }
    });
    receiver
}
