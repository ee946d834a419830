//! One world per situation; each test says what the conditions tell the user, and what is done.

use super::super::{failures::Refusals, objects::Owner, snapshot::listing_id, testing::*};
use super::*;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, Time},
    },
};
use larder_proto::control::v1::{Listing, Phase, Problem, StatusResponse};
use serde_json::json;
use std::sync::Arc;

const D: &str = "d1";

/// A dataset and what is seen of it.
struct World {
    dataset: CacheDataset,
    observed: Observed,
}

impl World {
    /// Two GPU nodes with ready workers that know nothing yet, inputs in place, claim bound.
    fn new() -> Self {
        let dataset = mk_dataset();
        let owner = Owner::of(&dataset).unwrap();
        let source = mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "b")]);
        let copy = objects::credentials(&owner, &settings(), &source);
        let daemon_set = objects::daemon_set(&owner, &dataset, &settings(), &[&mk_tier()]);
        let mut claim = objects::claim(&owner);
        claim.metadata.uid = Some("claim-uid".into());
        claim.status = serde_json::from_value(json!({ "phase": "Bound" })).unwrap();
        let mut volume = objects::volume(&owner, "2Ti");
        volume.spec.as_mut().unwrap().claim_ref.as_mut().unwrap().uid = Some("claim-uid".into());
        volume.status = serde_json::from_value(json!({ "phase": "Bound" })).unwrap();
        let observed = Observed {
            now: now(),
            secret: Referenced::Found(Box::new(source)),
            ca: Referenced::NotAsked,
            secret_copy: Some(Arc::new(copy)),
            ca_copy: None,
            service: None,
            daemon_set: Some(Arc::new(daemon_set)),
            daemon_set_warning: None,
            members: None,
            volume: Some(volume),
            claim: Some(claim),
            nodes: vec![Arc::new(mk_node("gpu-0")), Arc::new(mk_node("gpu-1"))],
            workers: vec![mk_worker("gpu-0", true), mk_worker("gpu-1", true)],
            told: BTreeMap::new(),
            statuses: statuses(&[("gpu-0", StatusResponse::default()), ("gpu-1", StatusResponse::default())]),
            absent_since: BTreeMap::new(),
            refused: Refusals::default(),
            owner,
        };
        Self { dataset, observed }
    }

    /// Before anything was made.
    fn fresh() -> Self {
        let mut w = Self::new();
        let o = &mut w.observed;
        (o.secret_copy, o.daemon_set, o.volume, o.claim) = (None, None, None, None);
        o.workers.clear();
        o.statuses.clear();
        w
    }

    /// The snapshot is everywhere, and the shares are as given.
    fn with_snapshot(mut self, gpu_0: (Phase, u64, u64), gpu_1: (Phase, u64, u64)) -> Self {
        let id = listing_id(&self.dataset.spec.source);
        let mut first = preload_of(D, gpu_0.0, gpu_0.1, gpu_0.2);
        first.listing = Some(listing(&id, Phase::Succeeded, D));
        self.observed.statuses = statuses(&[("gpu-0", first), ("gpu-1", preload_of(D, gpu_1.0, gpu_1.1, gpu_1.2))]);
        self
    }

    fn complete() -> Self {
        Self::new().with_snapshot((Phase::Succeeded, 600, 600), (Phase::Succeeded, 400, 400))
    }

    fn plan(&self) -> Plan {
        plan(&self.dataset, &self.observed, &settings()).unwrap()
    }

    /// Plans, and takes the result in as the next reconcile would find it.
    fn settle(&mut self) -> Plan {
        let plan = self.plan();
        self.dataset.status = Some(plan.status.clone());
        self.observed.members = Some(plan.members.clone());
        plan
    }

    fn answer(&mut self, node: &str, change: impl FnOnce(&mut StatusResponse)) {
        change(self.observed.statuses.get_mut(node).unwrap().as_mut().unwrap());
    }
}

fn condition<'a>(plan: &'a Plan, type_: &str) -> &'a Condition {
    plan.status.conditions.iter().find(|c| c.type_ == type_).unwrap()
}

