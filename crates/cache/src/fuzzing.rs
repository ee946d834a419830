//! Ways in for the fuzzer: what a worker reads of a disk that others write to, or that is going bad.

use crate::{
    chunks,
    fill::{Fill, journal_with_checksums, read_journal},
    ledger::{Disk, Ledger},
    sidecar::Sidecar,
};
use larder_core::{key::ObjectKey, shares::Tenant};
use std::{convert::Infallible, path::Path};

/// Largest object whose chunks are put into memory here: a journal counts only beside a file that is as long as it says.
const LARGEST: u64 = 1 << 30;

/// Reads bytes as a sidecar.
pub fn sidecar(bytes: &[u8]) {
    for bytes in [bytes, &Sidecar::with_checksum(bytes)] {
        if let Ok(sidecar) = Sidecar::decode(bytes) {
            assert_eq!(sidecar.encode(), bytes);
        }
    }
}

/// Reads bytes as the journal of an unfinished file, and goes on with that.
pub fn journal(bytes: &[u8]) {
    for bytes in [bytes, &journal_with_checksums(bytes)] {
        let Some((journal, whole)) = read_journal(bytes) else { continue };
        assert!(whole <= bytes.len());
        if journal.size > LARGEST {
            continue;
        }
        let fill = Fill::<Infallible>::found(ObjectKey::new("o", "p", "v", journal.size), &journal, false);
        for (chunk, _) in &journal.chunks {
            assert!(fill.has(*chunk..*chunk + 1));
            let crcs = fill.crcs(&crate::chunk_range(journal.size, *chunk));
            assert!(journal.chunks.iter().any(|(n, written)| n == chunk && *written == crcs));
        }
        let whole = (0..chunks(journal.size)).all(|chunk| fill.has(chunk..chunk + 1));
        assert!(!whole || !fill.drop_if_idle());
    }
}

/// Reads the ledger in this folder as the worker with this folder in it, and does all that a worker does with it.
pub fn ledger(dir: &Path, tenant: Tenant, free: u64, floor: u64, need: u64) {
    let disk = Disk { free, floor };
    let ledger = Ledger::beside(dir).expect("the folder of a dataset");
    let Some(mut page) = ledger.open() else { return };
    page.tell(tenant);
    page.reserve(|reserved| reserved.max(need));
    assert!(page.owed(disk, need) <= need);
    page.claim(disk, need);
    let _ = (page.left(disk), page.reserved_by_others(), page.take_claim(disk));
    page.store();
}
