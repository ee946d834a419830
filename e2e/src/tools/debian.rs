//! Programs and libraries from Debian packages: downloaded and unpacked, never installed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Wanted, crate_folder, short_digest};
use crate::process::Run as _;
use crate::report::{say, step};

/// One line of `debian.lock`.
#[derive(Clone)]
struct Pin {
    group: String,
    package: String,
    version: String,
}

/// The groups of `debian.lock`.
const GROUPS: [&str; 6] = ["host", "image", "busybox", "training", "prometheus", CLIENTS];
/// The group that only some tests need.
pub(super) const CLIENTS: &str = "clients";
const TRIES: u32 = 3;

/// What `debian.lock` says.
#[derive(Clone)]
pub(super) struct Lock {
    release: String,
    pins: Vec<Pin>,
}

impl Lock {
    pub(super) fn read() -> Result<Self> {
        parse(&std::fs::read_to_string(crate_folder().join("tools/debian.lock")).context("read e2e/tools/debian.lock")?)
    }

    fn group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Pin> {
        self.pins.iter().filter(move |pin| pin.group == group)
    }

    /// Where a group's packages are unpacked. Named by its pins, so that a change of one group leaves the others alone.
    pub(super) fn folder(&self, cache: &Path, group: &str) -> PathBuf {
        let pins: String = self.group(group).map(|pin| format!("{} {}\n", pin.package, pin.version)).collect();
        let key = short_digest(&[self.release.as_bytes(), pins.as_bytes()]);
        cache.join("debian").join(format!("{group}-{key}"))
    }

    /// The groups that are wanted and not there yet.
    pub(super) fn missing(&self, cache: &Path, wanted: Wanted) -> Vec<&'static str> {
        let includes = |group: &str| match wanted {
            Wanted::Checks => false,
            Wanted::Cluster => group != CLIENTS,
            Wanted::All => true,
        };
        GROUPS.into_iter().filter(|group| includes(group) && !self.folder(cache, group).exists()).collect()
    }

    /// Fetches and unpacks what is missing, each group renamed into place as a whole.
    pub(super) fn install(&self, cache: &Path, wanted: Wanted) -> Result<()> {
        check_release(&self.release)?;
        let apt = Apt::new(cache)?;
        step("fetching Debian's package lists", || apt.update())?;
        for group in self.missing(cache, wanted) {
            self.install_group(cache, &apt, group)?;
        }
        Ok(())
    }

    fn install_group(&self, cache: &Path, apt: &Apt, group: &str) -> Result<()> {
        let unfinished = cache.join("debian/unfinished");
        let _ = std::fs::remove_dir_all(&unfinished);
        let (packages, root) = (unfinished.join("packages"), unfinished.join("root"));
        std::fs::create_dir_all(&packages).with_context(|| format!("make {}", packages.display()))?;
        let pins: Vec<&Pin> = self.group(group).collect();
        step(&format!("fetching {} Debian packages ({group})", pins.len()), || {
            apt.download(&packages, &apt.available(&pins)?)
        })?;
        step(&format!("unpacking Debian packages ({group})"), || {
            for package in std::fs::read_dir(&packages).context("list packages")? {
                Command::new("dpkg-deb").arg("-x").arg(package.context("list packages")?.path()).arg(&root).run()?;
            }
            Ok(())
        })?;
        std::fs::rename(&root, self.folder(cache, group)).context("put Debian packages in place")?;
        std::fs::remove_dir_all(&unfinished).context("remove the fetched packages")
    }
}

fn parse(text: &str) -> Result<Lock> {
    let (mut release, mut pins) = (String::new(), Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            ["release", name] => release = name.to_owned(),
            [group, package, version] if GROUPS.contains(&group) => {
                pins.push(Pin { group: group.into(), package: package.into(), version: version.into() });
            }
            _ => bail!("e2e/tools/debian.lock: do not understand `{line}`"),
        }
    }
    Ok(Lock { release, pins })
}