fn is(plan: &Plan, type_: &str, status: &str, reason: &str) -> String {
    let c = condition(plan, type_);
    assert_eq!((c.status.as_str(), c.reason.as_str()), (status, reason), "{type_}: {}", c.message);
    c.message.clone()
}

fn problem(reason: &str) -> Problem {
    Problem { reason: reason.into(), message: "what happened; what to do".into() }
}

#[test]
fn every_condition_is_set_at_the_first_visit() {
    for world in [World::fresh(), World::complete()] {
        let plan = world.plan();
        assert_eq!(plan.status.conditions.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), types::ALL);
        for c in &plan.status.conditions {
            assert!(!c.reason.is_empty() && !c.message.is_empty(), "{c:?}");
            assert_eq!(c.observed_generation, Some(1));
        }
    }
}

#[test]
fn the_first_visit_makes_everything() {
    let plan = World::fresh().plan();
    assert!(plan.secret.is_some() && plan.daemon_set.is_some() && plan.volume.is_some());
    is(&plan, types::READY, "False", reasons::workers::STARTING);
    assert!(is(&plan, types::WORKERS_READY, "False", reasons::workers::STARTING).contains("0 of 2 workers are ready"));
    is(&plan, types::SNAPSHOT_TAKEN, "Unknown", reasons::snapshot::WAITING_FOR_WORKERS);
    is(&plan, types::PRELOADED, "Unknown", reasons::preload::WAITING_FOR_SNAPSHOT);
}

#[test]
fn an_unknown_tier_is_told_with_the_known_ones() {
    let mut world = World::fresh();
    world.dataset.spec.cache.tiers[0].name = "floppy".into();
    let plan = world.plan();
    let message = is(&plan, types::READY, "False", reasons::workers::TIER_UNKNOWN);
    assert!(message.contains("\"floppy\"") && message.contains("nvme"), "{message}");
    is(&plan, types::WORKERS_READY, "False", reasons::workers::TIER_UNKNOWN);
    assert!(plan.daemon_set.is_none() && plan.orders.is_empty());
}

#[test]
fn a_missing_secret_keeps_new_workers_from_starting() {
    let mut world = World::fresh();
    world.observed.secret = Referenced::Missing;
    let plan = world.plan();
    let message = is(&plan, types::WORKERS_READY, "False", reasons::workers::SECRET_NOT_FOUND);
    assert!(message.contains("Secret vision/s3 does not exist"), "{message}");
    is(&plan, types::READY, "False", reasons::workers::SECRET_NOT_FOUND);
    is(&plan, types::SNAPSHOT_TAKEN, "Unknown", reasons::workers::SECRET_NOT_FOUND);
    assert!(plan.daemon_set.is_none() && plan.secret.is_none());
    assert_eq!(plan.requeue, LOOK_AGAIN);
}

#[test]
fn a_secret_that_is_deleted_later_stops_no_one() {
    let mut world = World::complete();
    world.observed.secret = Referenced::Missing;
    let plan = world.plan();
    let message = is(&plan, types::WORKERS_READY, "False", reasons::workers::SECRET_NOT_FOUND);
    assert!(message.contains("workers go on with the last copy"), "{message}");
    is(&plan, types::READY, "True", reasons::ready::READY);
    assert!(plan.daemon_set.is_some() && plan.secret.is_none());
    assert_eq!(plan.orders[0].2.source.as_ref().unwrap().credentials_generation, "5");
}

#[test]
fn a_secret_without_its_keys_is_told_which() {
    let mut world = World::fresh();
    world.observed.secret = Referenced::Found(Box::new(mk_secret(&[("accessKeyId", "a")])));
    let plan = world.plan();
    let message = is(&plan, types::WORKERS_READY, "False", reasons::workers::SECRET_KEY_MISSING);
    assert!(message.contains("Secret vision/s3 has no key secretAccessKey"), "{message}");
    assert!(plan.secret.is_none());
}

