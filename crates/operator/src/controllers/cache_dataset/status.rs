//! Writes status when it changed, and tells an Event for each condition that did.

use super::{
    Context, MANAGER,
    error::{Error, is_not_found},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use larder_api::{
    CacheDataset, CacheDatasetStatus,
    conditions::{
        reasons::{preload, ready, snapshot, workers},
        types,
    },
};
use serde_json::json;

/// The API server refuses longer notes.
const NOTE_BYTES: usize = 1000;
/// Reasons of a normal way to ready: no warning is due.
const ON_THE_WAY: [&str; 9] = [
    workers::STARTING,
    snapshot::WAITING_FOR_WORKERS,
    snapshot::LISTING_RUNNING,
    snapshot::DISTRIBUTING,
    preload::RUNNING,
    preload::WAITING_FOR_SNAPSHOT,
    preload::NOT_REQUESTED,
    ready::CLAIM_PENDING,
    ready::DELETING,
];

/// Writes `wanted` unless it is there already.
pub(super) async fn write(dataset: &CacheDataset, wanted: &CacheDatasetStatus, context: &Context) -> Result<(), Error> {
    if dataset.status.as_ref() == Some(wanted) {
        return Ok(());
    }
    let (namespace, name) = (dataset.namespace().unwrap_or_default(), dataset.name_any());
    let api: Api<CacheDataset> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({
        "apiVersion": CacheDataset::api_version(&()),
        "kind": CacheDataset::kind(&()),
        // Never brings a dataset back that is gone, never writes on one that was made again.
        "metadata": { "name": name, "uid": dataset.uid() },
        "status": wanted,
    });
    match api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await {
        Ok(_) => {}
        Err(e) if is_not_found(&e) => return Ok(()),
        Err(source) => return Err(Error::Status { dataset: format!("{namespace}/{name}"), source }),
    }
    let old = dataset.status.as_ref().map_or(&[][..], |s| &s.conditions);
    for condition in changed(old, &wanted.conditions) {
        let (type_, status, reason) = (&condition.type_, &condition.status, &condition.reason);
        tracing::info!(namespace, dataset = name, "{type_} is {status}: {reason}: {}", condition.message);
        if let Err(error) = context.recorder.publish(&event(condition), &dataset.object_ref(&())).await {
            // An Event is for people who watch; the condition itself is written.
            tracing::debug!(namespace, dataset = name, %error, "event was not published");
        }
    }
    Ok(())
}

/// Tells something that no condition is about, or that will have none any more.
pub(super) async fn warn(dataset: &CacheDataset, reason: &str, note: &str, context: &Context) {
    let event = Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(cut(note.to_owned())),
        action: reason.to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &dataset.object_ref(&())).await {
        tracing::debug!(dataset = dataset.name_any(), %error, "event was not published");
    }
}

fn cut(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(NOTE_BYTES));
    note
}

/// Conditions with another status or reason than before. The first ones, that nothing is known yet, are no news; nor is `Ready`
/// when it only takes the reason of another that is told.
fn changed<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    let changed = |c: &&Condition| match old.iter().find(|o| o.type_ == c.type_) {
        Some(o) => (&o.status, &o.reason) != (&c.status, &c.reason),
        None => c.status != "Unknown",
    };
    let mut all: Vec<&Condition> = new.iter().filter(changed).collect();
    let told: Vec<&str> = all.iter().filter(|c| c.type_ != types::READY).map(|c| c.reason.as_str()).collect();
    let echo = |c: &&Condition| c.type_ == types::READY && told.contains(&c.reason.as_str());
    all.retain(|c| !echo(c));
    all
}

fn event(condition: &Condition) -> Event {
    let normal = condition.status == "True" || ON_THE_WAY.contains(&condition.reason.as_str());
    let note = format!("{} is {}: {}", condition.type_, condition.status, condition.message);
    Event {
        type_: if normal { EventType::Normal } else { EventType::Warning },
        reason: condition.reason.clone(),
        note: Some(cut(note)),
        action: condition.type_.clone(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::cache_dataset::{conditions::Cause, testing::now};

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Condition {
        super::super::conditions::condition(type_, status, Cause::new(reason, message), Some(1), &[], now())
    }

    #[test]
    fn only_changes_are_told() {
        let old = [
            condition("Ready", "False", "WorkersStarting", "0 of 2"),
            condition("Preloaded", "False", "PreloadRunning", "1 %"),
        ];
        let new = [condition("Ready", "False", "WorkersStarting", "1 of 2"), condition("Preloaded", "True", "Complete", "")];
        assert_eq!(changed(&old, &new).iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Preloaded"]);
        let first =
            [condition("Ready", "False", "TierUnknown", ""), condition("Preloaded", "Unknown", "WaitingForSnapshot", "")];
        assert_eq!(changed(&[], &first).iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Ready"]);
        let echo = [condition("Ready", "False", "TierUnknown", ""), condition("WorkersReady", "False", "TierUnknown", "")];
        assert_eq!(changed(&[], &echo).iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["WorkersReady"]);
    }

    #[test]
    fn a_normal_start_is_no_warning_and_a_long_note_is_cut() {
        assert!(event(&condition("WorkersReady", "False", "WorkersStarting", "")).type_ == EventType::Normal);
        assert!(event(&condition("WorkersReady", "False", "TierUnknown", "")).type_ == EventType::Warning);
        assert!(event(&condition("Ready", "True", "Ready", &"é".repeat(900))).note.unwrap().len() <= NOTE_BYTES);
    }
}