fn check_release(release: &str) -> Result<()> {
    let here = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = here.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("unknown");
    ensure!(
        codename.trim_matches('"') == release,
        "the cluster's containerd, runc and libraries are those of Debian {release}; this machine is `{codename}`"
    );
    Ok(())
}

/// apt with lists and caches of its own, so that the machine's are neither needed fresh nor touched.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self> {
        let state = cache.join("apt");
        for folder in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(state.join(folder)).context("make apt's folders")?;
        }
        let state = state.display();
        Ok(Self {
            options: [
                format!("Dir::State::Lists={state}/lists"),
                format!("Dir::Cache={state}"),
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::Retries=3".to_owned(),
                "Acquire::Languages=none".to_owned(),
            ]
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option])
            .collect(),
        })
    }

    fn update(&self) -> Result<()> {
        // Other people's sources on this machine may be unreachable; what counts is whether our packages are known then.
        let (_, _, complaint) = Command::new("apt-get").args(&self.options).args(["-q", "update"]).run_any()?;
        let (_, known, _) = Command::new("apt-cache").args(&self.options).args(["policy", "containerd"]).run_any()?;
        ensure!(known.contains("Candidate"), "apt knows no Debian packages after an update: {complaint}");
        Ok(())
    }

    /// `package=version` for each pin: the pinned version, or a newer one of the release with a note.
    fn available(&self, pins: &[&Pin]) -> Result<Vec<String>> {
        // One call for all: apt builds its index anew each time.
        let names = pins.iter().map(|pin| &pin.package);
        let table = Command::new("apt-cache").args(&self.options).arg("madison").args(names).run()?;
        let served: HashSet<(&str, &str)> = table
            .lines()
            .filter_map(|line| match line.split('|').map(str::trim).collect::<Vec<_>>()[..] {
                [package, version, ..] => Some((package, version)),
                _ => None,
            })
            .collect();
        let mut wanted = Vec::new();
        for Pin { package, version, .. } in pins.iter().copied() {
            if served.contains(&(package, version)) {
                wanted.push(format!("{package}={version}"));
                continue;
            }
            let policy = Command::new("apt-cache").args(&self.options).args(["policy", package]).run()?;
            let candidate = policy
                .lines()
                .find_map(|line| line.trim().strip_prefix("Candidate: "))
                .filter(|candidate| *candidate != "(none)")
                .with_context(|| format!("Debian serves no version of {package} (pinned: {version})"))?;
            let (newer, ..) = Command::new("dpkg").args(["--compare-versions", candidate, "gt", version]).run_any()?;
            ensure!(newer, "Debian does not serve {package} {version} any more, only the older {candidate}");
            say(format!("  note: {package} {version} is not served any more, taking {candidate} of the same release"));
            wanted.push(format!("{package}={candidate}"));
        }
        Ok(wanted)
    }

    fn download(&self, folder: &Path, wanted: &[String]) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            let result =
                Command::new("apt-get").args(&self.options).args(["-q", "download"]).args(wanted).current_dir(folder).run();
            match result {
                Ok(_) => return Ok(()),
                Err(error) if tries < TRIES => say(format!("  fetching packages failed, trying again: {error:#}")),
                Err(error) => return Err(error.context("fetch Debian packages")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_of_this_repository_is_understood() {
        let lock = Lock::read().unwrap();
        assert_eq!(lock.release, "bookworm");
        assert!(GROUPS.iter().all(|group| lock.group(group).next().is_some()));
    }

    #[test]
    fn a_changed_pin_moves_its_own_group_only() {
        let before = parse("release bookworm\nhost a 1\nimage b 1\n").unwrap();
        let after = parse("release bookworm\nhost a 1\nimage b 2\n").unwrap();
        let folders = |group| [&before, &after].map(|lock| lock.folder(Path::new("/c"), group));
        assert_eq!(folders("host")[0], folders("host")[1]);
        assert_ne!(folders("image")[0], folders("image")[1]);
    }

    #[test]
    fn an_unknown_group_is_an_error() {
        assert!(parse("release bookworm\nlaptop vim 9").is_err());
    }
}
