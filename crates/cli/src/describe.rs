//! `larder describe dataset NAME`, `larder describe node NAME`

use crate::{get::Scope, node};
use anyhow::Context as _;
use comfy_table::{Table, presets::NOTHING};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use larder_api::CacheDataset;

/// What to show.
#[derive(clap::Args)]
pub struct Args {
    /// What to show
    #[arg(value_enum)]
    kind: Kind,
    /// Its name
    name: String,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// A CacheDataset
    #[value(alias = "datasets", alias = "cds")]
    Dataset,
    /// A node: what its kernel can do, and how datasets are mounted there
    #[value(alias = "nodes", alias = "no")]
    Node,
}

/// Prints the detail.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match args.kind {
        Kind::Dataset => dataset(args).await,
        Kind::Node => node::describe(&args.name).await,
    }
}

async fn dataset(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(!args.scope.all_namespaces, "--all-namespaces: a dataset is shown from one namespace; use -n NAMESPACE");
    let (api, _) = args.scope.api().await?;
    let dataset = api.get(&args.name).await.with_context(|| format!("get CacheDataset {}", args.name))?;
    print!("{}", text(&dataset));
    Ok(())
}

fn text(dataset: &CacheDataset) -> String {
    let status = dataset.status.clone().unwrap_or_default();
    let source = &dataset.spec.source;
    let mut lines = vec![
        ("Name", dataset.name_any()),
        ("Namespace", dataset.namespace().unwrap_or_default()),
        ("Source", source.uri.clone()),
    ];
    if let Some(endpoint) = &source.endpoint {
        lines.push(("Endpoint", endpoint.clone()));
    }
    match &status.snapshot {
        Some(s) => {
            lines.push(("Snapshot", s.id.clone()));
            lines.push(("Content", format!("{} files, {}", s.files, bytes(s.bytes))));
        }
        None => lines.push(("Snapshot", "none yet".into())),
    }
    if let Some(c) = &status.cache {
        lines.push(("Cached", format!("{} in {} files ({}%)", bytes(c.bytes), c.files, c.percent)));
        lines.push(("Workers", format!("{} of {} ready", c.workers.ready, c.workers.desired)));
    }
    if let Some(p) = &status.preload {
        let mut text = format!("{} of {}, {} files failed", bytes(p.bytes_done), bytes(p.bytes_total), p.files_failed);
        if let Some(eta) = &p.eta {
            text.push_str(&format!(", done in about {}", age_of(eta.0.duration_since(jiff::Timestamp::now()))));
        }
        lines.push(("Preload", text));
        let asked = &dataset.spec.preload;
        if !asked.paths.is_empty() {
            lines.push(("  of", asked.paths.join(", ")));
        }
        if let Some(bandwidth) = &asked.bandwidth {
            lines.push(("  at most", format!("{} bytes a second", bandwidth.0)));
        }
    }
    if let Some(b) = status.origin_bytes {
        lines.push(("From origin", bytes(b)));
    }
    let mut out: String = lines.iter().map(|(k, v)| format!("{:<13} {v}\n", format!("{k}:"))).collect();
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["  TYPE", "STATUS", "REASON", "MESSAGE"]);
    for c in &status.conditions {
        table.add_row([format!("  {}", c.type_), c.status.clone(), c.reason.clone(), c.message.clone()]);
    }
    out.push_str(&format!("Conditions:\n{table}\n"));
    out
}

/// The condition of a type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Bytes with a binary unit: 1.5 GiB.
pub fn bytes(n: impl TryInto<u64>) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let n = n.try_into().unwrap_or(0);
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// As kubectl shows ages: 45s, 12m, 3h, 9d.
pub fn age(since: jiff::Timestamp) -> String {
    age_of(jiff::Timestamp::now().duration_since(since))
}

fn age_of(time: jiff::SignedDuration) -> String {
    let s = time.as_secs().max(0);
    match s {
        0..=119 => format!("{s}s"),
        120..=7199 => format!("{}m", s / 60),
        7200..=172_799 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_with_a_binary_unit() {
        assert_eq!(bytes(0u64), "0 B");
        assert_eq!(bytes(1023u64), "1023 B");
        assert_eq!(bytes(1536u64), "1.5 KiB");
        assert_eq!(bytes(2_199_023_255_552u64), "2.0 TiB");
    }
}
