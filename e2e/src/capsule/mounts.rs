//! The few kinds of mounts that capsule and nodes are made of.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

/// Mounts an empty tmpfs.
pub(crate) fn tmpfs(target: &Path) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("mount a tmpfs at {}", target.display()))
}

/// Mounts one folder or file over another, recursively.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

/// Shows what lies in several folders as one; what is written goes to `upper`.
pub(crate) fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let lower: Vec<_> = lower.iter().map(|folder| folder.display().to_string()).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount an overlay at {}", target.display()))
}

/// Makes every mount of this namespace pass on what is mounted beneath it, as on any systemd machine.
pub(crate) fn share_all() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>).context("make all mounts shared")
}

/// Covers `folder` with a tmpfs that shows the same entries, except those in `hidden`. So mount points can be made in it
/// without touching the machine's disk.
pub(crate) fn shadow(folder: &Path, hidden: &[&str]) -> Result<()> {
    let original = fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    let beneath = Path::new("/proc/self/fd").join(original.as_raw_fd().to_string());
    let entries: Vec<_> =
        fs::read_dir(folder).and_then(Iterator::collect).with_context(|| format!("list {}", folder.display()))?;
    tmpfs(folder)?;
    for entry in entries {
        let name = entry.file_name();
        if hidden.iter().any(|hidden| name == *hidden) {
            continue;
        }
        let (source, target) = (beneath.join(&name), folder.join(&name));
        let kind = entry.file_type().context("file type")?;
        if kind.is_symlink() {
            let to = fs::read_link(&source).context("read a link")?;
            std::os::unix::fs::symlink(to, &target).context("copy a link")?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&target).context("make a mount point")?;
        } else {
            fs::File::create(&target).context("make a mount point")?;
        }
        // An entry that cannot be shown (a dead network mount, say) is no reason to fail: nothing here needs it.
        let _ = bind(&source, &target);
    }
    Ok(())
}
