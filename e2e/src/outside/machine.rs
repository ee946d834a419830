//! A machine that cannot run a cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::tools::crate_folder;

/// Who has no rights anywhere.
const NOBODY: &str = "65534";

const AT_ONCE: Duration = Duration::from_secs(2);

/// One line, before anything is compiled. Run by a copy that anyone may read, wherever the checkout is.
pub(super) fn the_demo_says_at_once_what_the_machine_lacks() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("larder-e2e-{}", std::process::id()));
    let outcome = copy_and_run(&folder);
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    let (status, said, took) = outcome?;
    ensure!(!status, "the demo succeeds without root: {said}");
    ensure!(said.trim().lines().count() == 1, "it takes more than one line: {said}");
    ensure!(said.contains("root"), "it does not say what is missing: {said}");
    ensure!(took < AT_ONCE, "it took {took:?}");
    Ok(())
}

fn copy_and_run(folder: &std::path::Path) -> Result<(bool, String, Duration)> {
    fs::create_dir_all(folder.join("e2e")).context("make a folder")?;
    for name in ["demo", "preflight"] {
        fs::copy(crate_folder().join(name), folder.join("e2e").join(name)).with_context(|| format!("copy {name}"))?;
    }
    for readable in [folder.to_owned(), folder.join("e2e")] {
        fs::set_permissions(readable, fs::Permissions::from_mode(0o755)).context("let anyone read a folder")?;
    }
    let started = Instant::now();
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(folder.join("e2e/demo"))
        .output()
        .context("run `setpriv`")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned(), started.elapsed()))
}
