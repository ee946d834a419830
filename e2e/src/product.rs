//! What is tested: the `larder` binary and its image, built from this checkout.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{append_to, line, tail};
use crate::report::step_with;
use crate::tools::{Tools, repository};

/// The image's name in the archive, without its tag.
pub const IMAGE: &str = "localhost/larder";

/// The image's tag.
pub const TAG: &str = "dev";

/// The image archive.
pub fn archive() -> PathBuf {
    repository().join("target/images/larder.tar")
}

/// The Helm chart.
pub fn chart() -> PathBuf {
    repository().join("charts/larder")
}

/// Builds the binary and its image archive.
///
/// # Errors
/// Either does not build.
pub fn build(tools: &Tools) -> Result<()> {
    cargo(tools, "building larder", &["build", "--release", "--locked", "--package", "larder-cli"])?;
    let runtime = tools.image_root();
    let runtime = runtime.to_str().context("the cache's path is not UTF-8")?;
    let images = ["run", "--release", "--locked", "--package", "larder-xtask", "--", "images", "--runtime", runtime];
    cargo(tools, "building the image", &images)?;
    Ok(())
}

/// Runs cargo in the checkout, with the pinned tools in `PATH`; returns what it printed. While it lasts, the last line of
/// that is shown now and then.
///
/// # Errors
/// It failed; the message is the end of what it printed.
pub fn cargo(tools: &Tools, what: &str, arguments: &[&str]) -> Result<String> {
    let log = repository().join("target/e2e/cargo.log");
    let _ = std::fs::remove_file(&log);
    let out = append_to(&log)?;
    let mut command = Command::new("cargo");
    command
        .args(arguments)
        .current_dir(repository())
        .env("PATH", path_with(&tools.cache().join("bin")))
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stderr(out.try_clone().context("duplicate a log file")?)
        .stdout(out);
    step_with(
        what,
        || tail(&log, 1),
        || {
            if !command.status().context("run cargo")?.success() {
                bail!("`{}` failed:\n{}", line(&command), tail(&log, 60));
            }
            std::fs::read_to_string(&log).context("read cargo's output")
        },
    )
}

fn path_with(first: &Path) -> std::ffi::OsString {
    let mut path = first.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}
