use crate::block_on;
use larder_fuse::{
    fdpass::{Conn, FdPassError, Listener, MESSAGE_MAX},
    protocol::{backing, keeper, mounter, worker},
};
use nix::sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::Debug,
    io::IoSlice,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// A message between daemons of a node, with as many descriptors as the first byte says: what its receiver makes of it.
pub fn messages(data: &[u8]) {
    let Some((count, bytes)) = data.split_first() else { return };
    read_again::<keeper::Request>(bytes);
    read_again::<keeper::Reply>(bytes);
    read_again::<mounter::Request>(bytes);
    read_again::<mounter::Reply>(bytes);
    read_again::<backing::Request>(bytes);
    read_again::<backing::Reply>(bytes);
    read_again::<worker::Request>(bytes);
    read_again::<worker::Reply>(bytes);
    if !bytes.is_empty() && bytes.len() <= MESSAGE_MAX {
        receive(bytes, usize::from(count % 4));
    }
}

/// What is understood is understood in the same way when it is passed on.
fn read_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&again).unwrap(), message);
    }
}

/// A sender, and a listener's end of the same connection.
async fn connection() -> (OwnedFd, Conn) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = Listener::bind(&path, &[nix::unistd::geteuid().as_raw()], 0o600).unwrap();
    let sender = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::connect(sender.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    (sender, listener.accept().await)
}

fn receive(bytes: &[u8], count: usize) {
    thread_local! {
        static CONNECTION: (OwnedFd, Conn) = block_on(connection());
    }
    CONNECTION.with(|(sender, receiver)| {
        let fds = vec![sender.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let raw = sender.as_raw_fd();
        socket::sendmsg::<()>(raw, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        let understood = serde_json::from_slice::<serde_json::Value>(bytes).ok();
        match (block_on(receiver.recv::<serde_json::Value>()), count) {
            (Err(FdPassError::Descriptors(_)), 2..) => {}
            (Ok(Some((message, fd))), 0..2) => {
                assert_eq!(Some(message), understood);
                assert_eq!(fd.is_some(), count == 1);
            }
            (Err(FdPassError::Decode(_)), 0..2) => assert_eq!(understood, None),
            (received, _) => panic!("{count} descriptors: {received:?}"),
        }
    });
}
