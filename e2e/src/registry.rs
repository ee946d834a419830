//! An image registry on a host of its own, behind TLS of a private authority: where users push images and nodes pull them.
//!
//! Its name is the one that README.md uses, so that what is written there works here as it is.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::{Component, Host, Node};
use crate::pki::Authority;
use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// Its address on the bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 201);
/// Its name.
pub const NAME: &str = "registry.example";

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A registry; it ends with this value.
pub struct Registry {
    server: Component,
    authority: Authority,
}

impl Registry {
    /// Starts an empty one, which the nodes' containerds trust.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(run: &RunDir, tools: &Tools, nodes: &[Node]) -> Result<Self> {
        let folder = run.path("registry");
        let _ = fs::remove_dir_all(&folder);
        let authority = Authority::create(&folder.join("pki"), "larder-e2e registry CA")?;
        authority.issue("server", &format!("/CN={NAME}"), &[format!("DNS:{NAME}")])?;
        let configuration = folder.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n\
             http: {{addr: \":443\", tls: {{certificate: {certificate}, key: {key}}}}}\n",
            folder = folder.display(),
            certificate = authority.certificate("server").display(),
            key = authority.key("server").display(),
        );
        fs::write(&configuration, text).context("write the registry's configuration")?;
        for node in nodes {
            trust(node, &authority.certificate("ca").display().to_string())?;
        }
        let host = Host::add("registry", ADDRESS, "")?;
        let mut command = host.command(tools.go("registry")?);
        let server = Component::start(run, "registry", command.arg("serve").arg(configuration))?;
        let mut registry = Self { server, authority };
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(error) = registry.answers(&host) {
            registry.server.check()?;
            ensure!(Instant::now() < deadline, "the registry does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    fn answers(&self, host: &Host) -> Result<()> {
        let answer = host
            .command("openssl")
            .args(["s_client", "-quiet", "-verify_quiet", "-verify_return_error", "-servername", NAME])
            .args(["-connect", &format!("{ADDRESS}:443"), "-CAfile"])
            .arg(self.authority())
            .env("OPENSSL_CONF", "/dev/null")
            .run_with_input(format!("GET /v2/ HTTP/1.0\r\nHost: {NAME}\r\n\r\n").as_bytes())?;
        ensure!(answer.contains(" 200 "), "{}", answer.lines().next().unwrap_or("it closed the connection"));
        Ok(())
    }

    /// The file with its authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.authority.certificate("ca")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.stop();
    }
}

/// containerd looks into this folder at every pull.
fn trust(node: &Node, authority: &str) -> Result<()> {
    let folder = node.registries().join(NAME);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let text = format!("server = \"https://{NAME}\"\n[host.\"https://{NAME}\"]\n  ca = \"{authority}\"\n");
    fs::write(folder.join("hosts.toml"), text).context("let a node trust the registry")
}
