//! The pinned programs a cluster is made of, installed into a cache outside the clone.
//!
//! ```text
//! ${LARDER_CACHE:-~/.cache/larder}/
//!   go/<module>-<key>/<program>       built from e2e/tools/<module>/go.mod; key = hash of go.mod, go.sum and flags
//!   debian/<group>-<key>/             unpacked .deb files of e2e/tools/debian.lock; key = hash of the group's lines
//!   python/<key>/                     packages of e2e/clients/requirements.txt; key = hash of that file
//!   runtime, bin/<program>            links to the current ones, for scripts
//! ```
//!
//! A finished program is renamed into place, so whatever is there is whole, and an interrupted installation goes on
//! where it stopped. Nothing is installed on the machine itself.

mod debian;
mod go;
mod python;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::report::{say, seconds};

/// The folder of this crate in the checkout.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The root of the checkout.
pub fn repository() -> &'static Path {
    crate_folder().parent().unwrap_or(Path::new("/"))
}

/// Which programs are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What checks without a cluster need: helm.
    Checks,
    /// What a cluster needs.
    Cluster,
    /// Also what only some tests need (csi-sanity, an image registry, other people's readers).
    All,
}

impl Wanted {
    fn includes(self, program: &go::Program) -> bool {
        match self {
            Self::Checks => program.name == "helm",
            Self::Cluster => program.cluster,
            Self::All => true,
        }
    }
}

/// What is not installed yet.
#[derive(PartialEq, Eq)]
struct Missing {
    /// Debian packages.
    debian: bool,
    /// Python packages.
    python: bool,
    /// This many Go programs.
    builds: usize,
}

const NOTHING: Missing = Missing { debian: false, python: false, builds: 0 };

/// Where the installed programs are.
#[derive(Clone)]
pub struct Tools {
    cache: PathBuf,
    debian: debian::Lock,
}

