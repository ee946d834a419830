//! Programs built from Go modules.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{crate_folder, short_digest};
use crate::process::{append_to, tail};
use crate::report::{say, step};

/// One program of one module below `e2e/tools/`.
pub(super) struct Program {
    pub(super) name: &'static str,
    module: &'static str,
    package: &'static str,
    linker_flags: &'static str,
    /// Every cluster needs it.
    pub(super) cluster: bool,
}

/// Without these the programs call themselves v0.0.0-master, and the kubelet refuses such an API server.
const KUBERNETES: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.4 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34 \
     -X k8s.io/component-base/version.gitTreeState=clean";
/// Without these helm calls itself v3.0 and renders charts for Kubernetes 1.20 when it is not asked to talk to a cluster.
const HELM: &str = "-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
     -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34 \
     -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=34";
const STRIP: &str = "-s -w";

const fn kubernetes(name: &'static str, package: &'static str) -> Program {
    Program { name, module: "kubernetes", package, linker_flags: KUBERNETES, cluster: true }
}

/// All programs; the longest build first, because the others share most of what it compiles.
pub(super) const PROGRAMS: &[Program] = &[
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    Program { name: "etcd", module: "kubernetes", package: "go.etcd.io/etcd/server/v3", linker_flags: STRIP, cluster: true },
    Program { name: "helm", module: "helm", package: "helm.sh/helm/v3/cmd/helm", linker_flags: HELM, cluster: true },
    Program {
        name: "versitygw",
        module: "versitygw",
        package: "github.com/versity/versitygw/cmd/versitygw",
        linker_flags: STRIP,
        cluster: true,
    },
    Program {
        name: "gofakes3",
        module: "gofakes3",
        package: "github.com/johannesboyne/gofakes3/cmd/gofakes3",
        linker_flags: STRIP,
        cluster: false,
    },
    Program { name: "coredns", module: "coredns", package: "github.com/coredns/coredns", linker_flags: STRIP, cluster: true },
    Program {
        name: "csi-sanity",
        module: "csi-sanity",
        package: "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        linker_flags: STRIP,
        cluster: false,
    },
    Program {
        name: "registry",
        module: "registry",
        package: "github.com/distribution/distribution/v3/cmd/registry",
        linker_flags: STRIP,
        cluster: false,
    },
];

/// A plain parallel S3 client, to measure against. Only `bench` needs it.
pub(super) const S5CMD: Program =
    Program { name: "s5cmd", module: "s5cmd", package: "github.com/peak/s5cmd/v2", linker_flags: STRIP, cluster: false };

/// Downloads fail now and then; what was fetched and compiled before a failure is kept, so a further try is cheap.
const TRIES: u32 = 4;

/// Where the program is once it is built.
pub(super) fn path(cache: &Path, program: &Program) -> Result<PathBuf> {
    let module = crate_folder().join("tools").join(program.module);
    let read = |name: &str| std::fs::read(module.join(name)).with_context(|| format!("read {name} of {}", program.module));
    let key = short_digest(&[&read("go.mod")?, &read("go.sum")?, program.linker_flags.as_bytes()]);
    Ok(cache.join("go").join(format!("{}-{key}", program.module)).join(program.name))
}

/// Builds the program unless it is there.
pub(super) fn install(cache: &Path, program: &Program) -> Result<()> {
    let target = path(cache, program)?;
    if target.exists() {
        return Ok(());
    }
    let folder = target.parent().context("folder of a program")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let unfinished = folder.join(format!(".{}.unfinished", program.name));
    let log = cache.join(format!("build-{}.log", program.name));
    say(format!("  building {}", program.name));
    step(&format!("building {}", program.name), || {
        for attempt in 1..=TRIES {
            let _ = std::fs::remove_file(&log);
            if build(program, &unfinished, &log)? {
                return std::fs::rename(&unfinished, &target).with_context(|| format!("put {} in place", program.name));
            }
            if attempt < TRIES {
                say(format!("  building {} failed, trying again: {}", program.name, tail(&log, 1)));
                std::thread::sleep(std::time::Duration::from_secs(3));
            }
        }
        bail!("build {} failed {TRIES} times:\n{}", program.name, tail(&log, 20))
    })
}

fn build(program: &Program, output: &Path, log: &Path) -> Result<bool> {
    let out = append_to(log)?;
    let status = Command::new("go")
        .args(["build", "-mod=readonly", "-trimpath", "-ldflags", program.linker_flags, "-o"])
        .arg(output)
        .arg(program.package)
        .current_dir(crate_folder().join("tools").join(program.module))
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .stdin(Stdio::null())
        .stderr(out.try_clone().context("duplicate a log file")?)
        .stdout(out)
        .status()
        .context("run `go`, which builds the cluster's programs (Go 1.26 or newer must be installed)")?;
    Ok(status.success())
}
