//! What the demo says in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::daemons::Daemon;
use crate::cluster::{GPUS, Node, NodeKind};
use crate::dataset::Manifest;
use crate::report::{say, seconds};
use crate::scenarios::training::{Counters, Ending, Epoch};

/// Most memory a daemon should have.
const MEMORY_BUDGET: u64 = 256 << 20;
/// Most of a core that all daemons of a node together should use while idle.
const IDLE_BUDGET: f64 = 0.01;
const BAR: usize = 30;

/// What the origin's access log says.
pub(super) struct Origin {
    pub(super) sent: u64,
    pub(super) requests: u64,
}

/// All that was seen.
pub(super) struct Report<'a> {
    pub(super) nodes: &'a [Node],
    pub(super) manifest: &'a Manifest,
    pub(super) snapshot: &'a str,
    pub(super) preload: Duration,
    pub(super) epochs: &'a [Epoch],
    pub(super) endings: &'a [Ending],
    pub(super) others: &'a [(String, Duration)],
    pub(super) origin: &'a Origin,
    pub(super) daemons: &'a [Daemon],
    pub(super) clock: &'a [(&'static str, Duration)],
}

impl Report<'_> {
    pub(super) fn print(&self) {
        let bytes: u64 = self.manifest.values().map(|entry| entry.size).sum();
        let files = grouped(self.manifest.len() as u64);
        let snapshot: String = self.snapshot.chars().take(12).collect();
        say("");
        line("nodes", &join(self.nodes.iter().map(node)));
        line("dataset", &format!("{files} files, {}, snapshot {snapshot}", mib(bytes)));
        line(
            "preload",
            &format!("{}  {} in {}, {}", bar(bytes, bytes), mib(bytes), seconds(self.preload), rate(bytes, self.preload)),
        );
        self.print_epochs();
        let ratio = self.origin.sent as f64 / bytes as f64;
        let requests = grouped(self.origin.requests);
        line(
            "origin",
            &format!("sent {} in {requests} requests (its access log): {ratio:.2} of the dataset", mib(self.origin.sent)),
        );
        let checked = join(self.endings.iter().map(|ending| grouped(ending.checked.unwrap_or_default())));
        line("sha256", &format!("right: {checked} of {files} files in the training pods"));
        for (node, took) in self.others {
            line(
                "",
                &format!("right: {files} of {files} files in a pod on {node}, {}, {}", seconds(*took), rate(bytes, *took)),
            );
        }
        let percent = |of: fn(&Ending) -> f64| join(self.endings.iter().map(|ending| format!("{:.0} %", 100.0 * of(ending))));
        let chance = 100.0 * self.endings.first().map_or(0.0, |ending| ending.chance);
        line("training", &format!("held-out samples right: {}", percent(|ending| ending.accuracy)));
        line("", &format!("with shuffled labels: {}; chance: {chance:.0} %", percent(|ending| ending.shuffled)));
        line("", &format!("peak memory of the pods: {}", join(self.endings.iter().map(|ending| mib(ending.peak_rss)))));
        self.print_daemons();
        let total: Duration = self.clock.iter().map(|(_, took)| *took).sum();
        let parts = join(self.clock.iter().map(|(part, took)| format!("{part} {}", seconds(*took))));
        line("times", &format!("{parts}; together {}", seconds(total)));
        say("");
    }

    /// Where the bytes of each epoch came from; the sums are checked before anything is printed.
    fn print_epochs(&self) {
        say(row(["", "MiB asked", "page cache", "local disk", "peer", "origin"].map(str::to_owned), "MiB/s per pod"));
        let mut total = (0, 0, Counters::default());
        for epoch in self.epochs {
            let what = if epoch.cold { "cold" } else { "warm: the kernel may answer" };
            let speeds = epoch.pods.iter().map(|pod| format!("{:.0}", mebibytes(pod.bytes) / pod.seconds.max(0.001)));
            let speeds = format!("{} ({what})", join(speeds));
            say(row(amounts(&format!("epoch {}", epoch.number), epoch.asked(), epoch.kernel(), &epoch.counted), &speeds));
            total = (total.0 + epoch.asked(), total.1 + epoch.kernel(), total.2.plus(&epoch.counted));
        }
        say(row(amounts("all", total.0, total.1, &total.2), ""));
    }

    fn print_daemons(&self) {
        let mut peaks: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut idle: BTreeMap<&str, Vec<&Daemon>> = BTreeMap::new();
        for daemon in self.daemons {
            peaks.entry(&daemon.name).or_default().push(daemon.peak);
            idle.entry(&daemon.node).or_default().push(daemon);
        }
        let over = |over: bool| if over { " OVER BUDGET" } else { "" };
        let peaks = peaks.iter().map(|(name, peaks)| {
            let most = peaks.iter().copied().max().unwrap_or_default();
            let each = peaks.iter().map(|peak| format!("{:.0}", mebibytes(*peak))).collect::<Vec<_>>();
            format!("{name} {}{}", each.join(" "), over(most > MEMORY_BUDGET))
        });
        line("memory", &format!("peak MiB of each daemon: {} (budget {})", join(peaks), MEMORY_BUDGET >> 20));
        let idle = idle.iter().map(|(node, daemons)| {
            let used: f64 = daemons.iter().map(|daemon| daemon.idle).sum();
            let most =
                daemons.iter().max_by(|one, other| one.idle.total_cmp(&other.idle)).map_or("", |daemon| daemon.name.as_str());
            let most = if used >= IDLE_BUDGET { format!(", mostly {most}") } else { String::new() };
            format!("{node} {:.1} %{}{most}", 100.0 * used, over(used >= IDLE_BUDGET))
        });
        line("idle", &format!("of a core, all daemons of a node: {} (budget 1 %)", join(idle)));
    }
}

