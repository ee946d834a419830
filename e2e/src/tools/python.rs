//! Python packages, pinned with their hashes, for the Python of the training image.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{crate_folder, short_digest};
use crate::process::Run as _;
use crate::report::step;

/// Where that Python looks for packages that are not Debian's.
const PACKAGES: &str = "usr/local/lib/python3.11/dist-packages";
/// That Python, whatever the machine's own is.
const TARGET: [&str; 7] = [
    "--python-version=3.11",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
    "--platform=any",
    "--abi=cp311",
    "--abi=abi3",
];

fn requirements() -> PathBuf {
    crate_folder().join("clients/requirements.txt")
}

/// The root that they are unpacked in, named by their pins.
pub(super) fn folder(cache: &Path) -> Result<PathBuf> {
    let pins = std::fs::read(requirements()).context("read e2e/clients/requirements.txt")?;
    Ok(cache.join("python").join(short_digest(&[&pins])))
}

/// Fetches them, and renames them into place as a whole.
pub(super) fn install(cache: &Path) -> Result<()> {
    let unfinished = cache.join("python/unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    step("fetching Python packages", || {
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile", "--retries=5"])
            .args(TARGET)
            .arg("--requirement")
            .arg(requirements())
            .arg("--target")
            .arg(unfinished.join(PACKAGES))
            .run()
            .context("fetch Python packages (python3 with pip must be installed)")
    })?;
    std::fs::rename(&unfinished, folder(cache)?).context("put Python packages in place")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_its_version_in_the_docs_that_say_what_is_tested() {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let docs = read(crate::tools::repository().join("docs/clients.md"));
        for pin in read(requirements()).lines().filter(|line| !line.starts_with('#')) {
            let (name, version) = pin.split(' ').next().and_then(|pin| pin.split_once("==")).unwrap();
            assert!(docs.contains(&format!("{name} {version}")), "{name} {version}");
        }
    }
}
