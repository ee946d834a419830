//! Asks a worker for everything it has and may be told, as whoever it is told to be, and prints what came of it.
//!
//! For the cluster tests, which are built without any of the libraries that this takes.

use anyhow::Context as _;
use clap::Parser;
use larder_core::{names, placement::Members};
use larder_peer::{Client, Options, Roster};
use larder_proto::control::v1::{ConfigureRequest, EraseRequest, StatusRequest, worker_client::WorkerClient};
use larder_trust::{Connector, Held, Security, store, worker_uri};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use tonic::{Status, transport::Endpoint};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Args {
    /// The worker
    address: IpAddr,
    /// UID of its dataset
    dataset: String,
    /// Digest of its snapshot
    snapshot: String,
    /// File with a key and a certificate, as a worker keeps it; default: none, and no TLS
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Where a catalog goes if it is given
    #[arg(long, default_value = "/tmp")]
    folder: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let security = match &args.identity {
        None => Security::Plain,
        Some(path) => {
            let credentials = store::load(path)?.with_context(|| format!("{} is not there", path.display()))?;
            let (sender, held) = Held::new();
            sender.send_replace(Some(credentials.into()));
            Security::Mutual(held)
        }
    };
    let data = data(&args, &security).await;
    let control = control(&args, &security).await;
    println!("{}", serde_json::json!({ "data": data.unwrap_or_else(|e| format!("{e:#}")), "control": control }));
    Ok(())
}

/// `given`, or what the worker or the connection said.
async fn data(args: &Args, security: &Security) -> anyhow::Result<String> {
    let options = Options { security: security.clone(), connect: PATIENCE, ..Options::default() };
    let roster = Roster { members: Members::default(), addresses: [("worker".to_owned(), args.address)].into() };
    let into = args.folder.join(&args.snapshot);
    Client::with_options("stranger", options).catalog(&roster, &args.dataset, &args.snapshot, &into).await?;
    std::fs::remove_file(&into)?;
    Ok("given".to_owned())
}

/// Of each call: `answered`, or what the worker or the connection said.
async fn control(args: &Args, security: &Security) -> Vec<String> {
    let mut client = match connect(args, security).await {
        Ok(client) => client,
        Err(error) => return vec![format!("{error:#}")],
    };
    let said = |answer: Result<(), Status>| match answer {
        Ok(()) => "answered".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    };
    let erase = EraseRequest { dataset_uid: args.dataset.clone() };
    vec![
        said(client.erase(erase).await.map(drop)),
        said(client.configure(ConfigureRequest::default()).await.map(drop)),
        said(client.status(StatusRequest {}).await.map(drop)),
    ]
}

async fn connect(args: &Args, security: &Security) -> anyhow::Result<WorkerClient<tonic::transport::Channel>> {
    let address = SocketAddr::from((args.address, names::WORKER_CONTROL_PORT));
    let endpoint = Endpoint::from(worker_uri(&args.dataset, address, "/")?).timeout(PATIENCE);
    let endpoint = endpoint.origin(tonic::codegen::http::Uri::from_static("http://worker"));
    Ok(WorkerClient::new(endpoint.connect_with_connector(Connector::new(security, PATIENCE)).await?))
}