#[test]
fn a_missing_ca_or_key_of_it_is_told() {
    let mut world = World::fresh();
    world.dataset.spec.source.ca = serde_json::from_value(json!({ "configMapRef": { "name": "corp-ca" } })).unwrap();
    world.observed.ca = Referenced::Missing;
    let message = is(&world.plan(), types::READY, "False", reasons::workers::CA_NOT_FOUND);
    assert!(message.contains("ConfigMap vision/corp-ca does not exist"), "{message}");

    world.observed.ca = Referenced::Found(Box::default());
    let message = is(&world.plan(), types::READY, "False", reasons::workers::CA_NOT_FOUND);
    assert!(message.contains("has no key ca.crt"), "{message}");

    let found = ConfigMap { data: Some([("ca.crt".into(), "PEM".into())].into()), ..ConfigMap::default() };
    world.observed.ca = Referenced::Found(Box::new(found));
    let plan = world.plan();
    assert_eq!(plan.ca.as_ref().unwrap().data.as_ref().unwrap()["ca.crt"], "PEM");
    is(&plan, types::WORKERS_READY, "False", reasons::workers::STARTING);
}

#[test]
fn without_matching_nodes_the_selector_is_named() {
    let mut world = World::fresh();
    world.observed.nodes.clear();
    let message = is(&world.plan(), types::READY, "False", reasons::workers::NO_NODES_MATCH);
    assert!(message.contains("nvidia.com/gpu.present=true"), "{message}");

    world.observed.nodes = vec![Arc::new(mk_node_from(json!({
        "metadata": { "name": "gpu-9", "labels": { "nvidia.com/gpu.present": "true" } },
        "spec": { "taints": [{ "key": "team", "effect": "NoSchedule" }] },
    })))];
    let message = is(&world.plan(), types::READY, "False", reasons::workers::NO_NODES_MATCH);
    assert!(message.contains("gpu-9") && message.contains("team:NoSchedule"), "{message}");
}

#[test]
fn a_worker_that_cannot_start_is_named_with_its_reason() {
    let mut world = World::complete();
    world.observed.workers[1].ready = false;
    world.observed.workers[1].trouble = Some("FailedMount: /mnt/nvme0/larder is not a directory".into());
    world.observed.statuses.remove("gpu-1");
    let message = is(&world.plan(), types::WORKERS_READY, "False", reasons::workers::FAILING);
    assert_eq!(
        message,
        "1 of 2 workers are ready; worker worker-gpu-1 on node gpu-1: FailedMount: /mnt/nvme0/larder is not a directory"
    );
}

#[test]
fn a_daemon_set_that_may_not_make_pods_is_told() {
    let mut world = World::fresh();
    world.observed.daemon_set_warning = Some("FailedCreate: violates PodSecurity".into());
    let message = is(&world.plan(), types::WORKERS_READY, "False", reasons::workers::FAILING);
    assert!(message.contains("violates PodSecurity"), "{message}");
}

#[test]
fn a_ready_worker_that_does_not_answer_is_unreachable_and_reading_goes_on() {
    let mut world = World::complete();
    world.settle();
    world.observed.statuses.insert("gpu-1".into(), Err("no answer within 5 s".into()));
    let plan = world.plan();
    let message = is(&plan, types::WORKERS_READY, "False", reasons::workers::UNREACHABLE);
    assert!(message.contains("gpu-1") && message.contains("no answer within 5 s"), "{message}");
    is(&plan, types::READY, "True", reasons::ready::READY);
    is(&plan, types::PRELOADED, "True", reasons::preload::COMPLETE);
}

#[test]
fn the_problem_of_a_worker_is_told_in_its_own_words() {
    let mut world = World::complete();
    world.answer("gpu-1", |s| s.problems = vec![problem("OriginUnreachable")]);
    let plan = world.plan();
    let message = is(&plan, types::WORKERS_READY, "False", "OriginUnreachable");
    assert_eq!(message, "node gpu-1: what happened; what to do");
    // What is cached can be read all the same.
    let message = is(&plan, types::READY, "True", reasons::ready::READY);
    assert!(message.contains("OriginUnreachable"), "{message}");
}

/// What the API server takes none of: the workers as the spec has them now.
fn refused_workers() -> Refusals {
    Refusals { behind: true, workers: Some(Cause::new(reasons::workers::REFUSED, "why")), claim: None }
}

