//! `larder mount`, `umount` and `preload`, as a user runs them.

mod harness;

use harness::{LARDER, Place, files, fuse_works, said, signal};
use larder_fuse::device;
use larder_origin::testing::{ACCESS_KEY, BUCKET, FakeS3, Fault};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

#[test]
fn a_preloaded_folder_is_mounted_again_after_its_origin_is_gone() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    let said = place.must(&["mount", "ds.yaml", "mnt", "--preload", "--detach"]);
    assert!(said.contains("demo is mounted at") && said.contains("listed just now"), "{said}");
    place.assert_mounted(&files());
    place.must(&["umount", "mnt"]);
    assert!(!place.is_mounted());

    fs::rename(place.path("origin"), place.path("gone")).unwrap();
    let said = place.must(&["mount", "ds.yaml", "mnt", "--detach"]);
    assert!(said.contains("--refresh lists again"), "{said}");
    place.assert_mounted(&files());
    place.must(&["umount", "mnt"]);
    let said = place.must_fail(&["mount", "ds.yaml", "mnt", "--refresh"]);
    assert!(said.contains("list the origin") && said.contains("origin"), "{said}");
    assert!(!place.is_mounted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_read_through_the_mount_and_each_byte_leaves_it_once() {
    if !fuse_works() {
        return;
    }
    let (place, server) = (Place::new(), FakeS3::start().await);
    for (path, content) in files() {
        server.put(&format!("demo/{path}"), content);
    }
    let source =
        format!("uri: s3://{BUCKET}/demo/, endpoint: \"{}\", credentials: {{ secretRef: {{ name: s3 }} }}", server.endpoint());
    place.describe(&source, "  preload: { policy: None }\n");
    let said = place.must_fail(&["mount", "ds.yaml", "mnt"]);
    assert!(said.contains("secretRef") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");

    let mut command = place.larder(&["mount", "ds.yaml", "mnt"]);
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", "secret");
    let child = place.mount(command);
    place.assert_mounted(&files());
    place.assert_mounted(&files());
    let total: u64 = files().values().map(|f| f.len() as u64).sum();
    assert_eq!(server.seen().bytes, total);
    assert_eq!(signal(child, Signal::SIGTERM), Some(0));

    // Credentials from files; nothing is left to fetch.
    let keys = place.path("keys");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("accessKeyId"), ACCESS_KEY).unwrap();
    fs::write(keys.join("secretAccessKey"), "secret").unwrap();
    let said = place.must(&["preload", "ds.yaml", "--credentials", "keys"]);
    assert!(said.contains("demo is on disk") && said.contains("0 B came from the origin"), "{said}");
    assert_eq!(server.seen().bytes, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preload_says_once_what_holds_it_up_and_goes_on_until_an_attempt_has_ended() {
    let (place, server) = (Place::new(), FakeS3::start().await);
    files().into_iter().for_each(|(path, content)| server.put(&format!("demo/{path}"), content));
    let source =
        format!("uri: s3://{BUCKET}/demo/, endpoint: \"{}\", credentials: {{ secretRef: {{ name: s3 }} }}", server.endpoint());
    place.describe(&source, "");
    let preload = || {
        let mut command = place.larder(&["preload", "ds.yaml"]);
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // The listing is let through.
    let away = |path: &String| (format!("demo/{path}"), Fault::Status(404, "NoSuchBucket"));
    server.faults(|f| f.keys = files().keys().map(away).collect());
    let child = preload();
    let (send, told) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut child, mut all) = (child, String::new());
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            all.push_str(&format!("{}\n", line.unwrap()));
            let _ = send.send(all.clone());
        }
        (child.wait().unwrap(), all)
    });
    let told = std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(30)).ok()).find(|said| said.contains("; going on"));
    assert!(told.is_some_and(|said| said.contains("(BucketNotFound); going on")));
    server.faults(|f| f.keys.clear());
    let (status, said) = reader.join().unwrap();
    assert!(status.success() && said.contains("demo is on disk"), "{said}");
    // And once in the log.
    assert_eq!((said.matches("; going on").count(), said.matches("is held up").count()), (1, 1), "{said}");

    fs::remove_dir_all(place.path("tier/cache/larder")).unwrap();
    server.put("demo/shards/three.tar", "three");
    server.faults(|f| f.keys = [("demo/shards/three.tar".to_owned(), Fault::Status(403, "AccessDenied"))].into());
    let output = preload().wait_with_output().unwrap();
    let said = harness::said(&output);
    assert!(!output.status.success() && said.contains("1 files failed") && said.contains("three.tar"), "{said}");
}

