//! What tests do with the cluster: apply, get, exec, logs, helm, and violence against containers.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Cluster, Node, Process, path_of};
use crate::process::Run as _;

impl Cluster {
    pub(super) fn kubectl_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.tools.command("kubectl")?;
        command.arg("--kubeconfig").arg(self.run.kubeconfig()).args(arguments);
        Ok(command)
    }

    /// Runs kubectl; returns its standard output.
    ///
    /// # Errors
    /// It failed; the message is its standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_command(arguments)?.run()
    }

    /// Runs helm; returns its standard output.
    ///
    /// # Errors
    /// It failed; the message is its standard error.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.tools.command("helm")?.env("KUBECONFIG", self.run.kubeconfig()).args(arguments).run()
    }

    /// Runs larder, as a user would; returns its standard output.
    ///
    /// # Errors
    /// It failed; the message is its standard error.
    pub fn larder(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(crate::product::program());
        command.env("KUBECONFIG", self.run.kubeconfig()).args(arguments).run()
    }

    /// Applies YAML (server-side).
    ///
    /// # Errors
    /// The API server refused it.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f", "-"])?.run_with_input(yaml.as_bytes())
    }

    /// Applies a file or folder of YAML.
    ///
    /// # Errors
    /// The API server refused it.
    pub fn apply_file(&self, path: &Path) -> Result<String> {
        self.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f"])?.arg(path).run()
    }

    /// Makes a namespace and waits till pods can be made in it: they need its service account, which a controller makes.
    ///
    /// # Errors
    /// The controller did not.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"))?;
        self.wait_for_service_account(name)
    }

    pub(super) fn wait_for_service_account(&self, namespace: &str) -> Result<()> {
        self.wait_until(&format!("namespace {namespace}"), Duration::from_secs(30), || {
            self.get("serviceaccounts", Some(namespace), "default").map(drop)
        })
    }

    /// Asks for deletion of an object and does not wait for it; it may be gone already.
    ///
    /// # Errors
    /// The API server refused.
    pub fn delete(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<()> {
        let mut command = self.kubectl_command(&["delete", resource, name, "--ignore-not-found", "--wait=false"])?;
        if let Some(namespace) = namespace {
            command.args(["--namespace", namespace]);
        }
        command.run().map(drop)
    }

    /// Deletes an object and waits till it is gone.
    ///
    /// # Errors
    /// It is still there after `timeout`.
    pub fn delete_and_wait(&self, resource: &str, namespace: Option<&str>, name: &str, timeout: Duration) -> Result<()> {
        self.delete(resource, namespace, name)?;
        self.wait_until(&format!("{resource}/{name} gone"), timeout, || {
            ensure!(self.find(resource, namespace, name)?.is_none(), "still there");
            Ok(())
        })
    }

    /// One object; `resource` is the plural, as in `daemonsets`.
    ///
    /// # Errors
    /// It does not exist.
    pub fn get(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Value> {
        self.api.get(&path_of(resource, namespace, Some(name)))
    }

    /// One object, if it exists.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub fn find(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Option<Value>> {
        self.api.find(&path_of(resource, namespace, Some(name)))
    }

    /// All objects of a resource, in one namespace or all.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Result<Vec<Value>> {
        let mut list = self.api.get(&path_of(resource, namespace, None))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("the list of {resource} has no items"),
        }
    }

    /// The pods with a label such as `app=larder`.
    ///
    /// # Errors
    /// The API server could not be asked.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let path = format!("{}?labelSelector={}", path_of("pods", Some(namespace), None), selector.replace('=', "%3D"));
        let mut list = self.api.get(&path)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("the list of pods has no items"),
        }
    }

    /// Waits till a pod has succeeded; a failed one is an error at once, with its log.
    ///
    /// # Errors
    /// It failed or took too long.
    pub fn wait_succeeded(&self, namespace: &str, pod: &str, timeout: Duration) -> Result<()> {
        let failed = self.wait_until(&format!("pod {namespace}/{pod} succeeded"), timeout, || {
            match phase(&self.get("pods", Some(namespace), pod)?) {
                "Succeeded" => Ok(false),
                "Failed" => Ok(true),
                phase => bail!("it is {phase}"),
            }
        })?;
        ensure!(!failed, "pod {namespace}/{pod} failed: {}", self.logs(namespace, pod, None).unwrap_or_default());
        Ok(())
    }

    /// Waits till a pod is Ready.
    ///
    /// # Errors
    /// It failed or took too long.
    pub fn wait_ready(&self, namespace: &str, pod: &str, timeout: Duration) -> Result<Value> {
        self.wait_until(&format!("pod {namespace}/{pod} Ready"), timeout, || {
            let object = self.get("pods", Some(namespace), pod)?;
            ensure!(super::condition(&object, "Ready") == Some("True"), "it is {}", phase(&object));
            Ok(object)
        })
    }

    /// Waits till a DaemonSet or Deployment has all its pods ready.
    ///
    /// # Errors
    /// It took too long.
    pub fn wait_rolled_out(&self, resource: &str, namespace: &str, name: &str, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("{resource}/{name} ready"), timeout, || {
            let object = self.get(resource, Some(namespace), name)?;
            let status = &object["status"];
            ensure!(status["observedGeneration"] == object["metadata"]["generation"], "not seen by its controller yet");
            let (wanted, ready) = if resource == "daemonsets" {
                (&status["desiredNumberScheduled"], &status["numberReady"])
            } else {
                (&object["spec"]["replicas"], &status["readyReplicas"])
            };
            let (wanted, ready) = (wanted.as_u64().unwrap_or(0), ready.as_u64().unwrap_or(0));
            ensure!(wanted > 0 && ready == wanted, "{ready} of {wanted} ready");
            Ok(())
        })
    }

    /// Runs a command in a pod's container; returns its standard output.
    ///
    /// # Errors
    /// It failed.
    pub fn exec(&self, namespace: &str, pod: &str, container: Option<&str>, command: &[&str]) -> Result<String> {
        let mut kubectl = self.kubectl_command(&["exec", "--namespace", namespace, pod])?;
        if let Some(container) = container {
            kubectl.args(["--container", container]);
        }
        kubectl.arg("--").args(command).run()
    }

    /// The log of a pod's container.
    ///
    /// # Errors
    /// There is none.
    pub fn logs(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<String> {
        let mut kubectl = self.kubectl_command(&["logs", "--namespace", namespace, pod])?;
        match container {
            Some(container) => kubectl.args(["--container", container]).run(),
            None => kubectl.arg("--all-containers").run(),
        }
    }

    /// Imports an image archive on some nodes.
    ///
    /// # Errors
    /// containerd refused it.
    pub fn load_image<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>, archive: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            let imports: Vec<_> = nodes.into_iter().map(|node| scope.spawn(|| node.load_image(archive))).collect();
            imports.into_iter().try_for_each(|import| import.join().map_err(|_| super::poisoned())?)
        })
    }

    /// The main process of a pod's container, and the node it is on.
    ///
    /// # Errors
    /// The container does not run.
    pub fn main_process(&self, namespace: &str, pod: &str, container: &str) -> Result<(&Node, Process)> {
        let object = self.get("pods", Some(namespace), pod)?;
        let statuses = ["containerStatuses", "initContainerStatuses"];
        let id = statuses
            .iter()
            .filter_map(|list| object["status"][list].as_array())
            .flatten()
            .find(|status| status["name"] == container)
            .and_then(|status| status["containerID"].as_str()?.strip_prefix("containerd://").map(str::to_owned))
            .with_context(|| format!("pod {namespace}/{pod} has no running container {container}"))?;
        let node = self.node(object["spec"]["nodeName"].as_str().unwrap_or_default())?;
        node.processes()
            .into_iter()
            .find(|process| process.container_id == id && process.is_main())
            .map(|process| (node, process))
            .with_context(|| format!("container {container} of {namespace}/{pod} has no process"))
    }

    /// Kills a container's main process with -9, as the kernel's out-of-memory killer would.
    ///
    /// # Errors
    /// The container does not run.
    pub fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Result<()> {
        self.main_process(namespace, pod, container)?.1.signal(Signal::SIGKILL)
    }
}

/// A pod's phase.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or("unknown")
}
