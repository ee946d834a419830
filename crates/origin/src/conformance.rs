//! What every backend must do, whatever it talks to.

use crate::{
    Access, Credentials, Error, Folders, Item, Origin, Reason, Received, Source, connect,
    testing::{ACCESS_KEY, BUCKET, FakeS3},
};
use bytes::Bytes;
use futures::StreamExt as _;
use larder_core::catalog::Listed;
use std::{collections::BTreeMap, fs, sync::Arc};

/// Somewhere to put objects, and the source that they are seen by.
struct Backend {
    source: Source,
    access: Access,
    put: Box<Put>,
    remove: Box<Remove>,
}

type Put = dyn Fn(&str, &str);
type Remove = dyn Fn(&str);

async fn backends() -> [Backend; 2] {
    [s3().await, directory()]
}

async fn s3() -> Backend {
    let server = Arc::new(FakeS3::with_pages_of(7).await);
    let remove = Arc::clone(&server);
    Backend {
        source: Source { uri: format!("s3://{BUCKET}/p/"), endpoint: server.endpoint(), ..Source::default() },
        access: Access { credentials: Some(Credentials::new(ACCESS_KEY, "secret", None)), ..Access::default() },
        put: Box::new(move |path, text| server.put(&format!("p/{path}"), text.to_owned())),
        remove: Box::new(move |path| remove.delete(&format!("p/{path}"))),
    }
}

fn directory() -> Backend {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let remove = Arc::clone(&dir);
    fs::create_dir(dir.path().join("p")).unwrap();
    Backend {
        source: Source { uri: format!("file://{}/p", dir.path().display()), ..Source::default() },
        access: Access { folders: Folders::Beneath(vec![dir.path().to_owned()]), ..Access::default() },
        // As an object is replaced: at once, by another one.
        put: Box::new(move |path, text| {
            let (to, part) = (dir.path().join("p").join(path), dir.path().join("part"));
            if path.ends_with('/') {
                fs::create_dir_all(to).unwrap();
            } else {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(&part, text).unwrap();
                fs::rename(part, to).unwrap();
            }
        }),
        remove: Box::new(move |path| fs::remove_file(remove.path().join("p").join(path)).unwrap()),
    }
}

impl Backend {
    fn connect(&self) -> (Arc<dyn Origin>, Arc<Received>) {
        let received = Arc::new(Received::default());
        (connect(&self.source, &self.access, Arc::clone(&received)).unwrap(), received)
    }

    async fn list(&self) -> BTreeMap<String, Listed> {
        let (files, skipped) = list(&*self.connect().0).await.unwrap();
        assert_eq!(skipped, Vec::<String>::new());
        files
    }
}

/// Everything, each path once.
pub(crate) async fn list(origin: &dyn Origin) -> Result<(BTreeMap<String, Listed>, Vec<String>), Error> {
    let (mut files, mut skipped) = (BTreeMap::new(), Vec::new());
    let mut items = origin.list();
    while let Some(item) = items.next().await {
        match item? {
            Item::File(f) => assert!(files.insert(f.path.clone(), f).is_none()),
            Item::Skipped { key, .. } => skipped.push(key),
        }
    }
    skipped.sort();
    Ok((files, skipped))
}

#[tokio::test]
async fn names_of_every_kind_are_listed_and_read_back() {
    let names = [
        "plain",
        "with space",
        " edge ",
        "a+b",
        "100%",
        "%2F",
        "%41",
        "a#b?c=d&e",
        "it's \"quoted\"",
        "<xml>&amp;",
        "ünï/日本/🦀",
        "back\\slash",
        "star*[x]{y}^|`~",
        "a:b;c,d@e!$()=",
        "...",
        ".hidden",
        "deep/er/and deeper/x",
    ];
    for backend in backends().await {
        names.iter().for_each(|name| (backend.put)(name, name));
        let files = backend.list().await;
        assert_eq!(files.len(), names.len());
        for name in names {
            let bytes = backend.connect().0.read_range(name, &files[name].version, 0..files[name].size).await.unwrap();
            assert_eq!(bytes, name.as_bytes(), "{name}");
        }
    }
}

#[tokio::test]
async fn globs_choose() {
    for mut backend in backends().await {
        ["train/a", "train/a.tmp", "val/b"].iter().for_each(|path| (backend.put)(path, "x"));
        backend.source.include = vec!["train/**".into()];
        backend.source.exclude = vec!["**/*.tmp".into()];
        assert_eq!(backend.list().await.into_keys().collect::<Vec<_>>(), ["train/a"]);
    }
}

#[tokio::test]
async fn a_folder_without_files_is_listed_as_its_marker() {
    for backend in backends().await {
        (backend.put)("a/b/", "");
        (backend.put)("a/c", "x");
        assert_eq!(backend.list().await.into_keys().collect::<Vec<_>>(), ["a/b/", "a/c"]);
    }
}

#[tokio::test]
async fn ranges_are_exact_and_every_byte_is_counted() {
    for backend in backends().await {
        (backend.put)("f", "0123456789");
        (backend.put)("empty", "");
        let files = backend.list().await;
        assert_eq!((files["f"].size, files["empty"].size), (10, 0));
        assert!(files["f"].mtime_ns > 1_700_000_000_000_000_000);
        let (origin, received) = backend.connect();
        for (range, want) in [(0..10, "0123456789"), (2..5, "234"), (9..10, "9")] {
            assert_eq!(origin.read_range("f", &files["f"].version, range).await.unwrap(), Bytes::from_static(want.as_bytes()));
        }
        assert_eq!(received.objects(), 14);
    }
}

#[tokio::test]
async fn what_changed_or_went_is_never_read_and_named() {
    for backend in backends().await {
        ["f", "sub/g"].iter().for_each(|path| (backend.put)(path, "0123456789"));
        let files = backend.list().await;
        (backend.put)("f", "abcdefghij");
        (backend.remove)("sub/g");
        let (origin, _) = backend.connect();
        for (path, reason) in [("f", Reason::Changed), ("sub/g", Reason::ObjectNotFound)] {
            let e = origin.read_range(path, &files[path].version, 2..5).await.unwrap_err();
            assert_eq!(e.reason(), reason, "{e}");
            assert!(e.to_string().contains(&format!("p/{path}")), "{e}");
        }
        // The new one is read by its new version.
        let version = &backend.list().await["f"].version;
        assert_eq!(origin.read_range("f", version, 2..5).await.unwrap(), "cde");
    }
}

#[tokio::test]
async fn a_read_beside_the_source_is_none() {
    for backend in backends().await {
        (backend.put)("f", "x");
        let version = &backend.list().await["f"].version;
        for path in ["../f", "/etc/passwd", "../../../../etc/passwd", "f/../f", ""] {
            let e = backend.connect().0.read_range(path, version, 0..1).await.unwrap_err();
            assert!(matches!(e.reason(), Reason::ObjectNotFound | Reason::Changed | Reason::FolderNotFound), "{path}: {e}");
        }
    }
}