#[test]
fn a_change_that_is_refused_is_told_and_ready_tells_of_the_spec_in_force() {
    let mut world = World::complete();
    world.settle();
    let generation = |plan: &Plan, type_: &str| condition(plan, type_).observed_generation;
    for edit in [2, 3] {
        world.dataset.metadata.generation = Some(edit);
        world.observed.refused = refused_workers();
        let plan = world.settle();
        assert_eq!(is(&plan, types::WORKERS_READY, "False", reasons::workers::REFUSED), "why");
        let message = is(&plan, types::READY, "True", reasons::ready::READY);
        assert!(message.ends_with("; WorkersRefused: why"), "{message}");
        assert_eq!((generation(&plan, types::READY), generation(&plan, types::WORKERS_READY)), (Some(1), Some(edit)));
    }
    // Not told yet, and not in force either.
    world.observed.refused.workers = None;
    let plan = world.plan();
    is(&plan, types::WORKERS_READY, "True", reasons::workers::ALL_READY);
    assert_eq!(generation(&plan, types::READY), Some(1));
    world.observed.refused = Refusals::default();
    assert_eq!(generation(&world.plan(), types::READY), Some(3));
}

#[test]
fn workers_that_were_refused_from_the_start_are_told_before_what_they_are_waited_for() {
    let mut world = World::fresh();
    world.observed.refused = refused_workers();
    for nodes in [2, 0] {
        world.observed.nodes.truncate(nodes);
        let plan = world.settle();
        for type_ in [types::READY, types::WORKERS_READY] {
            is(&plan, type_, "False", reasons::workers::REFUSED);
            assert_eq!(condition(&plan, type_).observed_generation, Some(1));
        }
    }
}

#[test]
fn a_refused_claim_keeps_ready_away_and_a_bound_one_does_not() {
    let mut world = World::complete();
    let refused = Cause::new(reasons::ready::CLAIM_REFUSED, "exceeded quota");
    world.observed.refused.claim = Some(refused);
    let message = is(&world.plan(), types::READY, "True", reasons::ready::READY);
    assert!(message.ends_with("; ClaimRefused: exceeded quota"), "{message}");
    world.observed.claim = None;
    let plan = world.plan();
    is(&plan, types::READY, "False", reasons::ready::CLAIM_REFUSED);
    is(&plan, types::WORKERS_READY, "True", reasons::workers::ALL_READY);
}

#[test]
fn one_worker_is_told_to_list() {
    let plan = World::new().plan();
    is(&plan, types::SNAPSHOT_TAKEN, "False", reasons::snapshot::LISTING_RUNNING);
    is(&plan, types::READY, "False", reasons::snapshot::LISTING_RUNNING);
    is(&plan, types::WORKERS_READY, "True", reasons::workers::ALL_READY);
    let listing: Vec<bool> = plan.orders.iter().map(|(_, _, c)| !c.listing_id.is_empty()).collect();
    assert_eq!(listing, [true, false]);
    assert_eq!(plan.requeue, POLL);
}

#[test]
fn the_progress_of_the_listing_is_told() {
    let mut world = World::new();
    let id = listing_id(&world.dataset.spec.source);
    let running = Listing { files_per_second: 5, ..listing(&id, Phase::Running, "") };
    let mut told = |running: Listing| {
        world.answer("gpu-0", |s| s.listing = Some(running));
        is(&world.plan(), types::SNAPSHOT_TAKEN, "False", reasons::snapshot::LISTING_RUNNING)
    };
    assert_eq!(told(running.clone()), "node gpu-0 lists the origin: 10 files, 1000 bytes so far, 5 files/s");
    let writing = Listing { entries_written: 7, ..running };
    assert_eq!(told(writing), "node gpu-0 has listed 10 files and writes the catalog: 7 entries so far");
}

