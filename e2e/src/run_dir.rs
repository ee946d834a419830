//! A run: its id, its folder `target/e2e/<id>/`, and whether its owner still lives.
//!
//! The id is `<pid>-<start time>` of the owning process. So anyone can tell from the id alone whether a run is over,
//! and a leftover of a killed run is never mistaken for a live one's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::tools::repository;

/// Logs of this many ended runs are kept.
const KEPT_LOGS: usize = 10;

/// The environment variable by which a process inside a capsule knows its run.
pub const RUN_VARIABLE: &str = "LARDER_E2E_RUN";

/// One run's folder.
#[derive(Clone, Debug)]
pub struct RunDir {
    id: String,
    root: PathBuf,
}

/// What a second process (`shell`, `down`) needs to know about a run; `run.json` in its folder.
#[derive(Serialize, Deserialize)]
pub struct RunState {
    /// The `unshare` whose only child is PID 1 of the capsule.
    pub capsule: i32,
    /// `PATH` inside.
    pub path: String,
    /// `LD_LIBRARY_PATH` inside.
    pub libraries: String,
}

impl RunDir {
    /// Makes the folder of a run that this process owns.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn create() -> Result<Self> {
        let id = id_of(std::process::id()).context("read this process's start time")?;
        let run = Self::of(&id);
        fs::create_dir_all(run.log_folder()).with_context(|| format!("make {}", run.root.display()))?;
        Ok(run)
    }

    /// The run whose capsule this process is in.
    ///
    /// # Errors
    /// It is in none.
    pub fn current() -> Result<Self> {
        let id = std::env::var(RUN_VARIABLE).context("this is started by larder-e2e itself only")?;
        Ok(Self::of(&id))
    }

    /// The run with this id.
    pub fn of(id: &str) -> Self {
        Self { id: id.to_owned(), root: runs_folder().join(id) }
    }

    /// All runs that have a folder, newest last.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(runs_folder()) else { return Vec::new() };
        let mut runs: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|id| parse_id(id).is_some())
            .map(|id| Self::of(&id))
            .collect();
        runs.sort_by_key(|run| run.root.metadata().and_then(|data| data.modified()).ok());
        runs
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The owner's process id.
    pub fn owner(&self) -> Option<u32> {
        parse_id(&self.id).map(|(pid, _)| pid)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Where the logs are; the only part that outlives the run.
    pub fn log_folder(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The log of one component.
    pub fn log(&self, component: &str) -> PathBuf {
        self.log_folder().join(component)
    }

    /// Whether the owner still runs.
    pub fn is_alive(&self) -> bool {
        id_is_alive(&self.id)
    }

    /// The kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// It is not there, or not whole yet.
    pub fn state(&self) -> Result<RunState> {
        let text = fs::read(self.root.join("run.json")).context("read run.json")?;
        serde_json::from_slice(&text).context("parse run.json")
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_state(&self, state: &RunState) -> Result<()> {
        fs::write(self.root.join("run.json"), serde_json::to_vec(state)?).context("write run.json")
    }

    /// Removes everything but the logs; for a run whose processes are gone.
    pub fn discard(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name() != "log") {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }

    /// Discards what killed runs left here, and old logs.
    pub fn sweep() {
        let ended: Vec<_> = Self::all().into_iter().filter(|run| !run.is_alive()).collect();
        for run in &ended {
            run.discard();
        }
        for run in ended.iter().rev().skip(KEPT_LOGS) {
            let _ = fs::remove_dir_all(&run.root);
        }
    }
}

fn runs_folder() -> PathBuf {
    repository().join("target/e2e")
}

/// The id of a run that the process `pid` owns.
pub fn id_of(pid: u32) -> Option<String> {
    Some(format!("{pid}-{}", start_time(pid)?))
}

/// Whether the owner of the run with this id still runs.
pub fn id_is_alive(id: &str) -> bool {
    parse_id(id).is_some_and(|(pid, started)| start_time(pid) == Some(started))
}

fn parse_id(id: &str) -> Option<(u32, u64)> {
    let (pid, started) = id.split_once('-')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Clock ticks after boot at which a process started; `None` if it is gone or a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold spaces; field 3 (state) follows the last one, field 22 is the start time.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_alive_and_a_later_one_with_its_pid_is_not_it() {
        let id = id_of(std::process::id()).unwrap();
        assert!(id_is_alive(&id));
        assert!(!id_is_alive(&format!("{}-1", std::process::id())));
        assert!(!id_is_alive("not a run"));
    }
}
