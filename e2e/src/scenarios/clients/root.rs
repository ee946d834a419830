//! A system of Debian's and Python's packages and nothing else, to run in with `chroot` and to make an image of.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::capsule::mounts;
use crate::images;
use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::{Tools, crate_folder};

/// The packages as they are in the cache, with what is written to them in a folder of the run.
pub(super) struct Root {
    folder: PathBuf,
}

impl Root {
    pub(super) fn new(run: &RunDir, tools: &Tools) -> Result<Self> {
        let [folder, upper, work] = ["clients/root", "clients/upper", "clients/work"].map(|name| run.path(name));
        for folder in [&folder, &upper, &work] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        mounts::overlay(&tools.clients_roots()?, &upper, &work, &folder)?;
        let root = Self { folder };
        for name in ["tmp", "dev", "proc", "data"] {
            fs::create_dir_all(root.path(name)).with_context(|| format!("make /{name}"))?;
        }
        fs::set_permissions(root.path("tmp"), fs::Permissions::from_mode(0o1777)).context("let everyone write to /tmp")?;
        for (name, target) in images::alternatives() {
            symlink(target, root.path(&name)).with_context(|| format!("link {name}"))?;
        }
        fs::copy(crate_folder().join("clients/clients.py"), root.path("clients.py")).context("copy clients.py")?;
        Ok(root)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs clients.py in it; gives what it printed.
    pub(super) fn python(&self, arguments: &[&str]) -> Result<String> {
        // Its mounts are its own, and end with it.
        let script = r#"mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
            exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/bin chroot "$0" /usr/bin/python3 -W error /clients.py "$@""#;
        Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(&self.folder).args(arguments).run()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}