#[test]
fn a_listing_that_fails_gives_its_reason() {
    let mut world = World::new();
    let id = listing_id(&world.dataset.spec.source);
    let failed = Listing { problem: Some(problem("AccessDenied")), ..listing(&id, Phase::Failed, "") };
    world.answer("gpu-0", |s| s.listing = Some(failed));
    let plan = world.plan();
    let message = is(&plan, types::SNAPSHOT_TAKEN, "False", "AccessDenied");
    assert_eq!(message, "node gpu-0: what happened; what to do");
    is(&plan, types::READY, "False", "AccessDenied");

    world.answer("gpu-0", |s| s.listing.as_mut().unwrap().problem = None);
    is(&world.plan(), types::SNAPSHOT_TAKEN, "False", reasons::snapshot::LISTING_FAILED);
}

#[test]
fn a_lister_that_cannot_begin_tells_why() {
    let mut world = World::new();
    world.answer("gpu-0", |s| s.problems = vec![problem("CredentialsPending")]);
    is(&world.plan(), types::SNAPSHOT_TAKEN, "False", "CredentialsPending");
}

#[test]
fn nobody_is_told_to_list_while_someone_who_might_does_not_answer() {
    let mut world = World::new();
    world.observed.statuses.insert("gpu-1".into(), Err("timeout".into()));
    let plan = world.plan();
    is(&plan, types::SNAPSHOT_TAKEN, "Unknown", reasons::snapshot::WAITING_FOR_WORKERS);
    assert!(plan.orders.iter().all(|(_, _, c)| c.listing_id.is_empty()));
}

#[test]
fn the_catalog_on_its_way_is_told_and_not_published() {
    let mut world = World::new();
    let id = listing_id(&world.dataset.spec.source);
    world.observed.statuses =
        statuses(&[("gpu-0", status_of(listing(&id, Phase::Succeeded, D), &[D])), ("gpu-1", StatusResponse::default())]);
    let plan = world.plan();
    let message = is(&plan, types::SNAPSHOT_TAKEN, "False", reasons::snapshot::DISTRIBUTING);
    assert_eq!(message, "1 of 2 workers have the catalog; waiting for gpu-1");
    assert_eq!(plan.status.snapshot, None);
    assert!(plan.orders.iter().all(|(_, _, c)| c.snapshot == D));
    is(&plan, types::PRELOADED, "Unknown", reasons::preload::WAITING_FOR_SNAPSHOT);
}

#[test]
fn a_snapshot_on_all_workers_is_published_and_makes_ready() {
    let mut world = World::new().with_snapshot((Phase::Running, 60, 600), (Phase::Running, 40, 400));
    world.answer("gpu-0", |s| {
        let l = s.listing.as_mut().unwrap();
        (l.skipped, l.skipped_examples) = (2, vec!["a//b (empty part)".into()]);
    });
    let plan = world.plan();
    let message = is(&plan, types::SNAPSHOT_TAKEN, "True", reasons::snapshot::TAKEN);
    assert!(message.starts_with("10 files, 1000 bytes; 2 objects left out") && message.contains("a//b"), "{message}");
    let snapshot = plan.status.snapshot.as_ref().unwrap();
    assert_eq!((snapshot.id.as_str(), snapshot.files, snapshot.bytes, snapshot.skipped), (D, 10, 1000, 2));
    assert_eq!(snapshot.time, Some(Time(Timestamp::from_second(1_799_999_000).unwrap())));
    let message = is(&plan, types::READY, "True", reasons::ready::READY);
    assert_eq!(message, "pods can read; preload is running: 100 bytes of 1000 bytes; 0 more requests to the source");
    is(&plan, types::PRELOADED, "False", reasons::preload::RUNNING);
    assert_eq!(plan.status.cache.as_ref().unwrap().percent, 10);
    assert_eq!(plan.requeue, POLL);
}

#[test]
fn everything_cached_is_complete_and_calm() {
    let mut world = World::complete();
    let first = world.settle();
    is(&first, types::PRELOADED, "True", reasons::preload::COMPLETE);
    assert_eq!(first.status.cache.as_ref().unwrap().percent, 100);
    assert_eq!(first.status.preload.as_ref().unwrap().completion_time, Some(Time(now())));
    // Orders once given, nothing is left to do, and nothing in status moves by itself.
    for (node, _, config) in first.orders {
        world.answer(&node, |s| s.generation = config.generation);
    }
    world.observed.now += jiff::SignedDuration::from_secs(30);
    let plan = world.plan();
    assert_eq!((plan.orders.len(), plan.requeue, &plan.status), (0, SETTLED, world.dataset.status.as_ref().unwrap()));
    assert!(plan.claim.is_none() && !plan.release_volume);
}

