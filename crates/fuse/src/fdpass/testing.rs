//! What a peer may do wrong, for tests of those who listen.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use super::{Conn, FdPassError, IDLE, MESSAGE_MAX};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{self, ControlMessage, MsgFlags, UnixAddr},
};
use std::{
    io::IoSlice,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::{Duration, Instant},
};

/// Longest wait for the other end.
const WAIT: Duration = Duration::from_secs(20);
/// Somebody that no daemon of ours is.
const STRANGER: u32 = 65_534;

/// Sends anything: messages that no [`Conn`] would.
pub fn send_raw(conn: &Conn, bytes: &[u8], fds: &[RawFd]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    socket::sendmsg::<()>(conn.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).map(drop)
}

/// Sends what makes no sense, in many ways, each on a connection of its own. The listener answers or hangs up, keeps none of the
/// descriptors, and answers `good` afterwards as before. It must be one of this process.
pub async fn misbehave(path: &Path, good: &str) {
    let file = memfd_create(c"marker", MFdFlags::empty()).unwrap();
    let fds = |count: usize| vec![file.as_raw_fd(); count];
    let huge = vec![b' '; MESSAGE_MAX + 1];
    let deep = "[".repeat(MESSAGE_MAX);
    let (good, half) = (good.as_bytes(), &good.as_bytes()[..good.len() / 2]);
    let messages: [(&str, &[u8], usize); 12] = [
        ("two descriptors", good, 2),
        ("all descriptors that fit", good, 253),
        ("a cut message", half, 0),
        ("a cut message with a descriptor", half, 1),
        ("a long message", &huge, 0),
        ("a long message with descriptors", &huge, 3),
        ("no JSON", b"\x00\xff{", 1),
        ("another request", b"{\"nonsense\":{}}", 1),
        ("a number", b"7", 0),
        ("deep nesting", deep.as_bytes(), 0),
        ("nothing", b"", 0),
        ("nothing with a descriptor", b"", 1),
    ];
    for (what, bytes, count) in messages {
        let conn = Conn::connect(path).await.unwrap();
        send_raw(&conn, bytes, &fds(count)).unwrap();
        answered(&conn).await.unwrap_or_else(|| panic!("{what}: neither an answer nor the end"));
    }
    // Gone before the answers can be sent.
    let conn = Conn::connect(path).await.unwrap();
    while send_raw(&conn, half, &fds(1)).is_ok() {}
    drop(conn);
    drop(Conn::connect(path).await.unwrap());
    let deadline = Instant::now() + WAIT;
    while holders(&file) > 1 {
        assert!(Instant::now() < deadline, "{} descriptors are kept", holders(&file) - 1);
        tokio::task::yield_now().await;
    }
    let conn = Conn::connect(path).await.unwrap();
    send_raw(&conn, good, &[]).unwrap();
    assert_eq!(answered(&conn).await, Some(true), "a good request is not answered any more");
}

/// Who says nothing is hung up on in time. To be called with the clock paused.
pub async fn say_nothing(path: &Path) {
    let (conn, start) = (Conn::connect(path).await.unwrap(), tokio::time::Instant::now());
    let ended = tokio::time::timeout(2 * IDLE, conn.recv::<serde_json::Value>()).await;
    assert!(matches!(ended, Ok(Ok(None) | Err(FdPassError::Receive(_)))), "{ended:?}");
    assert!(start.elapsed() >= IDLE, "{:?}", start.elapsed());
}

/// A user who is none of ours is hung up on, even where the socket's file lets everybody in; false where users cannot be changed.
pub async fn be_a_stranger(path: &Path, good: &str) -> bool {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let folder = path.parent().unwrap();
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
    // Whoever may look into the folders above.
    let folder = std::fs::File::open(folder).unwrap();
    let there = format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), path.file_name().unwrap().display());
    let conn = Conn::new(connect_as(STRANGER, Path::new(&there))).unwrap();
    // It may be hung up on sooner.
    let _ = send_raw(&conn, good.as_bytes(), &[]);
    assert_eq!(answered(&conn).await, Some(false), "anybody is answered");
    true
}

/// True for an answer, false for the end; none: neither comes.
async fn answered(conn: &Conn) -> Option<bool> {
    match tokio::time::timeout(WAIT, conn.recv::<serde_json::Value>()).await {
        Ok(answer) => Some(matches!(answer, Ok(Some(_)))),
        Err(_) => None,
    }
}

/// How many descriptors of this process are of this file.
fn holders(file: &OwnedFd) -> usize {
    let of = |fd: RawFd| std::fs::metadata(format!("/proc/self/fd/{fd}")).map(|m| (m.dev(), m.ino())).ok();
    let same = of(file.as_raw_fd());
    let names = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    names.filter(|fd| of(*fd) == same).count()
}

/// The user belongs to the thread, which ends here; the rest of the process stays who it is.
fn connect_as(uid: u32, path: &Path) -> OwnedFd {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: the system call changes the credentials of this thread and touches no memory.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        let fd = super::seqpacket().unwrap();
        socket::connect(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        fd
    });
    thread.join().unwrap()
}
