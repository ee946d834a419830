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

/// The `larder` binary.
pub fn program() -> PathBuf {
    repository().join("target/release/larder")
}

/// The program that asks a worker for everything (crates/stranger).
pub fn stranger() -> PathBuf {
    repository().join("target/release/larder-stranger")
}

/// The Helm chart.
pub fn chart() -> PathBuf {
    repository().join("charts/larder")
}

/// How much of it is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// The programs.
    Programs,
    /// The image too, which needs Debian's packages.
    All,
}

/// Builds the binary and its image archive.
///
/// # Errors
/// Either does not build.
pub fn build(tools: &Tools) -> Result<()> {
    compile(tools, &["--package", "larder-cli", "--package", "larder-stranger", "--package", "larder-xtask"])?;
    image(tools)
}

/// The same with all tests at once: cargo unites the features of what it builds together, so building the product by itself
/// first would compile many libraries twice.
///
/// # Errors
/// Something does not build.
pub fn build_all(tools: &Tools, parts: Parts) -> Result<()> {
    compile(tools, &["--workspace", "--all-targets"])?;
    if parts == Parts::All { image(tools) } else { Ok(()) }
}

fn compile(tools: &Tools, what: &[&str]) -> Result<()> {
    run(tools, "cargo", "building larder", &[&["build", "--release", "--locked"], what].concat()).map(drop)
}

/// Builds the archive of another release's image: the same binary, whose daemons say what their image does.
///
/// # Errors
/// It cannot be written.
pub fn release(tools: &Tools, version: &str, archive: &Path) -> Result<()> {
    let archive = archive.to_str().context("the archive's path is not UTF-8")?;
    let name = format!("{IMAGE}:{version}");
    image_with(tools, &["--name", &name, "--version", version, "--output", archive])
}

fn image(tools: &Tools) -> Result<()> {
    image_with(tools, &[])
}

fn image_with(tools: &Tools, more: &[&str]) -> Result<()> {
    let runtime = tools.image_root();
    let runtime = runtime.to_str().context("the cache's path is not UTF-8")?;
    let arguments = [&["images", "--runtime", runtime], more].concat();
    run(tools, "target/release/larder-xtask", "building the image", &arguments).map(drop)
}

/// What the program that ran last has printed.
pub fn last_output() -> String {
    std::fs::read_to_string(log()).unwrap_or_default()
}

fn log() -> PathBuf {
    repository().join("target/e2e/build.log")
}

/// Runs a program in the checkout, with the pinned tools in `PATH`; returns what it printed. While it lasts, the last line of
/// that is shown now and then.
///
/// # Errors
/// It failed; the message is the end of what it printed.
pub fn run(tools: &Tools, program: &str, what: &str, arguments: &[&str]) -> Result<String> {
    let log = log();
    let _ = std::fs::remove_file(&log);
    let out = append_to(&log)?;
    let mut command = Command::new(program);
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
            if !command.status().with_context(|| format!("start `{}`", line(&command)))?.success() {
                bail!("`{}` failed:\n{}", line(&command), tail(&log, 60));
            }
            std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))
        },
    )
}

fn path_with(first: &Path) -> std::ffi::OsString {
    let mut path = first.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}