impl Tools {
    /// The cache as the environment names it, whether or not anything is in it yet.
    ///
    /// # Errors
    /// Neither `LARDER_CACHE` nor `HOME` is set, or the pins cannot be read.
    pub fn locate() -> Result<Self> {
        let cache = match (std::env::var_os("LARDER_CACHE"), std::env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) => Path::new(&home).join(".cache/larder"),
            _ => bail!("neither LARDER_CACHE nor HOME is set, so there is no place for the tools"),
        };
        let cache = std::path::absolute(&cache).context("make the cache's path absolute")?;
        Ok(Self { cache, debian: debian::Lock::read()? })
    }

    /// Installs what is missing; says nothing if nothing is.
    ///
    /// # Errors
    /// A download or a build failed, after retries.
    pub fn install(wanted: Wanted) -> Result<Self> {
        let tools = Self::locate()?;
        if tools.missing(wanted)? == NOTHING {
            tools.link()?;
            return Ok(tools);
        }
        std::fs::create_dir_all(&tools.cache).with_context(|| format!("make {}", tools.cache.display()))?;
        let lock = File::create(tools.cache.join("lock")).context("make the cache's lock file")?;
        if lock.try_lock().is_err() {
            say("waiting for another larder-e2e that is installing the tools");
            crate::report::with_heartbeat("waiting for the other installation", String::new, || lock.lock())
                .context("lock the tools cache")?;
        }
        let missing = tools.missing(wanted)?;
        if missing == NOTHING {
            return Ok(tools); // the other one did it
        }
        let started = std::time::Instant::now();
        say(format!(
            "installing tools into {}{}",
            tools.cache.display(),
            if missing.builds > 4 { " (once; about 12 minutes on 2 cores)" } else { "" }
        ));
        if missing.debian {
            tools.debian.install(&tools.cache, wanted)?;
        }
        if missing.python {
            python::install(&tools.cache)?;
        }
        for program in go::PROGRAMS.iter().filter(|p| wanted.includes(p)) {
            go::install(&tools.cache, program)?;
        }
        say(format!("tools installed: {}", seconds(started.elapsed())));
        tools.link()?;
        Ok(tools)
    }

    /// Whoever counts reads, or drops the machine's page cache, holds this.
    pub(crate) fn page_cache_lock(&self) -> PathBuf {
        self.cache.join("page-cache.lock")
    }

    /// Points the links at what this checkout pins.
    fn link(&self) -> Result<()> {
        let bin = self.cache.join("bin");
        std::fs::create_dir_all(&bin).context("make bin/ in the cache")?;
        let programs = self.programs()?.into_iter().map(|(name, path)| (bin.join(name), path));
        for (link, target) in programs.chain([(self.cache.join("runtime"), self.image_root())]) {
            if std::fs::read_link(&link).ok().as_ref() == Some(&target) {
                continue;
            }
            // By rename, so that whoever uses the link at this moment finds the old or the new one.
            let new = link.with_extension("new");
            let _ = std::fs::remove_file(&new);
            std::os::unix::fs::symlink(&target, &new)
                .and_then(|()| std::fs::rename(&new, &link))
                .with_context(|| format!("link {}", link.display()))?;
        }
        Ok(())
    }

    fn missing(&self, wanted: Wanted) -> Result<Missing> {
        let mut builds = 0;
        for program in go::PROGRAMS.iter().filter(|p| wanted.includes(p)) {
            builds += usize::from(!go::path(&self.cache, program)?.exists());
        }
        let debian = !self.debian.missing(&self.cache, wanted).is_empty();
        Ok(Missing { debian, python: wanted == Wanted::All && !python::folder(&self.cache)?.exists(), builds })
    }

    /// A program built from Go, by name.
    ///
    /// # Errors
    /// There is no such program.
    pub fn go(&self, name: &str) -> Result<PathBuf> {
        let program = go::PROGRAMS.iter().find(|p| p.name == name).with_context(|| format!("no tool is named {name}"))?;
        go::path(&self.cache, program)
    }

    /// The S3 client that benchmarks compare with, installed if it is missing.
    ///
    /// # Errors
    /// It could not be built.
    pub fn s5cmd(&self) -> Result<PathBuf> {
        go::install(&self.cache, &go::S5CMD)?;
        go::path(&self.cache, &go::S5CMD)
    }

    /// A command that runs a Go program.
    ///
    /// # Errors
    /// There is no such program.
    pub fn command(&self, name: &str) -> Result<Command> {
        Ok(Command::new(self.go(name)?))
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The unpacked Debian packages that run on this machine.
    pub fn host_root(&self) -> PathBuf {
        self.debian.folder(&self.cache, "host")
    }

    /// The unpacked Debian packages that container images carry: libc6, libgcc-s1, ca-certificates.
    pub fn image_root(&self) -> PathBuf {
        self.debian.folder(&self.cache, "image")
    }

    /// The statically linked busybox.
    pub fn busybox(&self) -> PathBuf {
        self.debian.folder(&self.cache, "busybox").join("bin/busybox")
    }

    /// Prometheus.
    pub fn prometheus(&self) -> PathBuf {
        self.debian.folder(&self.cache, "prometheus").join("usr/bin/prometheus")
    }

    /// The unpacked Debian packages of the training image: Python and numpy with all they load.
    pub fn training_root(&self) -> PathBuf {
        self.debian.folder(&self.cache, "training")
    }

    /// The roots that together are a system with Python, numpy and the readers of docs/clients.md.
    ///
    /// # Errors
    /// The pins of the Python packages cannot be read.
    pub fn clients_roots(&self) -> Result<[PathBuf; 3]> {
        Ok([python::folder(&self.cache)?, self.debian.folder(&self.cache, debian::CLIENTS), self.training_root()])
    }

    /// Every Go program with its path.
    ///
    /// # Errors
    /// A module's go.mod or go.sum cannot be read.
    pub fn programs(&self) -> Result<Vec<(&'static str, PathBuf)>> {
        go::PROGRAMS.iter().map(|p| Ok((p.name, go::path(&self.cache, p)?))).collect()
    }

    /// `PATH` and `LD_LIBRARY_PATH` with which the Debian programs are found before those of the machine.
    pub fn environment(&self, first: &Path) -> Vec<(&'static str, OsString)> {
        let host = self.host_root();
        let mut path = first.as_os_str().to_owned();
        for folder in ["usr/sbin", "usr/bin", "sbin", "bin"] {
            path.push(":");
            path.push(host.join(folder));
        }
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        let mut libraries = OsString::new();
        for folder in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
            if !libraries.is_empty() {
                libraries.push(":");
            }
            libraries.push(host.join(folder));
        }
        vec![("PATH", path), ("LD_LIBRARY_PATH", libraries)]
    }
}

/// The first 12 hex digits of the SHA-256 of some parts.
fn short_digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
