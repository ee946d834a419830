//! Single objects that the origin does not give, or not as they were listed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::{BUCKET, Named, explain, install, upload};
use crate::dataset::{Dataset, Manifest};
use crate::lab::Lab;
use crate::report::step;

const WAIT: Duration = Duration::from_secs(120);
const NAME: &str = "troubled";

const DENIED: &str = "samples/class-00/000000.pgm";
const GONE: &str = "samples/class-01/000001.pgm";
const CHANGED: &str = "samples/class-02/000002.pgm";

/// The files are named, all others are preloaded and read, and each comes as soon as the origin gives it.
pub(super) fn files_that_the_origin_does_not_give_are_named_and_heal(lab: &Lab) -> Result<()> {
    install(lab)?;
    let named = Named { lab, namespace: NAME, name: NAME };
    let manifest = upload(lab, BUCKET, NAME, 901)?;
    let outcome = troubled(lab, &named, &manifest);
    // Other tests use the origin too.
    lab.s3.refuse(&[]).and(outcome)?;
    lab.cluster.delete_and_wait("pods", Some(named.namespace), "holder", WAIT)?;
    named.remove(WAIT)
}

fn troubled(lab: &Lab, named: &Named<'_>, manifest: &Manifest) -> Result<()> {
    let [denied, gone, changed] = [DENIED, GONE, CHANGED].map(|path| format!("{BUCKET}/{NAME}/{path}"));
    let node = &lab.cluster.nodes()[0];
    step("three files are refused and named, all others preloaded", || {
        lab.s3.refuse(&[(&denied, 403), (&gone, 404), (&changed, 403)])?;
        named.create()?;
        named.wait("Ready", WAIT)?;
        failures(named, &[DENIED, GONE, CHANGED])?;
        named.start_holder(node)?;
        let others = manifest.keys().find(|path| path.starts_with("samples/") && ![DENIED, GONE, CHANGED].contains(&&***path));
        let other = format!("/data/{}", others.context("no other file")?);
        lab.cluster.exec(named.namespace, "holder", None, &["cat", &other])?;
        let error = lab.cluster.exec(named.namespace, "holder", None, &["cat", &format!("/data/{GONE}")]).err();
        let error = format!("{:#}", error.context("a file that is gone was read")?);
        ensure!(error.contains("Input/output error") || error.contains("I/O error"), "{error}");
        Ok(())
    })?;
    step("one is there again, one is throttled, one has changed", || {
        let folder = lab.s3.bucket(BUCKET)?.join(NAME);
        let size = manifest.get(CHANGED).context("no such file")?.size;
        Dataset { seed: 1, ..Dataset::small(1) }.write_file(&folder, CHANGED, size)?;
        lab.s3.refuse(&[(&denied, 503)])?;
        named.wait_reason("Preloaded", "Changed", CHANGED, WAIT)?;
        Dataset { seed: 901, ..Dataset::small(901) }.write_file(&folder, CHANGED, size)?;
        lab.s3.refuse(&[])
    })?;
    step("everything is preloaded, and each byte has left the origin once", || {
        let status = named.wait("Preloaded", WAIT)?["status"].clone();
        named.read_everywhere(manifest, WAIT)?;
        let (size, counted) = (manifest.values().map(|entry| entry.size).sum::<u64>(), status["originBytes"].as_u64());
        // Connections that broke with the server's restarts may have cost some twice.
        ensure!(counted.is_some_and(|bytes| (size..size + size / 10).contains(&bytes)), "{counted:?} of {size}: {status}");
        ensure!(status["preload"]["filesFailed"] == 0, "{status}");
        Ok(())
    })
}

/// Waits till the condition names all of them, and nothing else has failed.
fn failures(named: &Named<'_>, paths: &[&str]) -> Result<()> {
    named.lab.cluster.wait_until("a condition that names the files", WAIT, || {
        let object = named.object()?;
        let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
        let preloaded =
            conditions.iter().find(|condition| condition["type"] == "Preloaded").context("no such condition yet")?;
        let message = preloaded["message"].as_str().unwrap_or_default();
        ensure!(object["status"]["preload"]["filesFailed"] == paths.len(), "{}", explain(&object));
        ensure!(paths.iter().all(|path| message.contains(path)), "{message}");
        Ok(())
    })
}
