//! A network of its own for the processes of other nodes, joined to this one by a link that can be shaped.

use anyhow::Context as _;
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

/// Name of the network, and of this side of the link.
const NAME: &str = "larder-bench";
const INSIDE: &str = "eth0";

/// The network; gone when this is dropped. Addresses are of those that are set apart for benchmarks.
pub(crate) struct Network(());

impl Network {
    /// This side.
    pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 1));
    /// The other side: a worker, and a plain server.
    pub const WORKER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 2));

    pub fn make() -> anyhow::Result<Self> {
        // Of a run that was killed.
        let _ = Command::new("ip").args(["netns", "del", NAME]).output();
        run("ip", &["netns", "add", NAME])?;
        let this = Self(());
        run("ip", &["link", "add", NAME, "type", "veth", "peer", "name", INSIDE, "netns", NAME])?;
        run("ip", &["addr", "add", &format!("{}/24", Self::HOST), "dev", NAME])?;
        run("ip", &["link", "set", NAME, "up"])?;
        run("ip", &["-n", NAME, "addr", "add", &format!("{}/24", Self::WORKER), "dev", INSIDE])?;
        run("ip", &["-n", NAME, "link", "set", INSIDE, "up"])?;
        run("ip", &["-n", NAME, "link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// Lets so many bits of frames a second out of it; `None`: as many as it can.
    pub fn shape(&self, bits: Option<u64>) -> anyhow::Result<()> {
        match bits {
            Some(bits) => {
                let rate = format!("{bits}bit");
                let shape = ["tbf", "rate", &rate, "burst", "512kb", "latency", "50ms"];
                run("tc", &[&["-n", NAME, "qdisc", "replace", "dev", INSIDE, "root"][..], &shape[..]].concat())
            }
            None => run("tc", &["-n", NAME, "qdisc", "del", "dev", INSIDE, "root"]),
        }
    }

    /// A program that runs inside, as the process that is started.
    pub fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{NAME}")).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", NAME]);
    }
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("run {program} (package iproute2)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}
