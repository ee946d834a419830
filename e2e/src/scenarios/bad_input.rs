//! What users get wrong: a condition that names the object and the remedy, a pod that says why it waits, and healing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, SPARE_TIER, install, upload};
use crate::dataset::Manifest;
use crate::lab::Lab;
use crate::process::Run as _;
use crate::report::say;
use crate::s3::SECRET_KEY;

const WAIT: Duration = Duration::from_secs(90);
/// From the cause being gone to the pod having run; the kubelet's back-off is most of it.
const HEAL: Duration = Duration::from_secs(130);

struct Case {
    name: &'static str,
    /// What is wrong in the YAML: this text is replaced with that.
    wrong: (&'static str, &'static str),
    condition: &'static str,
    reason: &'static str,
    /// The message names this.
    names: &'static str,
}

const CASES: [Case; 8] = [
    Case {
        name: "wrong-key",
        wrong: (SECRET_KEY, "not-the-secret-key"),
        condition: "SnapshotTaken",
        reason: "AccessDenied",
        names: "datasets",
    },
    Case {
        name: "no-secret",
        wrong: ("metadata: { name: s3,", "metadata: { name: s3-of-another-name,"),
        condition: "WorkersReady",
        reason: "SecretNotFound",
        names: "s3",
    },
    Case {
        name: "no-key",
        wrong: ("secretAccessKey:", "secretKey:"),
        condition: "WorkersReady",
        reason: "SecretKeyMissing",
        names: "secretAccessKey",
    },
    Case {
        name: "no-ca",
        wrong: ("metadata: { name: corp-ca,", "metadata: { name: corp-ca-of-another-name,"),
        condition: "WorkersReady",
        reason: "CaNotFound",
        names: "corp-ca",
    },
    Case {
        name: "no-tier",
        wrong: ("name: nvme, quota", "name: flash, quota"),
        condition: "WorkersReady",
        reason: "TierUnknown",
        names: "nvme",
    },
    Case {
        name: "no-node",
        wrong: ("preload: { policy: OnCreate }", "workers: { nodeSelector: { nowhere: here } }"),
        condition: "WorkersReady",
        reason: "NoNodesMatch",
        names: "nowhere",
    },
    Case {
        name: "more-than-limits",
        wrong: ("preload: { policy: OnCreate }", "workers: { resources: { requests: { cpu: 2 }, limits: { cpu: 1 } } }"),
        condition: "WorkersReady",
        reason: "WorkersRefused",
        names: "must be less than or equal to cpu limit",
    },
    Case {
        name: "no-operator",
        wrong: ("preload: { policy: OnCreate }", "workers: { tolerations: [{ key: a, operator: Foo }] }"),
        condition: "WorkersReady",
        reason: "WorkersRefused",
        names: "tolerations[0].operator",
    },
];

/// Wrong at first, put right while a pod waits. All cases at once: most of the time goes by in the kubelet's back-off.
pub(super) fn bad_credentials_are_named_and_heal(lab: &Lab) -> Result<()> {
    install(lab)?;
    let node = &lab.cluster.nodes()[0];
    let mut cases = Vec::new();
    for (n, case) in CASES.iter().enumerate() {
        let named = Named { lab, namespace: case.name, name: case.name };
        let manifest = upload(lab, BUCKET, case.name, 100 + n as u64)?;
        let right = named.yaml()?;
        let wrong = right.replace(case.wrong.0, case.wrong.1);
        ensure!(wrong != right, "{}: nothing was made wrong", case.name);
        lab.cluster.create_namespace(case.name)?;
        lab.cluster.apply(&wrong)?;
        cases.push((case, named, manifest, right));
    }
    for (case, named, ..) in &cases {
        named.wait_reason(case.condition, case.reason, case.names, WAIT)?;
        named.start_reader(node)?;
    }
    for (_, named, ..) in &cases {
        say(format!("  the pod's event: {}", named.wait_mount_event(node, WAIT)?));
    }
    let started = Instant::now();
    cases.iter().try_for_each(|(.., right)| lab.cluster.apply(right).map(drop))?;
    for (_, named, manifest, _) in &cases {
        named.check_reader(node, manifest, HEAL.saturating_sub(started.elapsed()))?;
        say(format!(
            "  {}: the pod had run at most {:.0} s after the cause was gone",
            named.name,
            started.elapsed().as_secs_f64()
        ));
    }
    cases.iter().try_for_each(|(_, named, ..)| named.remove(WAIT))
}

