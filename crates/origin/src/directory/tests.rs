//! What only folders have: links, pipes, and other folders that nobody allowed.

use super::*;
use crate::conformance::list;
use futures::StreamExt as _;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
};
use tempfile::TempDir;

/// `secret` lies beside the allowed folder `allowed`.
fn folders() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("allowed/data/sub")).unwrap();
    fs::create_dir(dir.path().join("allowed-not")).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(dir.path().join("allowed/data/f"), "0123456789").unwrap();
    dir
}

fn directory(dir: &TempDir, folder: &str) -> Directory {
    let source = Source { uri: format!("file://{}/{folder}", dir.path().display()), ..Source::default() };
    Directory::new(&source, Folders::Beneath(vec![dir.path().join("allowed")]), Arc::default()).unwrap()
}

/// Why what is left out is left out.
async fn reasons(origin: &Directory) -> BTreeMap<String, &'static str> {
    let skipped = origin.list().filter_map(|item| async move {
        match item {
            Ok(Item::Skipped { key, reason }) => Some((key, reason)),
            _ => None,
        }
    });
    skipped.collect().await
}

#[tokio::test]
async fn links_are_followed_beneath_the_folder_and_nowhere_else() {
    let dir = folders();
    let data = dir.path().join("allowed/data");
    symlink("../f", data.join("sub/inside")).unwrap();
    symlink("../../secret", data.join("out")).unwrap();
    symlink(dir.path().join("secret"), data.join("absolute")).unwrap();
    symlink("circle", data.join("circle")).unwrap();
    symlink("nowhere", data.join("dangling")).unwrap();
    symlink("sub", data.join("to-folder")).unwrap();
    symlink(data.join("f"), data.join("absolute-inside")).unwrap();
    symlink("/proc/self/fd/0", data.join("magic")).unwrap();
    let origin = directory(&dir, "allowed/data");
    let (files, skipped) = list(&origin).await.unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["f", "sub/inside"]);
    assert_eq!(skipped, ["absolute", "absolute-inside", "circle", "dangling", "magic", "out", "to-folder"]);
    // As docs/semantics.md says.
    let reasons = reasons(&origin).await;
    assert!(reasons["absolute"].contains("absolute") && reasons["to-folder"].contains("link to a folder"), "{reasons:?}");
    assert_eq!(files["f"].version, files["sub/inside"].version);
    assert_eq!(origin.read_range("sub/inside", &files["f"].version, 2..5).await.unwrap(), "234");
    // One that turns around after the listing.
    fs::remove_file(data.join("sub/inside")).unwrap();
    symlink("../../../secret", data.join("sub/inside")).unwrap();
    let e = origin.read_range("sub/inside", &files["f"].version, 0..1).await.unwrap_err();
    assert_eq!(e.reason(), Reason::ObjectNotFound, "{e}");
}

#[tokio::test]
async fn pipes_and_names_that_are_no_text_are_left_out_and_a_pipe_is_not_waited_for() {
    let dir = folders();
    let data = dir.path().join("allowed/data");
    mknodat(CWD, data.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(data.join(std::ffi::OsStr::from_bytes(b"sub/\xff")), "x").unwrap();
    let origin = directory(&dir, "allowed/data");
    let (files, skipped) = list(&origin).await.unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["f"]);
    assert_eq!(skipped, ["pipe", "sub/\u{fffd}"]);
    fs::rename(data.join("pipe"), data.join("f")).unwrap();
    let e = origin.read_range("f", &files["f"].version, 0..1).await.unwrap_err();
    assert_eq!(e.reason(), Reason::Changed, "{e}");
}

/// Whoever runs the tests: permissions hold for this thread from now on, and for those that it starts.
fn be_an_ordinary_user() {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, sets).unwrap();
}

#[tokio::test]
async fn a_folder_that_may_not_be_read_is_left_out_and_named_and_one_that_is_excluded_is_not_looked_into() {
    be_an_ordinary_user();
    let dir = folders();
    let data = dir.path().join("allowed/data");
    // One that may be listed and no more, and two that may not.
    let modes = [("names", 0o444), ("lost+found", 0), ("sub/locked", 0)];
    for (folder, mode) in modes {
        fs::create_dir(data.join(folder)).unwrap();
        fs::write(data.join(folder).join("x"), "x").unwrap();
        fs::set_permissions(data.join(folder), fs::Permissions::from_mode(mode)).unwrap();
    }
    let listed = list(&directory(&dir, "allowed/data")).await;
    let exclude = ["lost+found/**", "**/locked/**", "names/**"].map(str::to_owned).to_vec();
    let uri = format!("file://{}", data.display());
    let excluding = Directory::new(&Source { uri, exclude, ..Source::default() }, Folders::Any, Arc::default()).unwrap();
    let excluded = list(&excluding).await;
    let source = list(&directory(&dir, "allowed/data/lost+found")).await;
    for (folder, _) in modes {
        fs::set_permissions(data.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (files, skipped) = listed.unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), ["f"]);
    assert_eq!(skipped, ["lost+found/", "names/x", "sub/locked/"]);
    let (files, skipped) = excluded.unwrap();
    assert_eq!((files.into_keys().collect::<Vec<_>>(), skipped), (vec!["f".to_owned()], vec![]));
    assert_eq!(source.unwrap_err().reason(), Reason::AccessDenied, "the source itself");
}

#[tokio::test]
async fn a_file_that_is_written_in_place_is_another_one() {
    let dir = folders();
    let path = dir.path().join("allowed/data/f");
    let origin = directory(&dir, "allowed/data");
    let version = list(&origin).await.unwrap().0["f"].version.clone();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(origin.read_range("f", &version, 0..1).await.unwrap_err().reason(), Reason::Changed);
    let version = list(&origin).await.unwrap().0["f"].version.clone();
    file.set_len(3).unwrap();
    assert_eq!(origin.read_range("f", &version, 0..10).await.unwrap_err().reason(), Reason::Changed);
}

#[tokio::test]
async fn only_allowed_folders_are_opened_whatever_links_say() {
    let dir = folders();
    symlink("..", dir.path().join("allowed/up")).unwrap();
    for folder in ["allowed-not", "allowed/up", "allowed/up/allowed-not", "elsewhere"] {
        let origin = directory(&dir, folder);
        for e in [list(&origin).await.map(drop).unwrap_err(), origin.read_range("f", "", 0..1).await.map(drop).unwrap_err()] {
            assert_eq!(e.reason(), Reason::FolderNotAllowed, "{folder}: {e}");
        }
    }
    let e = list(&directory(&dir, "allowed/missing")).await.unwrap_err();
    assert_eq!(e.reason(), Reason::FolderNotFound, "{e}");
    assert!(e.to_string().contains("allowed/missing"), "{e}");
    assert!(list(&directory(&dir, "allowed")).await.unwrap().0.contains_key("data/f"), "the allowed folder itself");
}

#[test]
fn sources_that_cannot_work_are_refused_with_their_text() {
    for bad in ["file://", "file:///", "file://host/data", "file:/data", "file:///a/../b", "file:///a//b", "file:///a/./b"] {
        let source = Source { uri: bad.into(), ..Source::default() };
        let e = Directory::new(&source, Folders::Any, Arc::default()).unwrap_err();
        assert_eq!(e.reason(), Reason::InvalidSource, "{bad}");
        assert!(e.to_string().contains(bad), "{e}");
    }
    let source = Source { uri: "file:///a".into(), endpoint: "http://x".into(), ..Source::default() };
    assert_eq!(Directory::new(&source, Folders::Any, Arc::default()).unwrap_err().reason(), Reason::InvalidSource);
}
