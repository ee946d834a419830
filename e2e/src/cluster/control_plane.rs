//! etcd, API server, controller manager, scheduler, CoreDNS, and the local proxy the harness talks through.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::network::{GATEWAY, node_address};
use super::spec::ClusterSpec;
use super::{Api, Component};
use crate::pki::{Authority, token_key_pair};
use crate::run_dir::RunDir;
use crate::s3;
use crate::tools::Tools;

const SERVICES: &str = "10.90.0.0/16";
const API_SERVICE: &str = "10.90.0.1";

/// CoreDNS among the components.
pub(super) const DNS: &str = "coredns";

/// In the capsule's own `/run`: short enough for a socket's name wherever the clone is.
pub(super) const API_SOCKET: &str = "/run/api.sock";

/// What the certificates are for and where they are.
pub(super) struct Pki {
    authority: Authority,
    tokens: (PathBuf, PathBuf),
}

/// Makes all certificates and the kubeconfigs that use them.
pub(super) fn certificates(run: &RunDir, spec: &ClusterSpec) -> Result<Pki> {
    let folder = run.path("pki");
    let authority = Authority::create(&folder, "larder-e2e cluster CA")?;
    let names: Vec<String> = [
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "IP:127.0.0.1",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("IP:{GATEWAY}"), format!("IP:{API_SERVICE}")])
    .collect();
    authority.issue("apiserver", "/CN=kube-apiserver", &names)?;
    for (name, subject) in [
        ("admin", "/O=system:masters/CN=admin"),
        ("controller-manager", "/CN=system:kube-controller-manager"),
        ("scheduler", "/CN=system:kube-scheduler"),
        ("proxy", "/CN=system:kube-proxy"),
    ] {
        authority.issue(name, subject, &[])?;
        kubeconfig(run, &authority, name)?;
    }
    for (index, node) in spec.nodes.iter().enumerate() {
        let names = [format!("DNS:{}", node.name), format!("IP:{}", node_address(index))];
        authority.issue(&node.name, &format!("/O=system:nodes/CN=system:node:{}", node.name), &names)?;
        kubeconfig(run, &authority, &node.name)?;
    }
    Ok(Pki { tokens: token_key_pair(&folder)?, authority })
}

fn kubeconfig(run: &RunDir, authority: &Authority, user: &str) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: lab, cluster: {{server: \"https://{GATEWAY}:6443\", certificate-authority: {ca}}}}}]\n\
         users: [{{name: {user}, user: {{client-certificate: {crt}, client-key: {key}}}}}]\n\
         contexts: [{{name: lab, context: {{cluster: lab, user: {user}}}}}]\n\
         current-context: lab\n",
        ca = authority.certificate("ca").display(),
        crt = authority.certificate(user).display(),
        key = authority.key(user).display(),
    );
    fs::write(run.path(format!("{user}.kubeconfig")), text).context("write a kubeconfig")
}

/// Starts etcd and the API server.
pub(super) fn start_storage_and_api(run: &RunDir, tools: &Tools, pki: &Pki) -> Result<Vec<Component>> {
    let _ = fs::remove_dir_all(run.path("etcd"));
    let etcd = Component::start(
        run,
        "etcd",
        tools
            .command("etcd")?
            .arg("--data-dir")
            .arg(run.path("etcd"))
            // The data does not outlive the run, so there is nothing to sync for.
            .args(["--unsafe-no-fsync", "--log-level", "warn"])
            .args(["--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379"])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]),
    )?;
    let (authority, (token_key, token_public)) = (&pki.authority, &pki.tokens);
    let api = Component::start(
        run,
        "apiserver",
        tools
            .command("kube-apiserver")?
            .args(["--etcd-servers", "http://127.0.0.1:2379", "--bind-address", "0.0.0.0", "--secure-port", "6443"])
            .args(["--advertise-address", &GATEWAY.to_string(), "--service-cluster-ip-range", SERVICES])
            .args(["--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"])
            // Without it `kubectl exec` looks the node's name up in DNS.
            .args(["--kubelet-preferred-address-types", "InternalIP", "--allow-privileged=true"])
            .arg("--service-account-key-file")
            .arg(token_public)
            .arg("--service-account-signing-key-file")
            .arg(token_key)
            .arg("--client-ca-file")
            .arg(authority.certificate("ca"))
            .arg("--tls-cert-file")
            .arg(authority.certificate("apiserver"))
            .arg("--tls-private-key-file")
            .arg(authority.key("apiserver"))
            .arg("--kubelet-certificate-authority")
            .arg(authority.certificate("ca"))
            .arg("--kubelet-client-certificate")
            .arg(authority.certificate("admin"))
            .arg("--kubelet-client-key")
            .arg(authority.key("admin")),
    )?;
    Ok(vec![etcd, api])
}