/// The namespace may have no claims. Workers go on: the snapshot is taken meanwhile.
pub(super) fn a_claim_that_a_quota_forbids_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "no-claims", name: "no-claims" };
    let manifest = upload(lab, BUCKET, named.name, 901)?;
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&format!(
        "{{apiVersion: v1, kind: ResourceQuota, metadata: {{name: none, namespace: {}}}, spec: {{hard: {{persistentvolumeclaims: \"0\"}}}}}}",
        named.namespace
    ))?;
    lab.cluster.apply(&named.yaml()?)?;
    named.wait_reason("Ready", "ClaimRefused", "exceeded quota", WAIT)?;
    named.wait("Preloaded", WAIT)?;
    lab.cluster.delete("resourcequotas", Some(named.namespace), "none")?;
    named.wait("Ready", WAIT)?;
    named.read_everywhere(&manifest, WAIT)?;
    named.remove(WAIT)
}

/// The origin's certificate is of an authority that the dataset does not name.
pub(super) fn an_untrusted_origin_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "untrusted", name: "untrusted" };
    let manifest = upload(lab, BUCKET, "untrusted", 401)?;
    let old = named.yaml()?;
    lab.s3.change_authority()?;
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&old)?;
    named.wait_reason("SnapshotTaken", "TlsUntrusted", "s3.lab.internal", WAIT)?;
    heals(&named, &manifest, || lab.cluster.apply(&named.yaml()?).map(drop))
}

/// The origin's certificate was not renewed in time; no dataset is to be changed when it is.
pub(super) fn an_expired_certificate_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "expired", name: "expired" };
    let manifest = upload(lab, BUCKET, "expired", 601)?;
    lab.s3.let_certificate_expire(true)?;
    let outcome = named.create().and_then(|()| {
        named.wait_reason("SnapshotTaken", "TlsExpired", "s3.lab.internal", WAIT)?;
        heals(&named, &manifest, || lab.s3.let_certificate_expire(false))
    });
    // Other tests use the origin too.
    if outcome.is_err() { lab.s3.let_certificate_expire(false).and(outcome) } else { outcome }
}

/// The cluster's DNS is away: what is cached is read all the same, what is not says that a name has no address.
pub(super) fn dns_that_is_down_is_named_and_cached_data_is_read(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cached = Named { lab, namespace: "named", name: "named" };
    let manifest = upload(lab, BUCKET, "named", 701)?;
    cached.create()?;
    cached.wait("Preloaded", WAIT)?;
    let later = Named { lab, namespace: "nameless", name: "nameless" };
    let later_manifest = upload(lab, BUCKET, "nameless", 702)?;
    lab.cluster.stop_dns()?;
    let outcome = cached.read_everywhere(&manifest, WAIT).and_then(|_| {
        later.create()?;
        later.wait_reason("SnapshotTaken", "DnsFailed", "s3.lab.internal", WAIT)?;
        later.wait_reason("SnapshotTaken", "DnsFailed", "the cluster's DNS", WAIT)?;
        heals(&later, &later_manifest, || lab.cluster.start_dns())
    });
    if outcome.is_err() {
        // Other tests need names too.
        lab.cluster.start_dns()?;
    }
    outcome.and_then(|()| cached.remove(WAIT))
}

/// The folder of the tier is on no node: a disk that is not mounted. No folder is made for it on the root disk.
pub(super) fn a_missing_disk_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "no-disk", name: "no-disk" };
    let manifest = upload(lab, BUCKET, "no-disk", 501)?;
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&named.yaml()?.replace("name: nvme, quota", "name: spare, quota"))?;
    named.wait_reason("WorkersReady", "WorkersFailing", SPARE_TIER, WAIT)?;
    for node in lab.cluster.nodes() {
        ensure!(
            !node.command("test")?.args(["-e", SPARE_TIER]).status()?.success(),
            "{SPARE_TIER} was made on {}",
            node.name()
        );
    }
    heals(&named, &manifest, || {
        for node in lab.cluster.gpu_nodes() {
            node.command("mkdir")?.arg(SPARE_TIER).run()?;
        }
        Ok(())
    })
}