#[test]
fn a_preload_of_paths_tells_what_they_name_and_paths_that_name_nothing_are_an_error() {
    let place = Place::new();
    place.write_origin(&files());
    let source = format!("uri: file://{}/", place.path("origin").display());
    place.describe(&source, "  preload: { paths: [\"train/00/\"] }\n");
    let said = place.must(&["preload", "ds.yaml"]);
    assert!(said.contains("demo is on disk: 9 files, ") && said.contains("(spec.preload.paths) of 63 files"), "{said}");
    for paths in ["/train/", "train"] {
        place.describe(&source, &format!("  preload: {{ paths: [\"{paths}\"] }}\n"));
        let said = place.must_fail(&["preload", "ds.yaml"]);
        assert!(said.contains(&format!("no file of the snapshot matches spec.preload.paths ({paths})")), "{said}");
        assert!(!said.contains("is on disk"), "{said}");
    }
}

#[test]
fn a_second_mount_of_the_same_cache_is_refused() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    let child = place.mount(place.larder(&["mount", "ds.yaml", "mnt"]));
    fs::create_dir(place.path("other")).unwrap();
    for second in [&["mount", "ds.yaml", "other"][..], &["preload", "ds.yaml"]] {
        let said = place.must_fail(second);
        assert!(said.contains("in use by another larder process"), "{said}");
    }
    let said = place.must_fail(&["mount", "ds.yaml", "mnt"]);
    assert!(said.contains("is mounted there already") && said.contains("larder umount"), "{said}");
    place.assert_mounted(&files());
    assert_eq!(signal(child, Signal::SIGINT), Some(0));
    assert!(!place.is_mounted());
}

#[test]
fn a_signal_leaves_no_mount_also_when_files_are_open() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    for term in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let child = place.mount(place.larder(&["mount", "ds.yaml", "mnt"]));
        assert_eq!(signal(child, term), Some(0));
        assert!(!place.is_mounted());
    }
    let mut child = place.mount(place.larder(&["mount", "ds.yaml", "mnt"]));
    let open = fs::File::open(place.mountpoint().join("shards/one.tar")).unwrap();
    let said = place.must_fail(&["umount", "mnt"]);
    assert!(said.contains("files are open there"), "{said}");
    place.must(&["umount", "--lazy", "mnt"]);
    assert!(!place.is_mounted());
    assert!(child.try_wait().unwrap().is_none(), "it serves who has a file open");
    drop(open);
    assert!(child.wait().unwrap().success());
    let said = place.must_fail(&["umount", "mnt"]);
    assert!(said.contains("nothing of `larder mount`"), "{said}");
}

#[test]
fn a_terminal_that_hangs_up_takes_no_mount_away_that_was_to_outlive_it() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    // As nohup does it.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP; exec "$@""#, "sh", LARDER, "mount", "ds.yaml", "mnt"]).current_dir(place.path("."));
    let mut child = place.mount(command);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).unwrap();
    place.assert_mounted(&files());
    assert!(child.try_wait().unwrap().is_none() && place.is_mounted());
    assert_eq!(signal(child, Signal::SIGTERM), Some(0));
    assert!(!place.is_mounted());
}

#[test]
fn a_mount_whose_process_was_killed_is_taken_away_by_the_next_and_no_other_is() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    let child = place.mount(place.larder(&["mount", "ds.yaml", "mnt", "--preload"]));
    signal(child, Signal::SIGKILL);
    assert!(device::is_dead(&fs::metadata(place.mountpoint()).unwrap_err()));
    place.must(&["mount", "ds.yaml", "mnt", "--detach"]);
    place.assert_mounted(&files());
    place.must(&["umount", "mnt"]);
    assert!(!place.is_mounted());

    let fuse = device::open().unwrap();
    device::mount(fuse.as_fd(), &place.mountpoint(), "somebody-elses").unwrap();
    drop(fuse);
    let said = place.must_fail(&["mount", "ds.yaml", "mnt"]);
    assert!(said.contains("somebody-elses is dead there"), "{said}");
    assert!(place.must_fail(&["umount", "mnt"]).contains("nothing of `larder mount`"));
    assert!(place.is_mounted());
}

