//! The way to a snapshot: one worker lists, all fetch the catalog, then it is published.
//!
//! Nothing is remembered here: the state of the way is read from the workers' status each time. The lister is the worker that
//! says it has begun; only when nobody has, and every ready worker answered, one is picked.

use super::pods::Worker;
use larder_api::cache_dataset::{SnapshotStatus, Source};
use larder_proto::control::v1::{Listing, Phase, StatusResponse};
use std::collections::BTreeMap;

/// What the workers answered, by node.
pub(super) type Statuses = BTreeMap<String, Result<StatusResponse, String>>;

/// Where the way to the snapshot stands.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// Node whose worker lists, or listed.
    pub lister: Option<String>,
    /// The lister's report, once there is one about this listing.
    pub listing: Option<Listing>,
    /// Digest for every worker's orders: the newest one known.
    pub digest: Option<String>,
    /// Is it the result of the settings of now?
    pub current: bool,
    /// Workers that have its catalog, of those that answered.
    pub holders: usize,
    /// Workers that answered.
    pub answered: usize,
    /// What goes into `status.snapshot` now.
    pub published: Option<SnapshotStatus>,
}

impl Progress {
    /// Taken, and on everyone who answered?
    pub(super) fn is_complete(&self) -> bool {
        self.current && self.answered > 0 && self.holders == self.answered
    }
}

/// Identifies what is listed.
pub(super) fn listing_id(source: &Source) -> String {
    let endpoint = source.endpoint.as_deref().unwrap_or_default();
    larder_core::key::listing_id(&source.folder_uri(), endpoint, &source.include, &source.exclude)
}

/// Looks where the way stands. `all_here`: every selected node has a ready worker.
pub(super) fn progress(
    wanted: &str,
    prior: Option<&SnapshotStatus>,
    workers: &[Worker],
    statuses: &Statuses,
    all_here: bool,
) -> Progress {
    let answers: BTreeMap<&str, &StatusResponse> =
        statuses.iter().filter_map(|(node, s)| Some((node.as_str(), s.as_ref().ok()?))).collect();
    let ready = workers.iter().filter(|w| w.ready).count();
    let all_answered = ready == answers.len();
    let has = |digest: &str| answers.values().filter(|s| s.snapshots.iter().any(|d| d == digest)).count();

    let listings = || answers.iter().filter_map(|(node, s)| Some((*node, s.listing.as_ref().filter(|l| l.id == wanted)?)));
    let succeeded = |l: &Listing| l.phase() == Phase::Succeeded && !l.snapshot.is_empty();
    // Two may have listed, when one was cut off meanwhile: the published one stays, otherwise the first.
    let done = listings()
        .filter(|(_, l)| succeeded(l))
        .min_by_key(|(node, l)| (prior.is_none_or(|p| p.id != l.snapshot), l.time, *node));

    let mut progress = Progress { answered: answers.len(), ..Progress::default() };
    let from_status = prior.filter(|p| p.listing == wanted);
    // Every disk is lost: the listing has to be taken again.
    let lost = |digest: &str| all_here && all_answered && ready > 0 && has(digest) == 0;
    match (done, from_status) {
        (Some((node, listing)), _) => {
            progress.lister = Some(node.to_owned());
            progress.listing = Some(listing.clone());
            progress.digest = Some(listing.snapshot.clone());
            progress.current = true;
        }
        (None, Some(p)) if !lost(&p.id) => {
            progress.digest = Some(p.id.clone());
            progress.current = true;
        }
        _ => {
            let begun = listings().min_by_key(|(node, l)| (l.phase() != Phase::Running, *node));
            let picked = || all_answered.then(|| answers.keys().next().copied()).flatten();
            progress.lister = begun.map(|(node, _)| node).or_else(picked).map(str::to_owned);
            progress.listing = begun.map(|(_, l)| l.clone());
            // The old snapshot is served until there is a new one.
            progress.digest = prior.filter(|p| has(&p.id) > 0 || !all_answered).map(|p| p.id.clone());
        }
    }
    progress.holders = progress.digest.as_deref().map_or(0, has);
    progress.published = publish(wanted, prior, &progress);
    progress
}

