//! Programs and libraries from Debian packages: downloaded and unpacked, never installed.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{crate_folder, short_digest};
use crate::process::Run as _;
use crate::report::{say, step};

/// One line of `debian.lock`.
struct Pin {
    group: String,
    package: String,
    version: String,
}

const GROUPS: [&str; 3] = ["host", "image", "busybox"];
const TRIES: u32 = 3;

fn lock_file() -> Result<String> {
    std::fs::read_to_string(crate_folder().join("tools/debian.lock")).context("read e2e/tools/debian.lock")
}

/// Names the unpacked set in the cache.
pub(super) fn key() -> Result<String> {
    Ok(short_digest(&[lock_file()?.as_bytes()]))
}

fn parse(text: &str) -> Result<(String, Vec<Pin>)> {
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
    Ok((release, pins))
}

/// Fetches and unpacks everything, then renames the whole into place.
pub(super) fn install(cache: &Path, target: &Path) -> Result<()> {
    let (release, pins) = parse(&lock_file()?)?;
    check_release(&release)?;
    let apt = Apt::new(cache)?;
    let unfinished = cache.join("debian/unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    let packages = unfinished.join("packages");
    std::fs::create_dir_all(&packages).with_context(|| format!("make {}", packages.display()))?;
    say(format!("  fetching {} Debian packages", pins.len()));
    step("fetching Debian's package lists", || apt.update())?;
    step("fetching Debian packages", || {
        for group in GROUPS {
            let pins: Vec<&Pin> = pins.iter().filter(|pin| pin.group == group).collect();
            let folder = packages.join(group);
            std::fs::create_dir_all(&folder).context("make a folder for packages")?;
            apt.download(&folder, &apt.available(&pins)?)?;
        }
        Ok(())
    })?;
    step("unpacking Debian packages", || {
        for group in GROUPS {
            let root = unfinished.join(group);
            for package in std::fs::read_dir(packages.join(group)).context("list packages")? {
                Command::new("dpkg-deb").arg("-x").arg(package.context("list packages")?.path()).arg(&root).run()?;
            }
        }
        Ok(())
    })?;
    std::fs::remove_dir_all(&packages).context("remove the fetched packages")?;
    std::fs::rename(&unfinished, target).context("put the Debian packages in place")
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
        let (release, pins) = parse(&lock_file().unwrap()).unwrap();
        assert_eq!(release, "bookworm");
        assert!(GROUPS.iter().all(|group| pins.iter().any(|pin| pin.group == *group)));
    }

    #[test]
    fn an_unknown_group_is_an_error() {
        assert!(parse("release bookworm\nlaptop vim 9").is_err());
    }
}