/// A prefix without objects and a bucket that is not there, until they are.
pub(super) fn missing_data_is_named_and_heals(lab: &Lab) -> Result<()> {
    install(lab)?;
    lab.s3.bucket(BUCKET)?;
    let named = Named { lab, namespace: "no-data", name: "no-data" };
    named.create()?;
    named.wait_reason("SnapshotTaken", "EmptySource", "no-data", WAIT)?;
    heals_with(&named, || upload(lab, BUCKET, "no-data", 201))?;

    let named = Named { lab, namespace: "no-bucket", name: "no-bucket" };
    let yaml = named.yaml()?.replace(&format!("s3://{BUCKET}/"), "s3://later/");
    lab.cluster.create_namespace(named.namespace)?;
    lab.cluster.apply(&yaml)?;
    named.wait_reason("SnapshotTaken", "BucketNotFound", "later", WAIT)?;
    heals_with(&named, || upload(lab, "later", "no-bucket", 202))
}

/// The origin is away: what is cached is read all the same, what is not waits for it.
pub(super) fn an_origin_that_is_down_is_named_and_cached_data_is_read(lab: &Lab) -> Result<()> {
    install(lab)?;
    let cached = Named { lab, namespace: "cached", name: "cached" };
    let manifest = upload(lab, BUCKET, "cached", 301)?;
    cached.create()?;
    cached.wait("Preloaded", WAIT)?;
    let later = Named { lab, namespace: "later", name: "later" };
    let later_manifest = upload(lab, BUCKET, "later", 302)?;
    lab.s3.stop()?;
    cached.read_everywhere(&manifest, WAIT)?;
    later.create()?;
    later.wait_reason("SnapshotTaken", "OriginUnreachable", "s3.lab.internal", WAIT)?;
    heals(&later, &later_manifest, || lab.s3.resume())?;
    cached.remove(WAIT)
}

/// Refused by the API server, with the field's name.
pub(super) fn the_api_server_refuses_what_the_schema_forbids(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: "refused", name: "refused" };
    let right = named.yaml()?;
    lab.cluster.create_namespace(named.namespace)?;
    for (from, to, field) in [
        ("uri: s3://", "uri: ftp://", "uri"),
        ("quota: 5Gi", "quota: 0", "quota"),
        ("policy: OnCreate", "policy: Sometimes", "policy"),
        ("credentials: { secretRef: { name: s3 } }", "credentials: {}", "credentials"),
        ("secretRef: { name: s3 }", "secretRef: { name: my secret }", "secretRef"),
        ("configMapRef: { name: corp-ca }", "configMapRef: { name: corp/ca }", "configMapRef"),
    ] {
        let wrong = right.replace(from, to);
        ensure!(wrong != right, "{field}: nothing was made wrong");
        let error = lab.cluster.apply(&wrong).err().with_context(|| format!("{field}: `{to}` was accepted"))?;
        ensure!(format!("{error:#}").contains(field), "{field}: the message does not name it: {error:#}");
    }
    lab.cluster.delete("namespaces", None, named.namespace)
}

/// A pod waits, its Event says why; then the cause goes away, and the pod runs.
fn heals(named: &Named<'_>, manifest: &Manifest, put_right: impl FnOnce() -> Result<()>) -> Result<()> {
    heals_with(named, || put_right().map(|()| manifest.clone()))
}

/// The same where the data is what was missing.
fn heals_with(named: &Named<'_>, put_right: impl FnOnce() -> Result<Manifest>) -> Result<()> {
    let node = &named.lab.cluster.nodes()[0];
    named.start_reader(node)?;
    let why = named.wait_mount_event(node, WAIT)?;
    say(format!("  the pod's event: {why}"));
    let manifest = put_right()?;
    let took = named.check_reader(node, &manifest, HEAL)?;
    say(format!("  {}: the pod had run {:.0} s after the cause was gone", named.name, took.as_secs_f64()));
    named.remove(WAIT)
}