fn publish(wanted: &str, prior: Option<&SnapshotStatus>, progress: &Progress) -> Option<SnapshotStatus> {
    let Some(digest) = progress.digest.as_ref().filter(|_| progress.is_complete()) else { return prior.cloned() };
    match (&progress.listing, prior) {
        (Some(l), _) => Some(SnapshotStatus {
            id: digest.clone(),
            files: l.files,
            bytes: l.bytes,
            skipped: l.skipped,
            listing: wanted.to_owned(),
            time: jiff::Timestamp::from_second(l.time).ok().map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
        }),
        (None, prior) => prior.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{listing, mk_dataset, mk_worker, snapshot_status, status_of};
    use super::*;

    const D: &str = "d1";

    fn ready(nodes: &[&str]) -> Vec<Worker> {
        nodes.iter().map(|n| mk_worker(n, true)).collect()
    }

    #[test]
    fn the_listing_id_follows_what_changes_a_listing_and_nothing_else() {
        let source = mk_dataset().spec.source;
        let id = listing_id(&source);
        assert_eq!(id, listing_id(&Source { uri: source.uri.trim_end_matches('/').into(), ..source.clone() }));
        assert_eq!(id, listing_id(&Source { region: Some("eu-west-1".into()), path_style: true, ..source.clone() }));
        for other in [
            Source { uri: "s3://datasets/coco/".into(), ..source.clone() },
            Source { endpoint: Some("https://other".into()), ..source.clone() },
            Source { include: vec!["a".into()], ..source.clone() },
            Source { exclude: vec!["a".into()], ..source.clone() },
        ] {
            assert_ne!(id, listing_id(&other), "{other:?}");
        }
        let include = Source { include: vec!["a".into(), "b".into()], ..source.clone() };
        let split = Source { include: vec!["a".into()], exclude: vec!["b".into()], ..source };
        assert_ne!(listing_id(&include), listing_id(&split));
    }

    #[test]
    fn the_first_ready_worker_lists_once_all_have_answered() {
        let workers = ready(&["a", "b"]);
        let mut statuses: Statuses = [("a".into(), Ok(StatusResponse::default()))].into();
        statuses.insert("b".into(), Err("timeout".into()));
        assert_eq!(progress("l", None, &workers, &statuses, true).lister, None);
        statuses.insert("b".into(), Ok(StatusResponse::default()));
        assert_eq!(progress("l", None, &workers, &statuses, true).lister.as_deref(), Some("a"));
    }

    #[test]
    fn who_has_begun_stays_the_lister() {
        let statuses: Statuses =
            [("a".into(), Ok(StatusResponse::default())), ("b".into(), Ok(status_of(listing("l", Phase::Running, ""), &[])))]
                .into();
        let p = progress("l", None, &ready(&["a", "b"]), &statuses, true);
        assert_eq!((p.lister.as_deref(), p.digest), (Some("b"), None));
    }

    #[test]
    fn a_snapshot_is_published_when_everyone_who_answers_has_it() {
        let workers = ready(&["a", "b"]);
        let mut statuses: Statuses =
            [("a".into(), Ok(status_of(listing("l", Phase::Succeeded, D), &[D]))), ("b".into(), Ok(StatusResponse::default()))]
                .into();
        let p = progress("l", None, &workers, &statuses, true);
        assert_eq!((p.digest.as_deref(), p.holders, p.answered, p.published.clone()), (Some(D), 1, 2, None));
        assert!(!p.is_complete());
        statuses.insert("b".into(), Ok(status_of(Listing::default(), &[D])));
        let p = progress("l", None, &workers, &statuses, true);
        assert!(p.is_complete());
        let published = p.published.unwrap();
        assert_eq!((published.id.as_str(), published.listing.as_str(), published.files), (D, "l", 10));
    }

    #[test]
    fn a_published_snapshot_is_not_listed_again_when_the_lister_is_gone() {
        let statuses: Statuses = [("b".into(), Ok(status_of(Listing::default(), &[D])))].into();
        let p = progress("l", Some(&snapshot_status("l", D)), &ready(&["b"]), &statuses, true);
        assert_eq!((p.lister.as_deref(), p.digest.as_deref()), (None, Some(D)));
        assert!(p.is_complete());
    }

    #[test]
    fn a_snapshot_that_every_disk_lost_is_listed_again() {
        let workers = ready(&["a", "b"]);
        let empty: Statuses = [("a".into(), Ok(StatusResponse::default())), ("b".into(), Ok(StatusResponse::default()))].into();
        let prior = snapshot_status("l", D);
        let p = progress("l", Some(&prior), &workers, &empty, true);
        assert_eq!((p.lister.as_deref(), p.digest), (Some("a"), None));
        // It may be on a worker that is not up yet.
        let p = progress("l", Some(&prior), &workers, &empty, false);
        assert_eq!((p.lister.as_deref(), p.digest.as_deref()), (None, Some(D)));
    }

    #[test]
    fn the_old_snapshot_is_served_until_the_new_one_is_listed() {
        let prior = snapshot_status("old", "d0");
        let mut statuses: Statuses = [("a".into(), Ok(status_of(listing("new", Phase::Running, ""), &["d0"])))].into();
        let p = progress("new", Some(&prior), &ready(&["a"]), &statuses, true);
        assert_eq!((p.digest.as_deref(), p.current, p.published.as_ref()), (Some("d0"), false, Some(&prior)));
        statuses.insert("a".into(), Ok(status_of(listing("new", Phase::Succeeded, D), &["d0", D])));
        let p = progress("new", Some(&prior), &ready(&["a"]), &statuses, true);
        assert_eq!((p.digest.as_deref(), p.current), (Some(D), true));
        assert_eq!(p.published.unwrap().id, D);
    }

    #[test]
    fn of_two_listings_the_published_one_stays() {
        let mut first = listing("l", Phase::Succeeded, "d1");
        first.time = 1;
        let statuses: Statuses = [
            ("a".into(), Ok(status_of(first, &["d1"]))),
            ("b".into(), Ok(status_of(listing("l", Phase::Succeeded, "d2"), &["d2"]))),
        ]
        .into();
        let workers = ready(&["a", "b"]);
        assert_eq!(progress("l", None, &workers, &statuses, true).digest.as_deref(), Some("d1"));
        let prior = snapshot_status("l", "d2");
        assert_eq!(progress("l", Some(&prior), &workers, &statuses, true).digest.as_deref(), Some("d2"));
    }
}