#[test]
fn folders_that_lie_in_one_another_are_refused_before_anything_is_written() {
    let place = Place::new();
    place.write_origin(&files());
    let source = format!("uri: file://{}/", place.path("origin").display());
    for mountpoint in ["origin", "origin/train", ".", "tier/cache"] {
        let said = place.must_fail(&["mount", "ds.yaml", mountpoint]);
        assert!(said.contains("lie in one another") || said.contains("the folder must be there"), "{mountpoint}: {said}");
        assert!(!place.path("tier/cache").exists(), "{mountpoint}");
    }
    std::os::unix::fs::symlink("origin", place.path("link")).unwrap();
    let text = fs::read_to_string(place.path("ds.yaml")).unwrap();
    fs::write(place.path("ds.yaml"), text.replace("path: tier/cache", "path: link/cache")).unwrap();
    let said = place.must_fail(&["preload", "ds.yaml"]);
    assert!(said.contains("link/cache/larder (spec.cache.tiers[0].path) and the origin"), "{said}");
    assert!(!place.path("origin/cache").exists());
    place.describe(&source, "");
    place.must(&["preload", "ds.yaml"]);
    let said = place.must_fail(&["mount", "ds.yaml", "tier/cache/larder"]);
    assert!(said.contains("(spec.cache.tiers[0].path) lie in one another"), "{said}");
}

#[test]
fn a_mistake_in_the_file_is_told_with_its_field() {
    let place = Place::new();
    place.describe("uri: file:///nowhere/at/all", "  mode: Fast\n");
    let said = place.must_fail(&["mount", "ds.yaml", "mnt"]);
    assert!(said.contains("ds.yaml: unknown field spec.mode"), "{said}");
    place.describe("uri: file:///nowhere/at/all", "");
    let said = place.must_fail(&["preload", "ds.yaml"]);
    assert!(said.contains("list the origin: ") && said.contains("/nowhere/at/all"), "{said}");
}

#[test]
fn a_command_alone_sees_the_mount_and_its_code_is_passed_on() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    let run =
        |script: &str| place.larder(&["mount", "ds.yaml", "mnt", "--preload", "--", "sh", "-c", script]).output().unwrap();
    let output = run("cmp mnt/shards/one.tar origin/shards/one.tar && echo same; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(said(&output).contains("same"), "{}", said(&output));
    assert!(!place.is_mounted() && fs::read_dir(place.mountpoint()).unwrap().next().is_none());
    assert_eq!(run("kill -TERM $$").status.code(), Some(128 + 15));
    for (command, code) in [("no-such-command", 127), ("./ds.yaml", 126)] {
        let output = place.larder(&["mount", "ds.yaml", "mnt", "--", command]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", harness::said(&output));
        assert!(harness::said(&output).contains(command) && !place.is_mounted());
    }
}

/// As nobody, with a device that everyone may open, as on most machines; of the test's own, so that the machine's stays as it is.
const AS_NOBODY: &str = r#"
    mount -t tmpfs none "$1"/dev && mknod "$1"/dev/fuse c 10 229 && chmod 666 "$1"/dev/fuse
    mount --bind "$1"/dev/fuse /dev/fuse
    shift
    exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"#;

#[test]
fn a_user_without_rights_mounts_for_a_command() {
    if !fuse_works() {
        return;
    }
    let place = Place::new();
    place.write_origin(&files());
    fs::create_dir(place.path("dev")).unwrap();
    fs::set_permissions(place.path("tier"), fs::Permissions::from_mode(0o777)).unwrap();
    let larder = place.path("larder");
    fs::copy(LARDER, &larder).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", AS_NOBODY, "sh"]).arg(place.path("."));
        command.arg(&larder).args(arguments).current_dir(place.path(".")).output().unwrap()
    };
    let script = "id -u; cd mnt; find . -type f -exec cmp {} ../origin/{} \\; && find . -type f | wc -l; touch x";
    let output = as_nobody(&["mount", "ds.yaml", "mnt", "--", "sh", "-c", script]);
    let said = said(&output);
    assert!(said.contains("65534\n") && said.contains(&format!("\n{}\n", files().len())), "{said}");
    assert!(said.contains("Read-only file system") && !said.contains("differ"), "{said}");

    // Without a command it takes a program that may not be here.
    if Command::new("fusermount3").arg("--version").output().is_err() {
        let output = as_nobody(&["mount", "ds.yaml", "mnt"]);
        let said = harness::said(&output);
        assert!(!output.status.success() && said.contains("fusermount3") && said.contains("-- COMMAND"), "{said}");
    }
}
