//! An image of one layer, in an archive as `docker save` writes it. The layer goes through a file, not through memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A layer that is being written.
pub(super) struct Layer {
    path: PathBuf,
    tar: Builder<Hashing>,
}

/// A file that knows the digest of what was written.
struct Hashing {
    file: io::BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Layer {
    /// Starts one; the file is there till the layer is finished.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
        let hashing = Hashing { file: io::BufWriter::new(file), hash: Sha256::new() };
        Ok(Self { path: path.to_owned(), tar: Builder::new(hashing) })
    }

    /// Adds a folder; the name ends with a slash.
    pub(super) fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        add(&mut self.tar, &mut header(EntryType::Directory, mode, 0), name, io::empty())
    }

    /// Adds a file with a text.
    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<()> {
        add(&mut self.tar, &mut header(EntryType::Regular, 0o644, text.len() as u64), name, text.as_bytes())
    }

    /// Adds a file of this machine.
    pub(super) fn file(&mut self, name: &str, mode: u32, source: &Path) -> Result<()> {
        let file = File::open(source).with_context(|| format!("open {}", source.display()))?;
        let size = file.metadata().with_context(|| format!("look at {}", source.display()))?.len();
        add(&mut self.tar, &mut header(EntryType::Regular, mode, size), name, file)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &Path) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, name, target).with_context(|| format!("add the link {name} to an archive"))
    }

    /// Adds everything below a folder of this machine, in the order of names, but for some folders.
    pub(super) fn tree(&mut self, root: &Path, left_out: &[&str]) -> Result<()> {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let list = || format!("list {}", root.join(&folder).display());
            let entries = fs::read_dir(root.join(&folder)).with_context(list)?;
            let mut names: Vec<PathBuf> =
                entries.map(|entry| Ok(folder.join(entry?.file_name()))).collect::<io::Result<_>>().with_context(list)?;
            names.sort();
            for name in names.iter().filter(|name| !left_out.iter().any(|folder| name.as_path() == Path::new(folder))) {
                let (text, source) = (name.to_str().context("a package has a file whose name is not UTF-8")?, root.join(name));
                let metadata = fs::symlink_metadata(&source).with_context(|| format!("look at {}", source.display()))?;
                let mode = metadata.permissions().mode() & 0o7777;
                if metadata.is_dir() {
                    self.folder(&format!("{text}/"), mode)?;
                    folders.push(name.clone());
                } else if metadata.is_symlink() {
                    self.link(text, &fs::read_link(&source).with_context(|| format!("read link {}", source.display()))?)?;
                } else {
                    self.file(text, mode, &source)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the archive of an image that has this layer only.
    pub(super) fn finish(self, archive: &Path, name: &str, entrypoint: &[&str]) -> Result<PathBuf> {
        let Hashing { file, hash } = self.tar.into_inner().context("finish a layer")?;
        drop(file.into_inner().map_err(io::IntoInnerError::into_error).context("write a layer")?);
        let layer = hex(hash);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
            "history": [{ "created_by": "larder-e2e" }],
        })
        .to_string();
        let config_name = format!("{}.json", hex(Sha256::new_with_prefix(&config)));
        let layer_name = format!("{layer}/layer.tar");
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]).to_string();
        let mut unfinished = archive.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let file = File::create(&unfinished).with_context(|| format!("make {}", archive.display()))?;
        let mut tar = Builder::new(io::BufWriter::new(file));
        let layer = File::open(&self.path).context("open a layer")?;
        let size = layer.metadata().context("look at a layer")?.len();
        add(&mut tar, &mut header(EntryType::Regular, 0o644, config.len() as u64), &config_name, config.as_bytes())?;
        add(&mut tar, &mut header(EntryType::Regular, 0o644, size), &layer_name, layer)?;
        add(&mut tar, &mut header(EntryType::Regular, 0o644, manifest.len() as u64), "manifest.json", manifest.as_bytes())?;
        tar.into_inner().and_then(|mut file| file.flush()).context("finish an image archive")?;
        fs::remove_file(&self.path).context("remove a layer")?;
        fs::rename(&unfinished, archive).context("put an image archive in place")?;
        Ok(archive.to_owned())
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn add<W: Write>(tar: &mut Builder<W>, header: &mut Header, name: &str, content: impl io::Read) -> Result<()> {
    tar.append_data(header, name, content).with_context(|| format!("add {name} to an archive"))
}
