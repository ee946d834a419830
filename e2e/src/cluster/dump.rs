//! The state of the cluster as text, for whoever has to find out why a test failed.

use std::fs;

use super::kubectl::phase;
use super::{Cluster, condition};
use crate::process::{Run as _, end_of, tail};
use crate::report::say;

/// The file's name in the log folder, without its number.
pub const DUMP: &str = "dump-";

/// Of the events.
const SHOWN_LINES: usize = 40;

impl Cluster {
    /// Writes everything of interest into `log/dump-N`, prints the most telling part of it, and says where the rest is.
    pub fn dump(&self, why: &str) -> String {
        let number = self.dumps.lock().map_or(0, |mut dumps| {
            *dumps += 1;
            *dumps
        });
        let ask = |arguments: &[&str]| {
            self.kubectl_command(arguments)
                .and_then(|mut kubectl| kubectl.arg("--request-timeout=10s").run_any())
                .map_or_else(|error| format!("{error:#}"), |(_, out, complaint)| out + &complaint)
        };
        let pods = ask(&["get", "pods", "-A", "-o", "wide"]);
        let ours = ask(&["get", "nodes,pvc,pv,daemonsets,deployments,jobs,cachedatasets,cachepreloads", "-A", "-o", "wide"]);
        let events = ask(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let mut text = format!("{why}\n\n{pods}\n{ours}\n{events}\n");
        text += &ask(&["get", "cachedatasets,cachepreloads", "-A", "-o", "yaml"]);
        text += &self.container_logs();
        if let Ok(logs) = fs::read_dir(self.run.log_folder()) {
            for log in logs.flatten().filter(|log| !log.file_name().to_string_lossy().starts_with(DUMP)) {
                text += &format!("\n==== {}\n{}\n", log.file_name().display(), tail(&log.path(), 40));
            }
        }
        let path = self.run.log(&format!("{DUMP}{number}"));
        let written = fs::write(&path, text);
        say(format!("{pods}\n{}\n{}", end_of(&events, SHOWN_LINES), self.logs_of_troubled_pods()));
        match written {
            Ok(()) => format!("more in {}", path.display()),
            Err(error) => format!("and the dump could not be written: {error}"),
        }
    }

    /// The end of the log of every pod that is neither Ready nor done.
    fn logs_of_troubled_pods(&self) -> String {
        let mut text = String::new();
        for pod in self.list("pods", None).unwrap_or_default() {
            if condition(&pod, "Ready") == Some("True") || phase(&pod) == "Succeeded" {
                continue;
            }
            let of = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (of("namespace"), of("name"));
            let log = self.logs(&namespace, &name, None).unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("log of {namespace}/{name} ends with:\n{}\n", end_of(&log, 8));
        }
        text
    }

    /// The end of the log of every container, the one before a restart too, from the nodes' own log folders.
    fn container_logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let Ok(pods) = fs::read_dir(node.var_lib("log-pods")) else { continue };
            for container in pods.flatten().filter_map(|pod| fs::read_dir(pod.path()).ok()).flatten().flatten() {
                let Ok(files) = fs::read_dir(container.path()) else { continue };
                for file in files.flatten().map(|file| file.path()) {
                    let name = file.strip_prefix(node.var_lib("log-pods")).unwrap_or(&file);
                    text += &format!("\n==== {}: {}\n{}\n", node.name(), name.display(), tail(&file, 60));
                }
            }
        }
        text
    }
}
