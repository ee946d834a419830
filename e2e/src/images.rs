//! Test images, built without any tool: one layer with Debian's static busybox in it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// The image of every pod's sandbox.
pub const PAUSE: &str = "localhost/pause:3";

/// The image of test pods: busybox with all its applets. Its `wget -T` ends with a segmentation fault (Debian's static
/// build); leave the option out.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// Builds the archives of both images; they are on every node from the start.
///
/// # Errors
/// A file cannot be written.
pub fn test_images(run: &RunDir, tools: &Tools) -> Result<Vec<PathBuf>> {
    let folder = run.path("images");
    fs::create_dir_all(&folder).context("make the images' folder")?;
    let applets = Command::new(tools.busybox()).arg("--list").run()?;
    let busybox = fs::read(tools.busybox()).context("read busybox")?;
    [(PAUSE, "pause.tar", vec!["/bin/busybox", "sleep", "2147483647"]), (BUSYBOX, "busybox.tar", vec!["/bin/sh"])]
        .into_iter()
        .map(|(name, file, entrypoint)| {
            let archive = folder.join(file);
            write_archive(&archive, name, &layer(&busybox, &applets)?, &entrypoint)?;
            Ok(archive)
        })
        .collect()
}

fn layer(busybox: &[u8], applets: &str) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (name, mode) in [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
        add(&mut tar, EntryType::Directory, &format!("{name}/"), mode, &[])?;
    }
    add(&mut tar, EntryType::Regular, "bin/busybox", 0o755, busybox)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").context("add a link to a layer")?;
    }
    add(&mut tar, EntryType::Regular, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    add(&mut tar, EntryType::Regular, "etc/group", 0o644, b"root:x:0:\n")?;
    tar.into_inner().context("finish a layer")
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn add<W: std::io::Write>(tar: &mut Builder<W>, kind: EntryType, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, content.len());
    tar.append_data(&mut header, name, content).with_context(|| format!("add {name} to an archive"))
}

/// An archive as `docker save` writes it.
fn write_archive(path: &Path, name: &str, layer: &[u8], entrypoint: &[&str]) -> Result<()> {
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))] },
        "history": [{ "created_by": "larder-e2e" }],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let layer_name = format!("{}/layer.tar", digest(layer));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]).to_string();
    let mut tar = Builder::new(File::create(path).with_context(|| format!("make {}", path.display()))?);
    add(&mut tar, EntryType::Regular, &config_name, 0o644, config.as_bytes())?;
    add(&mut tar, EntryType::Regular, &layer_name, 0o644, layer)?;
    add(&mut tar, EntryType::Regular, "manifest.json", 0o644, manifest.as_bytes())?;
    tar.into_inner().and_then(|mut file| file.flush()).context("finish an image archive")
}