#[test]
fn a_preload_that_fails_gives_its_reason_and_pods_can_read() {
    let mut world = World::new().with_snapshot((Phase::Succeeded, 600, 600), (Phase::Failed, 10, 400));
    world.answer("gpu-1", |s| s.preload.as_mut().unwrap().problem = Some(problem("DiskFull")));
    let plan = world.plan();
    is(&plan, types::PRELOADED, "False", "DiskFull");
    let message = is(&plan, types::READY, "True", reasons::ready::READY);
    assert!(message.contains("preload is not complete: DiskFull"), "{message}");

    world.answer("gpu-1", |s| {
        let p = s.preload.as_mut().unwrap();
        (p.problem, p.files_failed) = (None, 3);
    });
    let plan = world.plan();
    let message = is(&plan, types::PRELOADED, "False", reasons::preload::FAILED);
    assert!(message.contains("3 files could not be fetched"), "{message}");
    assert_eq!(plan.status.preload.unwrap().files_failed, 3);
}

#[test]
fn paths_that_match_nothing_are_told_and_pods_can_read() {
    let mut world = World::new().with_snapshot((Phase::Succeeded, 0, 0), (Phase::Succeeded, 0, 0));
    world.dataset.spec.preload.paths = vec!["/train".into(), "val".into()];
    let plan = world.settle();
    let message = is(&plan, types::PRELOADED, "False", reasons::preload::NOTHING_MATCHES);
    assert_eq!(
        message,
        "no file of the snapshot matches spec.preload.paths (\"/train\", \"val\"); folders end in a slash, paths begin without one"
    );
    let ready = is(&plan, types::READY, "True", reasons::ready::READY);
    assert!(ready.contains("NothingMatches"), "{ready}");
    let preload = plan.status.preload.as_ref().unwrap();
    assert_eq!((&preload.completion_time, &preload.eta), (&None, &None));
    world.observed.now += jiff::SignedDuration::from_secs(30);
    assert_eq!(Some(&world.plan().status), world.dataset.status.as_ref(), "nothing moves by itself");

    // A member may have none of what is named; files may be empty.
    world.answer("gpu-1", |s| s.preload.as_mut().unwrap().files_total = 1);
    is(&world.plan(), types::PRELOADED, "True", reasons::preload::COMPLETE);
}

#[test]
fn no_preload_is_asked_for_when_the_spec_asks_for_none() {
    let mut world = World::complete();
    world.dataset.spec.preload.policy = PreloadPolicy::None;
    let plan = world.plan();
    is(&plan, types::PRELOADED, "False", reasons::preload::NOT_REQUESTED);
    is(&plan, types::READY, "True", reasons::ready::READY);
    assert!(plan.orders.iter().all(|(_, _, c)| !c.preload));
    assert_eq!(plan.status.preload, None);
}

#[test]
fn a_claim_of_someone_else_is_never_touched() {
    let mut world = World::complete();
    world.observed.volume = None;
    world.observed.claim.as_mut().unwrap().metadata.labels = None;
    let plan = world.plan();
    let message = is(&plan, types::READY, "False", reasons::ready::CLAIM_NOT_OURS);
    assert!(message.contains("PersistentVolumeClaim vision/imagenet"), "{message}");
    // A volume reserved for that name would be bound to their claim.
    assert!(plan.claim.is_none() && plan.volume.is_none() && !plan.release_volume);
}

#[test]
fn a_claim_that_is_not_bound_keeps_ready_away() {
    let mut world = World::complete();
    world.observed.claim.as_mut().unwrap().status = None;
    is(&world.plan(), types::READY, "False", reasons::ready::CLAIM_PENDING);
    world.observed.claim = None;
    let plan = world.plan();
    is(&plan, types::READY, "False", reasons::ready::CLAIM_PENDING);
    assert_eq!(plan.requeue, POLL);
}

