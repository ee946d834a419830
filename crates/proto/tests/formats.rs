//! What the operator and the workers of this release say to each other, as bytes: one of a later release must understand them, and
//! may say more.

use larder_proto::control::v1::{Config, Listing, Phase, Preload, Problem, Source, StatusResponse};
use prost::Message;

/// Field 2047 of a number, which nobody knows.
const LATER: [u8; 3] = [0xf8, 0x7f, 1];

fn is_understood<M: Message + Default + PartialEq + std::fmt::Debug>(known: &M, hex: &str) {
    let written: String = known.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, hex, "as this release writes it");
    let more = [&known.encode_to_vec()[..], &LATER].concat();
    assert_eq!(&M::decode(&more[..]).unwrap(), known);
}

#[test]
fn orders_and_status_are_written_as_ever_and_may_have_fields_that_are_not_known() {
    let config = Config {
        generation: "g".into(),
        source: Some(Source {
            uri: "u".into(),
            endpoint: "e".into(),
            region: "r".into(),
            path_style: true,
            include: vec!["i".into()],
            exclude: vec!["x".into()],
            anonymous: true,
            credentials_generation: "5".into(),
            ca_generation: "6".into(),
        }),
        quota_bytes: 1,
        listing_id: "l".into(),
        snapshot: "s".into(),
        preload: true,
        retry: 2,
        preload_bandwidth: 3,
        preload_paths: vec!["p".into()],
        replicas: 4,
        disk_quota_bytes: vec![1, 2],
    };
    is_understood(
        &config,
        "0a016712190a01751201651a017220012a016932017838014201354a0136180122016c2a017330013802400348045201705a020102",
    );
    let problem = Problem { reason: "R".into(), message: "m".into() };
    let status = StatusResponse {
        node: "n".into(),
        generation: "g".into(),
        listing: Some(Listing {
            id: "l".into(),
            phase: Phase::Failed.into(),
            files: 1,
            bytes: 2,
            snapshot: "s".into(),
            skipped: 3,
            skipped_examples: vec!["e".into()],
            problem: Some(problem.clone()),
            time: 4,
            files_per_second: 5,
            entries_written: 6,
        }),
        snapshots: vec!["s".into()],
        preload: Some(Preload {
            snapshot: "s".into(),
            phase: Phase::Running.into(),
            bytes_total: 1,
            bytes_done: 2,
            files_total: 3,
            files_done: 4,
            files_failed: 5,
            problem: Some(problem.clone()),
            planned: true,
            gets: 6,
            eta_seconds: Some(0),
            attempts: 7,
        }),
        cached_bytes: 1,
        cached_files: 2,
        origin_bytes: 3,
        problems: vec![problem],
    };
    is_understood(
        &status,
        "0a016e1201671a1f0a016c1003180120022a017330033a016542060a015212016d4804500558062201732a1f0a017310011801200228033004380542060a015212016d48015006580060073001380240034a060a015212016d",
    );
}
