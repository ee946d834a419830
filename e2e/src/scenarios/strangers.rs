//! Whoever reaches a worker's ports in the cluster network, and has no business there.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::larder::{BUCKET, Named, SYSTEM, install, upload};
use crate::cluster::Node;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::product;
use crate::report::step;

const WAIT: Duration = Duration::from_secs(120);
const DATA_PORT: u16 = 7470;
const CONTROL_PORT: u16 = 7471;

/// A dataset, and its worker on a node.
struct Target<'a> {
    lab: &'a Lab,
    node: &'a Node,
    uid: String,
    snapshot: String,
    worker: String,
}

impl<'a> Target<'a> {
    fn of(named: &Named<'a>, object: &Value, node: &'a Node) -> Result<Self> {
        let text = |value: &Value, what: &str| value.as_str().map(str::to_owned).with_context(|| format!("no {what}"));
        let uid = text(&object["metadata"]["uid"], "uid")?;
        let pods = named.lab.cluster.pods(SYSTEM, &format!("larder.dev/dataset-uid={uid}"))?;
        let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node.name()).context("no worker there")?;
        let snapshot = text(&object["status"]["snapshot"]["id"], "snapshot")?;
        Ok(Self { lab: named.lab, node, snapshot, uid, worker: text(&pod["status"]["podIP"], "address")? })
    }

    fn catalog(&self) -> String {
        format!("/v1/{}/catalogs/{}", self.uid, self.snapshot)
    }

    /// Key and certificate of this worker, on the disk of its node.
    fn identity(&self) -> PathBuf {
        self.node.nvme().join("larder").join(&self.uid).join("identity.json")
    }

    /// What comes of asking for everything, with the key and certificate in that file, or without any.
    fn ask(&self, identity: Option<PathBuf>) -> Result<Answers> {
        let mut stranger = Command::new(product::stranger());
        stranger.args([&self.worker, &self.uid, &self.snapshot]);
        stranger.arg("--folder").arg(self.lab.cluster.run().log_folder());
        if let Some(identity) = identity {
            stranger.arg("--identity").arg(identity);
        }
        let said: Value = serde_json::from_str(&stranger.run()?).context("what the stranger said")?;
        let calls = said["control"].as_array().context("it made no calls")?;
        let calls = calls.iter().map(|call| call.as_str().unwrap_or_default().to_owned()).collect();
        Ok(Answers { data: said["data"].as_str().unwrap_or_default().to_owned(), calls })
    }
}

#[derive(Debug)]
struct Answers {
    data: String,
    calls: Vec<String>,
}

/// A pod without a certificate, and one with that of another dataset's worker, get no byte and no call.
pub(super) fn nobody_without_the_right_certificate_gets_a_byte_or_a_call(lab: &Lab) -> Result<()> {
    install(lab)?;
    let mine = Named { lab, namespace: "mine", name: "mine" };
    let theirs = Named { lab, namespace: "theirs", name: "theirs" };
    let manifest = upload(lab, BUCKET, "mine", 91)?;
    upload(lab, BUCKET, "theirs", 92)?;
    mine.create()?;
    theirs.create()?;
    let node = lab.cluster.gpu_nodes().next().context("no GPU node")?;
    let target = Target::of(&mine, &mine.wait("Preloaded", WAIT)?, node)?;
    let other = Target::of(&theirs, &theirs.wait("Preloaded", WAIT)?, node)?;

    step("a pod without a certificate gets no byte and no call", || {
        theirs.start_holder(node)?;
        for port in [DATA_PORT, CONTROL_PORT] {
            let url = format!("http://{}:{port}{}", target.worker, target.catalog());
            let got = lab.cluster.exec("theirs", "holder", None, &["wget", "-q", "-T", "5", "-O", "-", &url]);
            ensure!(got.is_err(), "{url} answered a pod without a certificate");
        }
        let answers = target.ask(None)?;
        ensure!(answers.data != "given" && answers.calls.iter().all(|call| call != "answered"), "{answers:?}");
        // One that speaks TLS and shows nothing.
        let got = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &format!("{}:{DATA_PORT}", target.worker)])
            .env("OPENSSL_CONF", "/dev/null")
            .run_with_input(format!("GET {} HTTP/1.0\r\n\r\n", target.catalog()).as_bytes());
        ensure!(!got.as_ref().is_ok_and(|answer| answer.contains("HTTP/1")), "a client without a certificate got {got:?}");
        Ok(())
    })?;

    step("one with another dataset's gets no byte and no call", || {
        let answers = target.ask(Some(other.identity()))?;
        ensure!(answers.data.contains("403 larder://worker/") && answers.data.contains(&other.uid), "{answers:?}");
        let refused = answers.calls.iter().all(|call| call.starts_with("PermissionDenied") && call.contains(&other.uid));
        ensure!(answers.calls.len() == 3 && refused, "{answers:?}");
        Ok(())
    })?;

    step("one with the dataset's own gets its bytes, and no call", || {
        let answers = target.ask(Some(target.identity()))?;
        ensure!(answers.data == "given", "{answers:?}");
        ensure!(answers.calls.iter().all(|call| call.starts_with("PermissionDenied")), "{answers:?}");
        Ok(())
    })?;

    mine.read_everywhere(&manifest, WAIT)?;
    lab.cluster.delete_and_wait("pods", Some("theirs"), "holder", WAIT)?;
    mine.remove(WAIT)?;
    theirs.remove(WAIT)
}