fn line(what: &str, text: &str) {
    say(format!("  {what:<9} {text}"));
}

fn row(cells: [String; 6], end: &str) -> String {
    let [first, rest @ ..] = cells;
    let rest: String = rest.iter().map(|cell| format!("{cell:>12}")).collect();
    format!("  {first:<9}{rest}    {end}").trim_end().to_owned()
}

fn amounts(what: &str, asked: u64, kernel: i64, counted: &Counters) -> [String; 6] {
    let amount = |bytes: u64| grouped(mebibytes(bytes).round() as u64);
    // A few bytes less than nothing are the kernel's reading ahead.
    let kernel = amount(u64::try_from(kernel).unwrap_or_default());
    [what.to_owned(), amount(asked), kernel, amount(counted.local), amount(counted.peer), amount(counted.origin)]
}

fn node(node: &Node) -> String {
    match node.kind() {
        NodeKind::Gpu => format!("{} ({GPUS} GPUs)", node.name()),
        NodeKind::Cpu => node.name().to_owned(),
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// `2,189 MiB`.
pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", grouped(mebibytes(bytes).round() as u64))
}

/// `251 MiB/s`.
pub(super) fn rate(bytes: u64, took: Duration) -> String {
    format!("{:.0} MiB/s", mebibytes(bytes) / took.as_secs_f64())
}

/// A bar of bytes, with percent.
pub(super) fn bar(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { done.min(total) as f64 / total as f64 };
    let full = (share * BAR as f64) as usize;
    format!("[{}{}] {:>3.0} %", "#".repeat(full), ".".repeat(BAR - full), (share * 100.0).floor())
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|part| str::from_utf8(part).ok()).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas_and_bars_their_length() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(bar(1, 2), format!("[{}{}]  50 %", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(0, 0), format!("[{}] 100 %", "#".repeat(30)));
        assert_eq!(bar(999, 1_000), format!("[{}.]  99 %", "#".repeat(29)));
    }
}
