//! A cluster with an origin: what a test gets.

use std::time::Instant;

use anyhow::Result;

use crate::cluster::{Cluster, ClusterSpec};
use crate::report::{say, seconds, step};
use crate::run_dir::RunDir;
use crate::s3::S3Server;
use crate::tools::Tools;

/// Everything a test works with.
pub struct Lab {
    /// The cluster.
    pub cluster: Cluster,
    /// The origin.
    pub s3: S3Server,
}

impl Lab {
    /// Starts cluster and origin.
    ///
    /// # Errors
    /// Something did not come up.
    pub fn up(run: &RunDir, tools: &Tools, spec: &ClusterSpec) -> Result<Self> {
        let started = Instant::now();
        say(format!("starting a cluster of {} nodes; logs in {}", spec.nodes.len(), run.log_folder().display()));
        let cluster = Cluster::up(run, tools, spec)?;
        let s3 = step("S3 server ready", || S3Server::start(run, tools))?;
        say(format!("cluster up: {}", seconds(started.elapsed())));
        Ok(Self { cluster, s3 })
    }

    /// Ends everything, so that another lab can be started in the same capsule.
    ///
    /// # Errors
    /// Something of it could not be removed.
    pub fn down(&self) -> Result<()> {
        self.s3.stop()?;
        self.cluster.down()
    }
}
