use crate::lab::{Lab, ask};
use larder_core::names::{self, MOUNTER_UID};
use larder_fuse::{fdpass::testing, protocol::keeper::Request};
use larder_keeper::{Args, run};
use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Names the socket for this program when it runs as another user.
const SOCKET: &str = "LARDER_TEST_KEEPER_SOCKET";
const STRANGER: u32 = 65534;

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_talks_to_root_and_the_mounter_only_and_ends_at_once() {
    if !nix::unistd::geteuid().is_root() {
        assert!(!std::env::var("CI").is_ok_and(|v| v == "true"), "needs root");
        eprintln!("SKIPPED, NOTHING WAS TESTED: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let args = Args { run_dir: dir.path().to_owned(), admin_addr: ([127, 0, 0, 1], 0).into() };
    assert!(run(args.clone(), CancellationToken::new()).await.is_err(), "the folder is the node plugin's to make");
    fs::create_dir(dir.path().join("keeper")).unwrap();
    let program = dir.path().join("test");
    // Where it was built other users may not look.
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();

    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(run(args, shutdown.clone()));
    let socket = names::keeper_socket(dir.path());
    crate::lab::until("the keeper listens", || socket.exists()).await;
    assert!(ask(&socket, Request::Keys { after: String::new() }).await.is_some());
    let (mounter, stranger) =
        tokio::task::block_in_place(|| [MOUNTER_UID, STRANGER].map(|uid| is_answered_as(uid, &program, &socket)).into());
    assert!(mounter, "the mounter was refused");
    assert!(!stranger, "anybody was answered");

    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), keeper).await.expect("it must end at once").unwrap().unwrap();
}

fn is_answered_as(uid: u32, program: &Path, socket: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(["--exact", "users::one_of_another_user_asks"]).env(SOCKET, socket).uid(uid).gid(uid).current_dir("/");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed") || text.contains("hung up on"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

/// The other half of the test above, and nothing without it.
#[tokio::test]
async fn one_of_another_user_asks() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let answer = ask(Path::new(&socket), Request::Keys { after: String::new() }).await;
    assert!(answer.is_some(), "hung up on");
}

const KEYS: &str = r#"{"keys":{"after":""}}"#;

#[tokio::test]
async fn whatever_a_peer_sends_costs_no_descriptor_and_no_other_peer() {
    let lab = Lab::new();
    testing::misbehave(&lab.socket, KEYS).await;
    testing::misbehave(&lab.socket, r#"{"get":{"key":"k"}}"#).await;
    assert!(lab.keys().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_hung_up_on() {
    testing::say_nothing(&Lab::new().socket).await;
}
