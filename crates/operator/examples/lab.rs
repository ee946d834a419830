//! scratch
use clap::Parser;
use larder_proto::control::v1::{
    worker_server::{Worker, WorkerServer},
    *,
};
use std::sync::Mutex;
#[derive(Parser)]
enum Cli {
    Operator(larder_operator::Args),
    Check(larder_operator::uninstall::Args),
    Fake { addr: std::net::SocketAddr, node: String },
}
#[derive(Default)]
struct Fake {
    node: String,
    config: Mutex<Config>,
    polls: Mutex<u32>,
    have: Mutex<Vec<String>>,
}
const D: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
#[tonic::async_trait]
impl Worker for Fake {
    async fn configure(
        &self,
        r: tonic::Request<ConfigureRequest>,
    ) -> Result<tonic::Response<ConfigureResponse>, tonic::Status> {
        let c = r.into_inner().config.unwrap();
        println!("{} configure {:?}", self.node, c);
        if !c.snapshot.is_empty() {
            self.have.lock().unwrap().push(c.snapshot.clone());
        }
        *self.config.lock().unwrap() = c;
        Ok(tonic::Response::new(ConfigureResponse {}))
    }
    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusResponse>, tonic::Status> {
        let c = self.config.lock().unwrap().clone();
        let mut n = self.polls.lock().unwrap();
        *n += 1;
        let mut s = StatusResponse {
            node: self.node.clone(),
            generation: c.generation.clone(),
            origin_bytes: u64::from(*n),
            ..Default::default()
        };
        if !c.listing_id.is_empty() {
            let done = *n > 4;
            if done {
                self.have.lock().unwrap().push(D.into());
            }
            s.listing = Some(Listing {
                id: c.listing_id.clone(),
                phase: if done { Phase::Succeeded.into() } else { Phase::Running.into() },
                files: 10,
                bytes: 1000,
                snapshot: if done { D.into() } else { String::new() },
                time: 1790000000,
                ..Default::default()
            });
        }
        s.snapshots = self.have.lock().unwrap().clone();
        if c.preload && !c.snapshot.is_empty() {
            let done = *n > 9;
            s.preload = Some(Preload {
                snapshot: c.snapshot.clone(),
                phase: if done { Phase::Succeeded.into() } else { Phase::Running.into() },
                bytes_total: 500,
                bytes_done: if done { 500 } else { u64::from(*n) * 50 },
                files_total: 5,
                ..Default::default()
            });
            s.cached_bytes = s.preload.as_ref().unwrap().bytes_done;
        }
        Ok(tonic::Response::new(s))
    }
    async fn erase(&self, r: tonic::Request<EraseRequest>) -> Result<tonic::Response<EraseResponse>, tonic::Status> {
        println!("{} erase {:?}", self.node, r.into_inner());
        Ok(tonic::Response::new(EraseResponse { freed_bytes: 7 }))
    }
}
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    larder_telemetry::init("info,larder_operator=debug");
    let shutdown = larder_telemetry::shutdown_on_signal()?;
    match Cli::parse() {
        Cli::Operator(a) => larder_operator::run(a, shutdown).await,
        Cli::Check(a) => larder_operator::uninstall::run(a, shutdown).await,
        Cli::Fake { addr, node } => {
            tonic::transport::Server::builder()
                .add_service(WorkerServer::new((Fake { node, ..Default::default() })))
                .serve(addr)
                .await?;
            Ok(())
        }
    }
}
