//! Test images, built without any tool: Debian's static busybox, or Debian's Python with numpy.

mod archive;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;
use archive::Layer;

/// The image of every pod's sandbox.
pub const PAUSE: &str = "localhost/pause:3";

/// The image of test pods: busybox with all its applets. Its `wget -T` ends with a segmentation fault (Debian's static
/// build); leave the option out.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// The image of the training job: python3 and numpy. Not on the nodes from the start.
pub const TRAINING: &str = "localhost/larder-training:1";

/// The image of other people's readers (docs/clients.md). Not on the nodes from the start.
pub const CLIENTS: &str = "localhost/larder-clients:1";

/// Builds the archives of the images that are on every node from the start.
///
/// # Errors
/// A file cannot be written.
pub fn test_images(run: &RunDir, tools: &Tools) -> Result<Vec<PathBuf>> {
    let folder = folder(run)?;
    let applets = Command::new(tools.busybox()).arg("--list").run()?;
    [(PAUSE, "pause.tar", vec!["/bin/busybox", "sleep", "2147483647"]), (BUSYBOX, "busybox.tar", vec!["/bin/sh"])]
        .into_iter()
        .map(|(name, file, entrypoint)| {
            let mut layer = base(&folder.join("layer"))?;
            layer.folder("bin/", 0o755)?;
            layer.file("bin/busybox", 0o755, &tools.busybox())?;
            for applet in applets.lines().filter(|applet| *applet != "busybox") {
                layer.link(&format!("bin/{applet}"), Path::new("busybox"))?;
            }
            layer.finish(&folder.join(file), name, &entrypoint)
        })
        .collect()
}

/// What nobody reads in a container.
const LEFT_OUT: [&str; 4] = ["usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/include"];

/// What update-alternatives makes on an installed system: links and where they lead.
pub fn alternatives() -> impl Iterator<Item = (String, PathBuf)> {
    ["blas", "lapack"].into_iter().map(|library| {
        let file = format!("lib{library}.so.3");
        (format!("usr/lib/x86_64-linux-gnu/{file}"), Path::new(library).join(file))
    })
}

/// Builds the archive of the training image, unless this run has it.
///
/// # Errors
/// A file cannot be read or written.
pub fn training_image(run: &RunDir, tools: &Tools) -> Result<PathBuf> {
    let folder = folder(run)?;
    let archive = folder.join("training.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let mut layer = base(&folder.join("training-layer"))?;
    layer.tree(&tools.training_root(), &LEFT_OUT)?;
    for (name, target) in alternatives() {
        layer.link(&name, &target)?;
    }
    layer.finish(&archive, TRAINING, &["/usr/bin/python3"])
}

/// Builds the archive of an image of a folder.
///
/// # Errors
/// A file cannot be read or written.
pub fn folder_image(run: &RunDir, root: &Path, name: &str) -> Result<PathBuf> {
    let folder = folder(run)?;
    let mut layer = base(&folder.join("folder-layer"))?;
    layer.tree(root, &LEFT_OUT)?;
    layer.finish(&folder.join("folder.tar"), name, &[])
}

fn folder(run: &RunDir) -> Result<PathBuf> {
    let folder = run.path("images");
    fs::create_dir_all(&folder).context("make the images' folder")?;
    Ok(folder)
}

/// What all images have.
fn base(unfinished: &Path) -> Result<Layer> {
    let mut layer = Layer::create(unfinished)?;
    for (name, mode) in [("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
        layer.folder(name, mode)?;
    }
    layer.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    layer.text("etc/group", "root:x:0:\n")?;
    Ok(layer)
}
