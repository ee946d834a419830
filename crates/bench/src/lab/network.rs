//! Networks of their own for the processes of nodes, each at the end of a link that can be shaped.
//!
//! ```text
//! behind: this network ── link ── node            switch: this network ──┐
//!                                                         node ── link ── bridge, in a network of its own
//!                                                         node ── link ──┘
//! ```

use anyhow::Context as _;
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::Command,
};

/// The bridge's network, and this side of the link to it, or to the only node.
const NAME: &str = "larder-bench";
const BRIDGE: &str = "bridge";
const INSIDE: &str = "eth0";
/// More nodes than any row has: what a run that was killed may have left.
const MOST: u8 = 16;

/// The networks; gone when this is dropped. Addresses are of those that are set apart for benchmarks.
pub(crate) struct Network {
    nodes: u8,
    bridge: bool,
}

/// Name of a network.
#[derive(Clone, Debug)]
pub(crate) struct Space(String);

impl Network {
    /// This side.
    pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 77, 1));

    /// One node, right behind a link.
    pub fn behind() -> anyhow::Result<Self> {
        remove();
        let this = Self { nodes: 1, bridge: false };
        add(&Space::of(0))?;
        run("ip", &["link", "add", NAME, "type", "veth", "peer", "name", INSIDE, "netns", &Space::of(0).0])?;
        this.addresses()?;
        Ok(this)
    }

    /// So many nodes, each with a link to one switch. It is in a network of its own, where no packet filter of the machine is.
    pub fn switch(nodes: u8) -> anyhow::Result<Self> {
        remove();
        let (this, center) = (Self { nodes, bridge: true }, Space::center());
        add(&center)?;
        center.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        center.ip(&["link", "set", BRIDGE, "up"])?;
        run("ip", &["link", "add", NAME, "type", "veth", "peer", "name", "host", "netns", &center.0])?;
        center.ip(&["link", "set", "host", "master", BRIDGE, "up"])?;
        for n in 0..nodes {
            let (space, port) = (Space::of(n), port(n));
            add(&space)?;
            center.ip(&["link", "add", &port, "type", "veth", "peer", "name", INSIDE, "netns", &space.0])?;
            center.ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
        }
        this.addresses()?;
        Ok(this)
    }

    fn addresses(&self) -> anyhow::Result<()> {
        run("ip", &["addr", "add", &format!("{}/24", Self::HOST), "dev", NAME])?;
        run("ip", &["link", "set", NAME, "up"])?;
        for n in 0..self.nodes {
            let space = Space::of(n);
            space.ip(&["addr", "add", &format!("{}/24", Self::node(n)), "dev", INSIDE])?;
            space.ip(&["link", "set", INSIDE, "up"])?;
            space.ip(&["link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    pub fn nodes(&self) -> u8 {
        self.nodes
    }

    /// The other side: the processes of a node.
    pub fn node(n: u8) -> IpAddr {
        IpAddr::from([198, 18, 77, n + 2])
    }

    #[expect(clippy::unused_self, reason = "there is none without the network")]
    pub fn space(&self, n: u8) -> Space {
        Space::of(n)
    }

    /// Lets so many bits of frames a second out of a node; `None`: as many as it can.
    pub fn shape(&self, n: u8, bits: Option<u64>) -> anyhow::Result<()> {
        shape(&["-n", &self.space(n).0], INSIDE, bits)
    }

    /// The same into a node.
    pub fn shape_into(&self, n: u8, bits: u64) -> anyhow::Result<()> {
        if self.bridge { shape(&["-n", &Space::center().0], &port(n), Some(bits)) } else { shape(&[], NAME, Some(bits)) }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove();
    }
}

impl Space {
    fn of(n: u8) -> Self {
        Self(format!("{NAME}-{n}"))
    }

    /// That of the bridge.
    fn center() -> Self {
        Self(NAME.to_owned())
    }

    fn ip(&self, args: &[&str]) -> anyhow::Result<()> {
        run("ip", &[&["-n", &self.0], args].concat())
    }

    /// A program that runs inside, as the process that is started.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg(program);
        command
    }
}

/// The switch's side of a node's link.
fn port(n: u8) -> String {
    format!("port-{n}")
}

fn add(space: &Space) -> anyhow::Result<()> {
    run("ip", &["netns", "add", &space.0])
}

/// Of this run, or of one that was killed. Links go with them.
fn remove() {
    for space in (0..MOST).map(Space::of).chain([Space::center()]) {
        if Path::new("/run/netns").join(&space.0).exists() {
            let _ = run("ip", &["netns", "del", &space.0]);
        }
    }
}

fn shape(space: &[&str], device: &str, bits: Option<u64>) -> anyhow::Result<()> {
    match bits {
        Some(bits) => {
            let rate = format!("{bits}bit");
            let shape = ["qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate, "burst", "512kb", "latency", "50ms"];
            run("tc", &[space, &shape].concat())
        }
        None => run("tc", &[space, &["qdisc", "del", "dev", device, "root"]].concat()),
    }
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("run {program} (package iproute2)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}
