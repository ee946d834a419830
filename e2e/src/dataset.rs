//! Data to serve: deterministic files with the names and sizes that break things, and a manifest of what they hold.

mod content;
mod picture;

pub(crate) use content::mix;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// What every file must contain, by its path below the dataset's folder.
pub type Manifest = BTreeMap<String, Entry>;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// What to generate. Content depends only on seed and path; see `dataset/content.rs`.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Two datasets with the same seed and paths have the same content.
    pub seed: u64,
    /// Sizes of the files `shards/shard-NNNNN.rec`.
    pub shards: Vec<u64>,
    /// How many small files `samples/class-<class>/<number>.pgm`, of up to [`Dataset::small_bytes`] each.
    pub small: usize,
    /// The size of the largest small file; they vary from a quarter of it.
    pub small_bytes: u64,
    /// Also an empty file, a deep path and names that need escaping somewhere.
    pub odd_names: bool,
}

const MIB: u64 = 1 << 20;

/// Each of these has broken a client, a server or a shell somewhere.
const ODD_NAMES: [&str; 12] = [
    "odd/empty",
    "odd/with space/a b.bin",
    "odd/plus+sign.bin",
    "odd/100%25.bin",
    "odd/hash#tag.bin",
    "odd/question?mark=1&b=2.bin",
    "odd/it's \"quoted\".bin",
    "odd/żółć-日本語-🦀.bin",
    "odd/e\u{301}-decomposed.bin",
    "odd/.hidden",
    "odd/d/e/e/p/e/r/t/h/a/n/m/o/s/t/d/a/t/a/s/e/t/s/g/o/file.bin",
    "odd/semi;colon,comma=equals@at:colon.bin",
];

impl Dataset {
    /// For tests: about 60 MiB in about 300 files.
    pub fn small(seed: u64) -> Self {
        Self { seed, shards: vec![24 * MIB, 16 * MIB, 9 * MIB + 12_345], small: 285, small_bytes: 64 << 10, odd_names: true }
    }

    /// For the demo: more than 2 GiB in more than 5,000 files, one of 1,100 MiB.
    pub fn demo(seed: u64) -> Self {
        let mut shards = vec![1_100 * MIB];
        shards.extend([96 * MIB; 7]);
        Self { seed, shards, small: 5_200, small_bytes: 128 << 10, odd_names: true }
    }

    /// Paths and sizes of all files.
    pub fn files(&self) -> Vec<(String, u64)> {
        let shards = self.shards.iter().enumerate().map(|(i, size)| (format!("shards/shard-{i:05}.rec"), *size));
        let small = (0..self.small).map(|i| {
            let quarter = self.small_bytes / 4;
            let size = quarter + mix(self.seed ^ i as u64) % (self.small_bytes - quarter + 1);
            (format!("samples/class-{:02}/{i:06}.pgm", i as u64 % picture::CLASSES), size)
        });
        let odd = ODD_NAMES.iter().filter(|_| self.odd_names).enumerate().map(|(i, path)| {
            let size = if path.ends_with("empty") { 0 } else { 1 + 4_099 * i as u64 };
            ((*path).to_owned(), size)
        });
        shards.chain(small).chain(odd).collect()
    }

    /// Writes all files below `folder`, each with the attribute that the S3 server takes for its ETag.
    ///
    /// # Errors
    /// The disk is full, or has no extended attributes.
    pub fn write(&self, folder: &Path) -> Result<Manifest> {
        let files = self.files();
        // Hashing is what takes the time; two threads, because that is what the smallest machine has.
        let (large, rest): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, size)| *size > 512 * MIB);
        std::thread::scope(|scope| {
            let work = |files: Vec<(String, u64)>| {
                scope.spawn(move || -> Result<Manifest> {
                    files.into_iter().map(|(path, size)| Ok((path.clone(), self.write_file(folder, &path, size)?))).collect()
                })
            };
            let mut manifest = Manifest::new();
            for part in [work(large), work(rest)] {
                manifest.extend(part.join().map_err(|_| crate::cluster::poisoned())??);
            }
            Ok(manifest)
        })
    }

    /// Writes (or replaces, by rename) one file.
    ///
    /// # Errors
    /// As [`Dataset::write`].
    pub fn write_file(&self, folder: &Path, path: &str, size: u64) -> Result<Entry> {
        put(folder, path, |sink| content::generate(self.seed, path, size, sink))
    }
}

