//! Says at once, in one line, why this machine cannot run a cluster.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

use crate::tools::repository;

/// The demo's data three times (bucket and two nodes), images, etcd, and the tools if they are on the same disk.
/// `e2e/preflight` has the same number.
const LEAST_DISK: u64 = 15_000_000_000;

/// What of this machine decides.
struct Machine {
    root: bool,
    fuse: bool,
    free_disk: u64,
}

impl Machine {
    fn here() -> Result<Self> {
        let disk = statvfs(repository()).context("look at the disk of the checkout")?;
        Ok(Self {
            root: geteuid().is_root(),
            fuse: Path::new("/dev/fuse").exists(),
            free_disk: disk.blocks_available() * disk.fragment_size(),
        })
    }

    fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if !self.root {
            lacks.push("root (namespaces, mounts, cgroups)".to_owned());
        }
        if !self.fuse {
            lacks.push("/dev/fuse".to_owned());
        }
        if self.free_disk < LEAST_DISK {
            let (at, free) = (repository().display(), self.free_disk / 1_000_000_000);
            lacks.push(format!("15 GB of free disk at {at}, where {free} GB are free"));
        }
        lacks
    }
}

/// What a cluster needs and this machine does not have.
///
/// # Errors
/// The disk cannot be looked at.
pub(super) fn lacks() -> Result<Vec<String>> {
    Ok(Machine::here()?.lacks())
}

/// Fails if anything is lacking.
pub(super) fn check() -> Result<()> {
    let lacks = lacks()?;
    ensure!(lacks.is_empty(), "a local cluster needs what is missing here: {}", lacks.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOUGH: Machine = Machine { root: true, fuse: true, free_disk: LEAST_DISK };

    #[test]
    fn a_machine_with_everything_lacks_nothing() {
        assert_eq!(ENOUGH.lacks(), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        for (machine, named) in [
            (Machine { root: false, ..ENOUGH }, "root"),
            (Machine { fuse: false, ..ENOUGH }, "/dev/fuse"),
            (Machine { free_disk: LEAST_DISK - 1, ..ENOUGH }, "where 14 GB are free"),
        ] {
            let lacks = machine.lacks();
            assert!(lacks.len() == 1 && lacks[0].contains(named), "{lacks:?}");
        }
        assert_eq!(Machine { root: false, fuse: false, free_disk: 0 }.lacks().len(), 3);
    }

    #[test]
    fn the_script_asks_for_as_much_disk() {
        let script = std::fs::read_to_string(crate::tools::crate_folder().join("preflight")).unwrap();
        assert!(script.contains(&format!("LEAST_DISK={LEAST_DISK}\n")));
    }
}
