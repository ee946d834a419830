//! `manifests/samples/`, applied as they are but for what every user has to fill in.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::larder::Named;
use super::training::Training;
use crate::dataset::Manifest;
use crate::s3::{ACCESS_KEY, REGION, SECRET_KEY};
use crate::tools::repository;

/// What stands in a sample, and what stands there in this cluster.
pub(super) type Replacement<'a> = (&'a str, String);

/// Namespace and dataset of the samples.
pub(super) const NAMESPACE: &str = "vision";
pub(super) const DATASET: &str = "imagenet";

/// Secret, authority and CacheDataset.
pub(super) fn apply_dataset(named: &Named<'_>) -> Result<()> {
    let cluster = &named.lab.cluster;
    cluster.create_namespace(NAMESPACE)?;
    let authority = format!("--from-literal=ca.crt={}", named.lab.s3.authority()?);
    cluster.kubectl(&["create", "configmap", "corp-ca", "--namespace", NAMESPACE, &authority])?;
    let keys =
        [("AKIAIOSFODNN7EXAMPLE", ACCESS_KEY.to_owned()), ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", SECRET_KEY.to_owned())];
    apply(named, "s3-secret.yaml", &keys)?;
    let source = [
        ("# endpoint: https://s3.internal:9000", format!("endpoint: {}", named.lab.s3.endpoint())),
        ("# pathStyle: true", "pathStyle: true".to_owned()),
        ("# ca: {", "ca: {".to_owned()),
        ("region: eu-central-1", format!("region: {REGION}")),
        ("quota: 2Ti", "quota: 5Gi".to_owned()),
    ];
    apply(named, "cachedataset.yaml", &source)
}

/// Applies one sample.
pub(super) fn apply(named: &Named<'_>, file: &str, replacements: &[Replacement<'_>]) -> Result<()> {
    let path = repository().join("manifests/samples").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = replaced(&text, replacements).with_context(|| format!("fill in {file}"))?;
    named.lab.cluster.apply(&text).map(drop)
}

/// Each must be there, once: a sample that changes must not silently be applied with the values of an example.
fn replaced(text: &str, replacements: &[Replacement<'_>]) -> Result<String> {
    replacements.iter().try_fold(text.to_owned(), |text, (old, new)| {
        let found = text.matches(old).count();
        ensure!(found == 1, "`{old}` is there {found} times");
        Ok(text.replace(old, new))
    })
}

/// Takes the job, the dataset and their namespace away.
pub(super) fn remove(named: &Named<'_>, timeout: Duration) -> Result<()> {
    Training::remove(named, timeout)?;
    named.remove_but_namespace(timeout)?;
    // To the end: another test may be about to make it again.
    named.lab.cluster.delete_and_wait("namespaces", None, NAMESPACE, timeout)
}

/// Adds a ConfigMap with one file, from the run's folder: the text may be longer than a command line.
pub(super) fn create_config_map(named: &Named<'_>, name: &str, key: &str, text: &str) -> Result<()> {
    let cluster = &named.lab.cluster;
    let file = cluster.run().path(key);
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let source = format!("--from-file={key}={}", file.display());
    cluster.kubectl(&["create", "configmap", name, "--namespace", NAMESPACE, &source]).map(drop)
}

/// The script inside `training-job.yaml`.
pub(super) fn training_script() -> Result<String> {
    let sample = std::fs::read_to_string(repository().join("manifests/samples/training-job.yaml")).context("read the job")?;
    let (_, script) = sample.split_once("  train.py: |\n").context("find train.py in the job")?;
    Ok(script.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect())
}

/// What `sha256sum` would print about the files.
pub(super) fn sums(manifest: &Manifest) -> String {
    manifest.iter().map(|(path, entry)| format!("{}  {path}\n", entry.sha256)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Run as _;
    use std::process::Command;

    #[test]
    fn a_replacement_that_does_not_match_is_an_error() {
        assert_eq!(replaced("a: b", &[("b", "c".into())]).unwrap(), "a: c");
        assert!(replaced("a: b", &[("x", "c".into())]).is_err());
        assert!(replaced("a: b b", &[("b", "c".into())]).is_err());
    }

    #[test]
    fn the_training_script_is_python() {
        let compile = ["-c", "import ast, sys; ast.parse(sys.stdin.read())"];
        Command::new("python3").args(compile).run_with_input(training_script().unwrap().as_bytes()).unwrap();
    }
}