/// Copies all files below a folder that someone else wrote, each with the attribute that the S3 server takes for its ETag.
///
/// # Errors
/// As [`Dataset::write`], or a name is not UTF-8.
pub fn copy(from: &Path, to: &Path) -> Result<Manifest> {
    let (mut manifest, mut folders) = (Manifest::new(), vec![from.to_owned()]);
    while let Some(folder) = folders.pop() {
        let list = || format!("list {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(list)? {
            let path = entry.with_context(list)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(from).ok().and_then(Path::to_str).context("a name that is not UTF-8")?;
            let bytes = fs::read(&path).with_context(|| format!("read {name}"))?;
            manifest.insert(name.to_owned(), put(to, name, |sink| sink(&bytes))?);
        }
    }
    Ok(manifest)
}

/// Takes a file's content, block by block.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Writes (or replaces, by rename) one file with what `fill` hands on.
fn put(folder: &Path, path: &str, fill: impl FnOnce(Sink<'_>) -> Result<()>) -> Result<Entry> {
    let target = folder.join(path);
    let parent = target.parent().context("folder of a file")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let name = target.file_name().context("name of a file")?.to_string_lossy();
    let unfinished = parent.join(format!(".unfinished {name}"));
    let mut file = File::create(&unfinished).with_context(|| format!("make {path}"))?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    fill(&mut |part| {
        hash.update(part);
        size += part.len() as u64;
        file.write_all(part).with_context(|| format!("write {path}"))
    })?;
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    // Any 32 hex digits that change with the content do for an ETag; S3 does not promise an MD5 either.
    let etag = format!("\"{}\"", &sha256[..32]);
    rustix::fs::fsetxattr(&file, "user.etag", etag.as_bytes(), rustix::fs::XattrFlags::empty())
        .with_context(|| format!("set the ETag of {path}"))?;
    fs::rename(&unfinished, &target).with_context(|| format!("put {path} in place"))?;
    Ok(Entry { size, sha256 })
}

/// Reads what `sha256sum` printed, paths relative to `root`.
///
/// # Errors
/// A line is not of that form.
pub fn parse_sums(text: &str, root: &str) -> Result<BTreeMap<String, String>> {
    text.lines()
        .map(|line| {
            let Some((sum, path)) = line.split_once("  ") else { bail!("not a line of sha256sum: {line}") };
            let path = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
            Ok((path.to_owned(), sum.to_owned()))
        })
        .collect()
}

/// Compares what a pod read with the manifest.
///
/// # Errors
/// Names the first files that differ, are missing or should not be there.
pub fn compare(manifest: &Manifest, seen: &BTreeMap<String, String>) -> Result<()> {
    let differs = manifest.iter().filter(|(path, entry)| seen.get(*path).is_some_and(|sum| *sum != entry.sha256));
    let differs: Vec<_> = differs.map(|(path, _)| path).collect();
    let missing: Vec<_> = manifest.keys().filter(|path| !seen.contains_key(*path)).collect();
    let strange: Vec<_> = seen.keys().filter(|path| !manifest.contains_key(*path)).collect();
    if differs.is_empty() && missing.is_empty() && strange.is_empty() {
        return Ok(());
    }
    let first = |paths: &[&String]| paths.iter().take(5).map(|path| path.as_str()).collect::<Vec<_>>().join(", ");
    bail!(
        "of {} files {} have other content ({}), {} are missing ({}), {} should not be there ({})",
        manifest.len(),
        differs.len(),
        first(&differs),
        missing.len(),
        first(&missing),
        strange.len(),
        first(&strange)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_have_the_promised_size() {
        let total = |set: Dataset| set.files().iter().fold((0, 0), |(n, bytes), (_, size)| (n + 1, bytes + size));
        let (files, bytes) = total(Dataset::small(1));
        assert!((290..=310).contains(&files) && (55 * MIB..70 * MIB).contains(&bytes), "{files} {bytes}");
        let (files, bytes) = total(Dataset::demo(1));
        assert!(files >= 5_000 && bytes >= 2 << 30, "{files} {bytes}");
    }

    #[test]
    fn a_changed_file_and_a_missing_one_are_named() {
        let entry = |sum: &str| Entry { size: 1, sha256: sum.into() };
        let manifest = Manifest::from([("a".into(), entry("1")), ("b".into(), entry("2"))]);
        let seen = parse_sums("9  /data/a\n", "/data").unwrap();
        let error = compare(&manifest, &seen).unwrap_err().to_string();
        assert!(error.contains("1 have other content (a)") && error.contains("1 are missing (b)"), "{error}");
    }
}
