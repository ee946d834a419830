//! `larder get datasets`

use anyhow::Context as _;
use comfy_table::{Table, presets::NOTHING};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use larder_api::CacheDataset;

/// What to list.
#[derive(clap::Args)]
pub struct Args {
    /// What to list
    #[arg(value_enum)]
    kind: Kind,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// CacheDatasets
    #[value(alias = "dataset", alias = "cds")]
    Datasets,
}

/// Where to look, as with kubectl.
#[derive(clap::Args)]
pub struct Scope {
    /// Namespace; the kubeconfig's when not given
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

impl Scope {
    /// The datasets' API in this scope.
    pub async fn api(&self) -> anyhow::Result<(Api<CacheDataset>, bool)> {
        let client = Client::try_default().await.context("read kubeconfig")?;
        Ok(match (&self.namespace, self.all_namespaces) {
            (_, true) => (Api::all(client), true),
            (Some(ns), false) => (Api::namespaced(client, ns), false),
            (None, false) => (Api::default_namespaced(client), false),
        })
    }
}

/// Prints the table.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let Kind::Datasets = args.kind;
    let (api, all) = args.scope.api().await?;
    let mut list = api.list(&ListParams::default()).await.context("list CacheDatasets")?.items;
    if list.is_empty() {
        eprintln!("No datasets found.");
        return Ok(());
    }
    list.sort_by_key(|d| (d.namespace(), d.name_any()));
    let mut table = Table::new();
    table.load_style(NOTHING);
    let mut header = vec!["NAME", "READY", "FILES", "SIZE", "CACHED", "WORKERS", "SOURCE", "AGE"];
    if all {
        header.insert(0, "NAMESPACE");
    }
    table.set_header(header);
    for dataset in &list {
        let status = dataset.status.clone().unwrap_or_default();
        let snapshot = status.snapshot.as_ref();
        let cache = status.cache.as_ref();
        let mut row = vec![
            dataset.name_any(),
            crate::describe::condition(&status.conditions, "Ready").map_or("Unknown".into(), |c| c.status.clone()),
            snapshot.map_or("-".into(), |s| s.files.to_string()),
            snapshot.map_or("-".into(), |s| crate::describe::bytes(s.bytes)),
            cache.map_or("-".into(), |c| format!("{}%", c.percent)),
            cache.map_or("-".into(), |c| format!("{}/{}", c.workers.ready, c.workers.desired)),
            dataset.spec.source.uri.clone(),
            dataset.creation_timestamp().map_or("-".into(), |t| crate::describe::age(t.0)),
        ];
        if all {
            row.insert(0, dataset.namespace().unwrap_or_default());
        }
        table.add_row(row);
    }
    println!("{table}");
    Ok(())
}