/// Kubernetes looks again only every 15 s at a claim that it could not bind at once.
#[test]
fn the_claim_is_made_when_its_volume_can_be_found_and_not_before() {
    let mut world = World::fresh();
    let first = world.plan();
    assert!(first.volume.is_some() && first.claim.is_none());
    world.observed.volume = first.volume;
    for (phase, made) in [("", false), ("Pending", false), ("Released", false), ("Available", true), ("Bound", false)] {
        world.observed.volume.as_mut().unwrap().status = serde_json::from_value(json!({ "phase": phase })).unwrap();
        assert_eq!(world.plan().claim.is_some(), made, "{phase}");
    }
}

/// A write that changes nothing is not harmless: it makes the write of the controller that binds the volume fail.
#[test]
fn a_volume_that_the_api_server_wrote_in_its_own_way_is_not_applied_again() {
    let mut world = World::fresh();
    world.dataset.spec.cache.tiers[0].quota.0 = "2048Gi".into();
    let mut volume = world.plan().volume.unwrap();
    let spec = volume.spec.as_mut().unwrap();
    assert_eq!(
        spec.capacity.as_mut().unwrap().insert("storage".into(), Quantity("2Ti".into())),
        Some(Quantity("2048Gi".into()))
    );
    spec.claim_ref.as_mut().unwrap().uid = Some("claim-uid".into());
    spec.claim_ref.as_mut().unwrap().resource_version = Some("7".into());
    world.observed.volume = Some(volume);
    assert!(objects::is_applied(&world.plan().volume.unwrap(), world.observed.volume.as_ref()));
}

#[test]
fn a_volume_reserved_for_a_claim_that_is_gone_is_released() {
    let mut world = World::complete();
    assert!(!world.plan().release_volume);
    world.observed.claim.as_mut().unwrap().metadata.uid = Some("another".into());
    assert!(world.plan().release_volume);
    world.observed.claim = None;
    assert!(world.plan().release_volume);
}

#[test]
fn the_capacity_of_a_volume_is_the_snapshots_and_never_changes() {
    let capacity =
        |plan: &Plan| plan.volume.as_ref().unwrap().spec.as_ref().unwrap().capacity.as_ref().unwrap()["storage"].0.clone();
    let mut world = World::complete();
    assert_eq!(capacity(&world.plan()), "2Ti");
    world.observed.volume = None;
    assert_eq!(capacity(&world.plan()), "1000");
    assert_eq!(capacity(&World::fresh().plan()), "2Ti");
}

#[test]
fn a_change_of_the_source_takes_a_new_snapshot_and_serves_the_old_one_meanwhile() {
    let mut world = World::complete();
    world.settle();
    world.dataset.spec.source.include = vec!["train/**".into()];
    let plan = world.plan();
    is(&plan, types::SNAPSHOT_TAKEN, "False", reasons::snapshot::LISTING_RUNNING);
    assert_eq!(plan.status.snapshot, world.dataset.status.as_ref().unwrap().snapshot);
    assert!(plan.orders.iter().all(|(_, _, c)| c.snapshot == D));
    assert_eq!(plan.orders.iter().filter(|(_, _, c)| !c.listing_id.is_empty()).count(), 1);
}

#[test]
fn orders_are_given_again_when_the_secret_changes() {
    let mut world = World::complete();
    for (node, _, config) in world.settle().orders {
        world.answer(&node, |s| s.generation = config.generation);
    }
    assert!(world.plan().orders.is_empty());
    let mut rotated = mk_secret(&[("accessKeyId", "a"), ("secretAccessKey", "new")]);
    rotated.metadata.resource_version = Some("6".into());
    world.observed.secret = Referenced::Found(Box::new(rotated));
    let plan = world.plan();
    assert_eq!(plan.orders.len(), 2);
    assert_eq!(plan.orders[0].2.source.as_ref().unwrap().credentials_generation, "6");
    assert!(plan.tell.is_empty(), "kubelets are told once the copy is in place");
    world.observed.secret_copy = plan.secret.map(Arc::new);
    world.observed.told = [("worker-gpu-0".to_owned(), Some("6.".to_owned())), ("worker-gpu-1".to_owned(), None)].into();
    assert_eq!(world.plan().tell, ["worker-gpu-1"]);
}

