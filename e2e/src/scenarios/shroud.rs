//! A mount that is dead or gone is an error to whoever looks, never an empty folder.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::larder::{BUCKET, HOLD, Named, install, upload};
use super::takeover;
use crate::cluster::Node;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::say;

const WAIT: Duration = Duration::from_secs(120);

/// Their names, and the users they run as.
const CONTAINERS: [(&str, u32); 2] = [("root", 0), ("user", 1000)];

/// All daemons that hold a mount die at the same moment. What the pod sees, what its containers see when they start again, and
/// what comes after it.
pub(super) fn a_dead_mount_is_an_error_and_never_an_empty_folder(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cluster = &lab.cluster;
    let named = Named { lab, namespace: "shroud", name: "shroud" };
    let manifest = upload(lab, BUCKET, named.name, 91)?;
    let (file, entry) = manifest.first_key_value().context("the dataset has no file")?;
    named.create()?;
    named.wait("Preloaded", WAIT)?;
    let node = cluster.gpu_nodes().next().context("no GPU node")?;
    cluster.apply(&two_users(&named, node).to_string())?;
    cluster.wait_ready(named.namespace, "victim", WAIT)?;
    named.check_in("victim", &manifest)?;
    let victim = Victim { named: &named, file, sum: &entry.sha256 };
    for (container, _) in CONTAINERS {
        ensure!(victim.looks(container).is_err(), "the test finds an error where there is none");
    }

    takeover::kill_all_holders(lab, node)?;
    for (container, _) in CONTAINERS {
        say(format!("  {container}: {}", victim.looks(container)?));
        victim.starts_again(container)?;
    }

    // The next publish makes a new superblock. The old pod's mounts do not come to life again, and do not get empty.
    let next = || -> Result<()> {
        cluster.apply(&named.pod("next", node, &HOLD).to_string())?;
        cluster.wait_ready(named.namespace, "next", WAIT)?;
        named.check_in("next", &manifest)
    };
    next()?;
    for (container, _) in CONTAINERS {
        victim.starts_again(container)?;
    }

    // Somebody takes the mount away: the shroud under it is an error too.
    node.command("umount")?.args(["--lazy", &victim.target()?]).run()?;
    for (container, _) in CONTAINERS {
        victim.starts_again(container)?;
    }

    for pod in ["victim", "next"] {
        cluster.delete_and_wait("pods", Some(named.namespace), pod, WAIT)?;
    }
    next()?;
    cluster.delete_and_wait("pods", Some(named.namespace), "next", WAIT)?;
    named.remove(WAIT)
}

/// A pod of two containers that are started again whenever they end.
fn two_users(named: &Named<'_>, node: &Node) -> Value {
    let mut pod = named.pod("victim", node, &HOLD);
    let container = pod["spec"]["containers"][0].take();
    let of = |(name, user): (&str, u32)| {
        let mut container = container.clone();
        container["name"] = json!(name);
        container["securityContext"] = json!({ "runAsUser": user });
        container
    };
    pod["spec"]["containers"] = CONTAINERS.map(of).to_vec().into();
    pod["spec"]["restartPolicy"] = json!("Always");
    pod
}

/// The pod whose mount is dead.
struct Victim<'a> {
    named: &'a Named<'a>,
    file: &'a str,
    /// SHA-256 of its content.
    sum: &'a str,
}

impl Victim<'_> {
    fn object(&self) -> Result<Value> {
        self.named.lab.cluster.get("pods", Some(self.named.namespace), "victim")
    }

    /// Where the kubelet wants the volume.
    fn target(&self) -> Result<String> {
        let (pod, claim) = (
            self.object()?,
            self.named.lab.cluster.get("persistentvolumeclaims", Some(self.named.namespace), self.named.name)?,
        );
        let uid = pod["metadata"]["uid"].as_str().context("the pod has no uid")?;
        let volume = claim["spec"]["volumeName"].as_str().context("the claim has no volume")?;
        let kubelet = self.named.lab.cluster.kubelet_dir();
        Ok(format!("{kubelet}/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"))
    }

    /// Lists the folder and reads a file in a container that runs. The list must fail and print nothing but an error; so must the
    /// file, unless the kernel has all of it in its page cache: then it is what it was. Returns the errors.
    fn looks(&self, container: &str) -> Result<String> {
        let Named { lab, namespace, .. } = self.named;
        let script = r#"
            list=$(ls -A /data 2>/dev/null) && { echo "ls succeeded: $list"; exit; }
            [ -z "$list" ] || { echo "ls failed and printed: $list"; exit; }
            if read=$(sha256sum "/data/$0" 2>/dev/null); then
                [ "${read%% *}" = "$1" ] || { echo "the file was read, and is not what it was: $read"; exit; }
                echo "ok: $(ls -A /data 2>&1); the file is read from the page cache"; exit
            fi
            [ -z "$read" ] || { echo "reading failed and printed: $read"; exit; }
            echo "ok: $(ls -A /data 2>&1); $(cat "/data/$0" 2>&1)""#;
        let said = lab.cluster.exec(namespace, "victim", Some(container), &["sh", "-c", script, self.file, self.sum])?;
        let errors = said.trim().strip_prefix("ok: ").with_context(|| format!("in container {container} {said}"))?;
        let expected = if errors.contains("page cache") { 1 } else { 2 };
        ensure!(errors.matches("not connected").count() == expected, "{container} got other errors: {errors}");
        Ok(errors.to_owned())
    }

    /// Ends a container's main process, if it has one. The kubelet starts it again: either that fails with an error, or the
    /// container that runs sees one.
    fn starts_again(&self, container: &str) -> Result<()> {
        let Named { lab, namespace, .. } = self.named;
        let (before, failures) = (self.status(container)?, self.failures(container)?);
        if !before["state"]["running"].is_null() {
            lab.cluster.kill_container(namespace, "victim", container)?;
        }
        let refused = lab.cluster.wait_until(&format!("container {container} is started again"), WAIT, || {
            let now = self.status(container)?;
            if !now["state"]["running"].is_null() {
                ensure!(now["containerID"] != before["containerID"], "it has not ended yet");
                return Ok(None);
            }
            ensure!(self.failures(container)? > failures, "it was not tried yet");
            let waiting = &now["state"]["waiting"];
            let message = waiting["message"].as_str().unwrap_or_default();
            ensure!(message.contains("not connected"), "{waiting}");
            Ok(Some(format!("{}: {message}", waiting["reason"].as_str().unwrap_or_default())))
        })?;
        match refused {
            Some(why) => say(format!("  {container} is not started again: {why}")),
            None => say(format!("  {container} runs again and sees: {}", self.looks(container)?)),
        }
        Ok(())
    }

    fn status(&self, container: &str) -> Result<Value> {
        let pod = self.object()?;
        let all = pod["status"]["containerStatuses"].as_array().context("the pod has no containers")?;
        let status = all.iter().find(|status| status["name"] == container);
        Ok(status.with_context(|| format!("no container {container}"))?.clone())
    }

    /// How often the kubelet could not start a container.
    fn failures(&self, container: &str) -> Result<u64> {
        let events = self.named.lab.cluster.list("events", Some(self.named.namespace))?;
        let field = format!("spec.containers{{{container}}}");
        let of = |event: &&Value| event["reason"] == "Failed" && event["involvedObject"]["fieldPath"] == field.as_str();
        Ok(events.iter().filter(of).map(|event| event["count"].as_u64().unwrap_or(1)).sum())
    }
}
