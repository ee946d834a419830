//! The training script of the samples by itself, on folders of this machine: does it tell right from wrong?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::samples;
use crate::dataset::{Dataset, Manifest};
use crate::lab::Lab;
use crate::process::Run as _;

/// Enough pictures to learn from, and one shard.
fn files() -> Dataset {
    let mut files = Dataset::small(5);
    files.shards.truncate(1);
    files
}

pub(super) fn the_training_script_tells_right_from_wrong(lab: &Lab) -> Result<()> {
    let folder = lab.cluster.run().path("script");
    let script = Script::new(lab, &folder)?;
    let manifest = files().write(&script.data)?;
    let ending = script.run(&manifest)?;
    ensure!(ending["checked"] == manifest.len() as u64, "it did not compare all files: {ending}");

    let some = "samples/class-01/000001.pgm";
    let mut list = manifest.clone();
    list.insert("lost.pgm".to_owned(), manifest[some].clone());
    script.refuses(&list, "1 of the files are missing: lost.pgm")?;
    list = manifest.clone();
    list.remove(some);
    script.refuses(&list, &format!("1 of the files are not in the list: {some}"))?;
    list = manifest.clone();
    list.entry(some.to_owned()).and_modify(|entry| entry.sha256 = "0".repeat(64));
    script.refuses(&list, &format!("1 of the files differ from the list: {some}"))?;

    let strangers = Script::new(lab, &folder.join("strangers"))?;
    let manifest = mixed_up(&manifest, &script.data, &strangers.data)?;
    strangers.refuses(&manifest, "nothing learned")?;
    fs::remove_dir_all(&folder).context("remove the script's folder")
}

/// The same pictures in other classes' folders: what they show says nothing about their labels then.
fn mixed_up(manifest: &Manifest, from: &Path, to: &Path) -> Result<Manifest> {
    let pictures = manifest.iter().filter(|(path, _)| path.starts_with("samples/"));
    pictures
        .map(|(path, entry)| {
            let name = path.rsplit('/').next().unwrap_or_default();
            let number: u64 = name.trim_end_matches(".pgm").parse().context("number of a picture")?;
            let moved = format!("samples/class-{:02}/{name}", number / 20);
            let target = to.join(&moved);
            fs::create_dir_all(target.parent().context("folder of a file")?).context("make a folder")?;
            fs::copy(from.join(path), &target).with_context(|| format!("copy {path}"))?;
            Ok((moved, entry.clone()))
        })
        .collect()
}

struct Script {
    root: PathBuf,
    folder: PathBuf,
    data: PathBuf,
}

impl Script {
    fn new(lab: &Lab, folder: &Path) -> Result<Self> {
        let data = folder.join("data");
        fs::create_dir_all(&data).context("make the script's folder")?;
        fs::write(folder.join("train.py"), samples::training_script()?).context("write the script")?;
        Ok(Self { root: lab.cluster.tools().training_root(), folder: folder.to_owned(), data })
    }

    /// Its last line, if it ends well.
    fn run(&self, list: &Manifest) -> Result<Value> {
        let (ok, out, complaint) = self.command(list)?.run_any()?;
        ensure!(ok, "the script failed: {out}{complaint}");
        serde_json::from_str(out.lines().last().unwrap_or_default()).context("understand the script")
    }

    fn refuses(&self, list: &Manifest, why: &str) -> Result<()> {
        let (ok, out, complaint) = self.command(list)?.run_any()?;
        let error: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).context("understand the script")?;
        let said = error["error"].as_str().is_some_and(|error| error.contains(why));
        ensure!(!ok && said, "instead of `{why}` the script says: {out}{complaint}");
        Ok(())
    }

    fn command(&self, list: &Manifest) -> Result<Command> {
        let sums = self.folder.join("SHA256SUMS");
        fs::write(&sums, samples::sums(list)).context("write the list of sums")?;
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let libraries = ["", "blas", "lapack"].map(|folder| libraries.join(folder).display().to_string()).join(":");
        let mut command = Command::new(self.root.join("usr/bin/python3.11"));
        command
            .arg(self.folder.join("train.py"))
            .env("LD_LIBRARY_PATH", libraries)
            .env("PYTHONHOME", self.root.join("usr"))
            .env("PYTHONPATH", self.root.join("usr/lib/python3/dist-packages"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("DATA", &self.data)
            .env("SUMS", sums);
        Ok(command)
    }
}
