//! Links and routes of the capsule: a bridge, a namespace per host on it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::spec::ClusterSpec;
use crate::process::Run as _;

/// The capsule's own address on the bridge: API server and DNS.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

/// A host on the bridge: a named network namespace with one address.
#[derive(Clone, Debug)]
pub struct Host {
    /// Name of the namespace.
    pub name: String,
    /// Address on the bridge.
    pub address: Ipv4Addr,
    /// Routes beyond the bridge, as lines for `ip -batch`.
    routes: String,
}

/// The address of the node with this index.
pub(super) fn node_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, octet(index))
}

/// The pod network of the node with this index.
pub(super) fn pod_network(index: usize) -> String {
    format!("10.89.{}.0/24", octet(index))
}

fn octet(index: usize) -> u8 {
    u8::try_from(11 + index).unwrap_or(u8::MAX)
}

/// Makes the bridge, and the routes to the pod networks of so many nodes.
pub(super) fn prepare(nodes: usize) -> Result<()> {
    // A second cluster in the same capsule finds the bridge of the first.
    let _ = Command::new("ip").args(["link", "del", "br0"]).run_any()?;
    let routes: String =
        (0..nodes).map(|index| format!("route add {} via {}\n", pod_network(index), node_address(index))).collect();
    batch(None, &format!("link add br0 type bridge\naddr add {GATEWAY}/24 dev br0\nlink set br0 up\n{routes}"))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switch on forwarding")?;
    Ok(())
}

/// Makes the host of the node with this index, with a route to the pod network of every other node.
pub(super) fn add_node(spec: &ClusterSpec, index: usize) -> Result<Host> {
    let others: String = (0..spec.nodes.len())
        .filter(|other| *other != index)
        .map(|other| format!("route add {} via {}\n", pod_network(other), node_address(other)))
        .collect();
    Host::add(&spec.nodes[index].name, node_address(index), &others)
}

impl Host {
    /// Adds a host to the bridge; `routes` are further lines for `ip -batch`.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn add(name: &str, address: Ipv4Addr, routes: &str) -> Result<Self> {
        let host = Self { name: name.to_owned(), address, routes: routes.to_owned() };
        host.unplug()?;
        host.plug_in()?;
        Ok(host)
    }

    /// Gives it a new namespace and a new link, as a machine that starts has.
    pub(super) fn plug_in(&self) -> Result<()> {
        let Self { name, address, routes } = self;
        let link = self.link();
        batch(
            None,
            &format!(
                "netns add {name}\nlink add {link} type veth peer name eth0 netns {name}\nlink set {link} master br0 up\n"
            ),
        )?;
        batch(
            Some(name),
            &format!(
                "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n{routes}"
            ),
        )
    }

    /// Takes its link and its namespace's name away, if they are there. Nobody hears of it: whoever is connected waits.
    pub(super) fn unplug(&self) -> Result<()> {
        let _ = Command::new("ip").args(["link", "del", &self.link()]).run_any()?;
        let _ = Command::new("ip").args(["netns", "del", &self.name]).run_any()?;
        Ok(())
    }

    /// Cuts it off from all others: nothing that is sent arrives, and nobody is told.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn cut_off(&self) -> Result<()> {
        batch(None, &format!("link set {} nomaster\n", self.link()))
    }

    /// Undoes [`Host::cut_off`].
    ///
    /// # Errors
    /// `ip` failed.
    pub fn join(&self) -> Result<()> {
        batch(None, &format!("link set {} master br0\n", self.link()))
    }

    /// The bridge's end of its link.
    fn link(&self) -> String {
        format!("v{}", self.address.octets()[3])
    }

    /// The file that is the namespace.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("--").arg(program);
        command
    }
}

fn batch(namespace: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]).run_with_input(lines.as_bytes()).map(drop)
}
