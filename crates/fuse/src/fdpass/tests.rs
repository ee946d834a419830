use super::*;
use serde::Deserialize;
use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    sync::atomic::{AtomicUsize, Ordering},
};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Text {
    text: String,
}

fn text(s: &str) -> Text {
    Text { text: s.into() }
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

async fn echo(conn: Conn) -> Result<(), FdPassError> {
    while let Some((text, _)) = conn.request::<Text>().await? {
        conn.send(&text, None).await?;
    }
    Ok(())
}

async fn pair() -> (tempfile::TempDir, Conn, Conn) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[me()], 0o600).unwrap();
    let (client, server) = tokio::join!(Conn::connect(&path), listener.accept());
    (dir, client.unwrap(), server)
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn send_raw(conn: &Conn, bytes: &[u8], fds: &[i32]) {
    testing::send_raw(conn, bytes, fds).unwrap();
}

#[tokio::test]
async fn a_message_and_its_file_arrive() {
    let (_dir, client, server) = pair().await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"bytes of the file").unwrap();
    file.rewind().unwrap();
    client.send(&text("take it"), Some(file.as_fd())).await.unwrap();
    drop(file);
    let (message, fd) = server.recv::<Text>().await.unwrap().unwrap();
    assert_eq!(message, text("take it"));
    let fd = fd.unwrap();
    let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "would leak into children");
    let mut read = String::new();
    File::from(fd).read_to_string(&mut read).unwrap();
    assert_eq!(read, "bytes of the file");

    server.send(&text("thanks"), None).await.unwrap();
    let (message, fd) = client.recv::<Text>().await.unwrap().unwrap();
    assert_eq!(message, text("thanks"));
    assert!(fd.is_none());
    assert_eq!(server.peer_uid(), me());
}

#[tokio::test]
async fn a_closed_peer_is_the_end_and_not_an_error() {
    let (_dir, client, server) = pair().await;
    drop(client);
    assert!(server.recv::<Text>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_user_who_may_not_is_hung_up_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[me() + 1], 0o666).unwrap();
    let client = Conn::connect(&path).await.unwrap();
    let accepting = tokio::spawn(async move { listener.accept().await });
    assert!(matches!(client.recv::<Text>().await, Ok(None) | Err(FdPassError::Receive(_))));
    assert!(!accepting.is_finished());
    accepting.abort();
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_on_both_sides() {
    let (_dir, client, server) = pair().await;
    let long = text(&"x".repeat(MESSAGE_MAX));
    assert!(matches!(client.send(&long, None).await, Err(FdPassError::TooLong)));
    send_raw(&client, &vec![b' '; MESSAGE_MAX + 1], &[]);
    assert!(matches!(server.recv::<Text>().await, Err(FdPassError::TooLong)));
}

#[tokio::test]
async fn surplus_descriptors_are_refused_and_closed() {
    let (_dir, client, server) = pair().await;
    let file = tempfile::tempfile().unwrap();
    let (dev, ino) = {
        use std::os::unix::fs::MetadataExt;
        let m = file.metadata().unwrap();
        (m.dev(), m.ino())
    };
    let holders = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|e| std::fs::metadata(e.unwrap().path()).ok())
            .filter(|m| (m.dev(), m.ino()) == (dev, ino))
            .count()
    };
    for count in [2, 3, 200] {
        send_raw(&client, b"{\"text\":\"two\"}", &vec![file.as_raw_fd(); count]);
        assert!(matches!(server.recv::<Text>().await, Err(FdPassError::Descriptors(_))));
        assert_eq!(holders(), 1, "after {count}");
    }
    send_raw(&client, b"no json", &[file.as_raw_fd()]);
    assert!(matches!(server.recv::<Text>().await, Err(FdPassError::Decode(_))));
    assert_eq!(holders(), 1);
    // The connection is still good.
    client.send(&text("again"), None).await.unwrap();
    assert_eq!(server.recv::<Text>().await.unwrap().unwrap().0, text("again"));
    assert!(open_fds() < 1000);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_but_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    drop(Listener::bind(&path, &[], 0o600).unwrap());
    assert!(path.exists());
    let _second = Listener::bind(&path, &[], 0o640).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(matches!(Listener::bind(&file, &[], 0o600), Err(FdPassError::Listen { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[tokio::test]
async fn nobody_listening_is_an_error_that_names_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let error = Conn::connect(&path).await.unwrap_err().to_string();
    assert!(error.contains("none.sock"), "{error}");
    let long = dir.path().join("x".repeat(120));
    assert!(Listener::bind(&long, &[], 0o600).is_err());
}

#[tokio::test]
async fn who_finds_no_place_waits_until_another_leaves_also_by_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[me()], 0o600).unwrap();
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    let serving = tokio::spawn(async move {
        let talk = |conn: Conn| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                while let Some((message, _)) = conn.recv::<Text>().await? {
                    conn.send(&message, None).await?;
                }
                Ok(())
            }
        };
        listener.serve(2, talk).await;
    });
    let ask = async |conn: &Conn| {
        conn.send(&text("?"), None).await.unwrap();
        conn.recv::<Text>().await.unwrap().unwrap();
    };
    let (first, second, third) = (Conn::connect(&path).await, Conn::connect(&path).await, Conn::connect(&path).await);
    let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
    // On one thread: each of these would let the third in too, were there a place.
    for _ in 0..5 {
        ask(&first).await;
        ask(&second).await;
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
    first.send(&"no text", None).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), ask(&third)).await.unwrap();
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    // A talk goes on without the one who began it.
    ask(&second).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_hung_up_on_and_gives_its_place_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[me()], 0o600).unwrap();
    let serving = tokio::spawn(async move { listener.serve(1, echo).await });
    let silent = Conn::connect(&path).await.unwrap();
    let next = Conn::connect(&path).await.unwrap();
    next.send(&text("my turn"), None).await.unwrap();
    assert_eq!(next.recv::<Text>().await.unwrap().unwrap().0, text("my turn"));
    assert!(silent.recv::<Text>().await.unwrap().is_none());
    drop(next);
    testing::say_nothing(&path).await;
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_not_waited_for() {
    let (_dir, client, _server) = pair().await;
    let long = text(&"x".repeat(MESSAGE_MAX / 2));
    let error = loop {
        if let Err(error) = client.send(&long, None).await {
            break error;
        }
    };
    assert!(matches!(error, FdPassError::Send(e) if e.kind() == io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn whatever_a_peer_sends_costs_no_descriptor_and_no_other_peer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[me()], 0o600).unwrap();
    let serving = tokio::spawn(async move { listener.serve(2, echo).await });
    let good = r#"{"text":"good"}"#;
    testing::misbehave(&path, good).await;
    testing::be_a_stranger(&path, good).await;
    serving.abort();
}
