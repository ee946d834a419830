use larder_cache::fuzzing;
use larder_core::shares::Tenant;
use std::{
    fs,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

/// A tier with folders of three datasets.
static TIER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let tier = tempfile::tempdir().unwrap();
    (0..3).for_each(|n| fs::create_dir(tier.path().join(uid(n))).unwrap());
    tier
});

fn uid(n: u64) -> String {
    format!("0d1f3a52-7c0e-4d55-9f5a-00000000000{n}")
}

/// Sidecars and journals of cached files, and the ledger of a disk. The first byte says which.
pub fn disk(data: &[u8]) {
    match data.split_first() {
        Some((b's', bytes)) => fuzzing::sidecar(bytes),
        Some((b'j', bytes)) => fuzzing::journal(bytes),
        Some((b'l', bytes)) => ledger(bytes),
        _ => {}
    }
}

/// Four numbers of a worker, eight of each of its neighbours, and whatever else is in the file.
fn ledger(mut bytes: &[u8]) {
    let mut number = || {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        bytes = rest;
        Some(u64::from_le_bytes(*number))
    };
    let (Some(used), Some(free), Some(floor), Some(need)) = (number(), number(), number(), number()) else { return };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut text = String::new();
    for n in 0..3 {
        let Some(numbers) = (0..7).map(|_| number()).collect::<Option<Vec<_>>>() else { break };
        let [used, reserved, quota, gives, last_use, age, claimed] = numbers[..] else { unreachable!() };
        // Most of them of living workers.
        let seen = if age % 4 == 0 { age } else { now.wrapping_sub(age % 16) };
        text += &format!("{} {used} {reserved} {quota} {} {last_use} {seen} {claimed} .\n", uid(n), gives % 2);
    }
    let path: PathBuf = TIER.path().join("ledger");
    fs::write(&path, [text.as_bytes(), bytes].concat()).unwrap();
    let tenant = Tenant { used, quota: floor, gives: used % 2 == 0, idle: Duration::from_secs(need) };
    fuzzing::ledger(&TIER.path().join(uid(0)), tenant, free, floor, need);
}