#[test]
fn copies_that_are_not_asked_for_any_more_go_and_kubelets_are_told() {
    let mut world = World::complete();
    world.observed.ca_copy = Some(Arc::default());
    let told = |told: &str| [("worker-gpu-0".to_owned(), Some(told.to_owned())), ("worker-gpu-1".to_owned(), None)].into();
    world.observed.told = told("5.");
    let plan = world.plan();
    assert_eq!((plan.drop_secret, plan.drop_ca), (false, true), "the Secret is asked for");

    world.dataset.spec.source.credentials = serde_json::from_value(json!({ "anonymous": {} })).unwrap();
    world.observed.secret = Referenced::NotAsked;
    let plan = world.plan();
    assert!(plan.drop_secret && plan.drop_ca && plan.secret.is_none() && plan.tell.is_empty());
    (world.observed.secret_copy, world.observed.ca_copy) = (None, None);
    let plan = world.plan();
    assert!(!plan.drop_secret && !plan.drop_ca);
    assert_eq!((plan.tell.as_slice(), plan.told.as_str()), (["worker-gpu-0".to_owned()].as_slice(), "."));
    world.observed.told = told(".");
    assert!(world.plan().tell.is_empty());

    // One that is gone for now is not one that is not asked for.
    let mut world = World::complete();
    world.observed.secret = Referenced::Missing;
    assert!(!world.plan().drop_secret);
}

#[test]
fn a_retry_annotation_reaches_the_workers() {
    let mut world = World::new();
    world.dataset.metadata.annotations = Some([(labels::RETRY.to_owned(), "3".to_owned())].into());
    assert!(world.plan().orders.iter().all(|(_, _, c)| c.retry == 3));
}

#[test]
fn what_was_cached_stays_in_status_while_nobody_answers() {
    let mut world = World::complete();
    world.answer("gpu-0", |s| s.origin_bytes = 1000);
    world.settle();
    for worker in &mut world.observed.workers {
        worker.ready = false;
    }
    world.observed.statuses.clear();
    let plan = world.plan();
    let cache = plan.status.cache.as_ref().unwrap();
    assert_eq!((cache.bytes, cache.percent, cache.workers.ready, cache.workers.desired), (1000, 100, 0, 2));
    assert_eq!(plan.status.origin_bytes, Some(1000));
    assert_eq!(plan.status.preload, world.dataset.status.as_ref().unwrap().preload);
    assert_eq!(plan.status.snapshot, world.dataset.status.as_ref().unwrap().snapshot);
    is(&plan, types::READY, "False", reasons::workers::STARTING);
}

#[test]
fn a_worker_on_a_node_that_is_not_selected_counts_for_nothing() {
    let mut world = World::complete();
    world.observed.nodes.pop();
    let plan = world.plan();
    let workers = plan.status.cache.as_ref().unwrap().workers.clone();
    assert_eq!((workers.desired, workers.ready), (1, 1));
    let members: larder_core::placement::Members =
        serde_json::from_str(&plan.members.data.as_ref().unwrap()[larder_core::names::MEMBERS_KEY]).unwrap();
    assert_eq!(members.members.iter().map(|m| m.node.as_str()).collect::<Vec<_>>(), ["gpu-0"]);
}

#[test]
fn pods_that_have_ended_do_not_use_a_claim() {
    let pod = |phase: &str| -> Pod {
        mk_pod_from(json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "imagenet" } }] },
            "status": { "phase": phase },
        }))
    };
    for (phase, want) in [("Running", true), ("Pending", true), ("Succeeded", false), ("Failed", false)] {
        assert_eq!(super::super::uses(&pod(phase), "imagenet"), want, "{phase}");
    }
    assert!(!super::super::uses(&pod("Running"), "coco"));
}
