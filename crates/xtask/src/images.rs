//! Makes the `larder` image as an OCI archive (an `oci-layout` tar that containerd, skopeo, podman and docker load).
//!
//! Two layers: the runtime (glibc, libgcc, CA roots, from the packages of the distribution the binary was built on) and the
//! binary. No shell. The Containerfile in the root makes the same image with a container engine.
//!
//! Same inputs, same bytes: entries are sorted, owned by 0:0 and dated 0, so a layer's digest changes only with its content.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub struct Args {
    /// Folder with the unpacked runtime packages (libc6, libgcc-s1, ca-certificates)
    #[arg(long)]
    runtime: PathBuf,
    /// The `larder` binary
    #[arg(long, default_value = "target/release/larder")]
    binary: PathBuf,
    /// Name in the archive
    #[arg(long, default_value = "localhost/larder:dev")]
    name: String,
    /// The release that the daemons of the image say they are, if not that of the binary
    #[arg(long)]
    version: Option<String>,
    /// The archive to write
    #[arg(long, default_value = "target/images/larder.tar")]
    output: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let runtime = runtime_layer(&args.runtime)?;
    let binary = layer(&[("usr/bin/larder".into(), args.binary.clone(), 0o755)], &[])?;
    let archive = archive(&args.name, args.version.as_deref(), &[runtime, binary])?;
    let folder = args.output.parent().context("output needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let tmp = args.output.with_extension("tmp");
    fs::write(&tmp, &archive).with_context(|| format!("write {}", tmp.display()))?;
    fs::rename(&tmp, &args.output).with_context(|| format!("write {}", args.output.display()))?;
    println!("{}: {} ({} MiB)", args.output.display(), args.name, archive.len() >> 20);
    Ok(())
}

/// Shared libraries the binary asks for, the loader, and CA roots. Nothing else of the packages is taken.
fn runtime_layer(root: &Path) -> Result<Vec<u8>> {
    const LIBRARIES: [&str; 6] =
        ["ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0"];
    let mut files = Vec::new();
    for name in LIBRARIES {
        let found = walkdir::WalkDir::new(root)
            .into_iter()
            .filter_map(Result::ok)
            .find(|e| e.file_name() == name && !e.file_type().is_dir())
            .with_context(|| format!("{name} is not in {}: unpack libc6 and libgcc-s1 there", root.display()))?;
        files.push((format!("lib/x86_64-linux-gnu/{name}"), fs::canonicalize(found.path())?, 0o755));
    }
    // The package has the single certificates; the bundle is what its installation script would have made.
    let mut bundle = Vec::new();
    let mut certificates: Vec<_> = walkdir::WalkDir::new(root.join("usr/share/ca-certificates"))
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.path().extension().is_some_and(|x| x == "crt"))
        .map(walkdir::DirEntry::into_path)
        .collect();
    certificates.sort();
    if certificates.is_empty() {
        bail!("no certificates in {}: unpack ca-certificates there", root.display());
    }
    for c in certificates {
        bundle.extend(fs::read(&c).with_context(|| format!("read {}", c.display()))?);
        bundle.push(b'\n');
    }
    let texts = [
        ("etc/ssl/certs/ca-certificates.crt".to_owned(), bundle),
        (
            "etc/passwd".to_owned(),
            b"root:x:0:0::/:/\nmounter:x:65531:65531::/:/\nworker:x:65532:65532::/:/\nkeeper:x:65533:65533::/:/\n".to_vec(),
        ),
        ("etc/nsswitch.conf".to_owned(), b"hosts: files dns\n".to_vec()),
    ];
    layer(&files, &texts)
}

/// A tar of files (path in the image, path here, mode) and texts; the loader's traditional path is a link.
fn layer(files: &[(String, PathBuf, u32)], texts: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut content: BTreeMap<String, (Vec<u8>, u32)> = BTreeMap::new();
    for (path, from, mode) in files {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        content.insert(path.clone(), (bytes, *mode));
    }
    for (path, bytes) in texts {
        content.insert(path.clone(), (bytes.clone(), 0o644));
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut folders: Vec<String> = Vec::new();
    for path in content.keys() {
        let mut at = Path::new(path);
        while let Some(parent) = at.parent().filter(|p| !p.as_os_str().is_empty()) {
            folders.push(format!("{}/", parent.display()));
            at = parent;
        }
    }
    folders.sort();
    folders.dedup();
    for folder in &folders {
        append(&mut tar, folder, tar::EntryType::Directory, 0o755, &[], None)?;
    }
    for (path, (bytes, mode)) in &content {
        append(&mut tar, path, tar::EntryType::Regular, *mode, bytes, None)?;
    }
    if content.contains_key("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2") {
        append(&mut tar, "lib64/", tar::EntryType::Directory, 0o755, &[], None)?;
        let target = "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        append(&mut tar, "lib64/ld-linux-x86-64.so.2", tar::EntryType::Symlink, 0o777, &[], Some(target))?;
    }
    Ok(tar.into_inner()?)
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    bytes: &[u8],
    link: Option<&str>,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    match link {
        Some(target) => tar.append_link(&mut header, path, target)?,
        None => tar.append_data(&mut header, path, bytes)?,
    }
    Ok(())
}

fn archive(name: &str, version: Option<&str>, layers: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |media: &str, bytes: Vec<u8>| -> Value {
        let digest = format!("{:x}", HexSlice(&Sha256::digest(&bytes)));
        let descriptor = json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        blobs.push((digest, bytes));
        descriptor
    };
    let layers: Vec<Value> = layers.iter().map(|l| add("application/vnd.oci.image.layer.v1.tar", l.clone())).collect();
    let mut env = vec!["PATH=/usr/bin".to_owned(), "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".to_owned()];
    env.extend(version.map(|version| format!("LARDER_VERSION={version}")));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/larder"],
            "Env": env,
            "User": "65532:65532",
            "WorkingDir": "/",
        },
        // Uncompressed layers: the digest of the layer is the digest of its tar.
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| l["digest"].clone()).collect::<Vec<_>>() },
    });
    let config = add("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
    });
    let mut manifest = add("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    // containerd reads the full name from its own annotation, others the tag from OCI's.
    manifest["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest],
    });

    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", tar::EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#, None)?;
    append(&mut tar, "index.json", tar::EntryType::Regular, 0o644, &serde_json::to_vec(&index)?, None)?;
    append(&mut tar, "blobs/", tar::EntryType::Directory, 0o755, &[], None)?;
    append(&mut tar, "blobs/sha256/", tar::EntryType::Directory, 0o755, &[], None)?;
    for (digest, bytes) in &blobs {
        append(&mut tar, &format!("blobs/sha256/{digest}"), tar::EntryType::Regular, 0o644, bytes, None)?;
    }
    Ok(tar.into_inner()?)
}

struct HexSlice<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