/// Starts what needs a running API server.
pub(super) fn start_rest(run: &RunDir, tools: &Tools, pki: &Pki) -> Result<Vec<Component>> {
    let controllers = Component::start(
        run,
        "controller-manager",
        tools
            .command("kube-controller-manager")?
            .arg("--kubeconfig")
            .arg(run.path("controller-manager.kubeconfig"))
            .arg("--service-account-private-key-file")
            .arg(&pki.tokens.0)
            .arg("--root-ca-file")
            .arg(pki.authority.certificate("ca"))
            .arg("--cluster-signing-cert-file")
            .arg(pki.authority.certificate("ca"))
            .arg("--cluster-signing-key-file")
            .arg(pki.authority.key("ca"))
            .args(["--use-service-account-credentials", "--leader-elect=false"])
            .args(["--controllers", "*,-node-ipam-controller,-node-route-controller,-cloud-node-lifecycle-controller"]),
    )?;
    let scheduler = Component::start(
        run,
        "scheduler",
        tools.command("kube-scheduler")?.arg("--kubeconfig").arg(run.path("scheduler.kubeconfig")).arg("--leader-elect=false"),
    )?;
    Ok(vec![controllers, scheduler, start_dns(run, tools)?])
}

/// Starts CoreDNS.
pub(super) fn start_dns(run: &RunDir, tools: &Tools) -> Result<Component> {
    let corefile = run.path("Corefile");
    fs::write(&corefile, dns_configuration(&run.kubeconfig())).context("write the Corefile")?;
    Component::start(run, DNS, tools.command("coredns")?.arg("-conf").arg(corefile))
}

/// No cache: a test that changes a name may not wait for one.
fn dns_configuration(kubeconfig: &Path) -> String {
    format!(
        ".:53 {{\n  bind {GATEWAY}\n  errors\n  \
         hosts {{\n    {origin} {name}\n    ttl 5\n    fallthrough\n  }}\n  \
         kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {config}\n    pods insecure\n    \
         fallthrough in-addr.arpa ip6.arpa\n  }}\n}}\n",
        origin = s3::ADDRESS,
        name = s3::NAME,
        config = kubeconfig.display(),
    )
}

/// Starts `kubectl proxy` for [`Api`] and waits till the API server says that it is ready.
pub(super) fn wait_ready(tools: &Tools, run: &RunDir, components: &mut Vec<Component>) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(120);
    let socket = Path::new(API_SOCKET);
    let _ = fs::remove_file(socket);
    let mut proxy: Command = tools.command("kubectl")?;
    proxy.arg("--kubeconfig").arg(run.kubeconfig()).arg("proxy").arg("--unix-socket").arg(socket);
    components.push(Component::start(run, "api-proxy", &mut proxy)?);
    let api = Api::new(socket);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        components.iter_mut().try_for_each(Component::check)?;
        match api.text("/readyz") {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(Instant::now() < deadline, "the API server is not ready after {TIMEOUT:?}: {error:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
