//! One message in, one message out: recvmsg and sendmsg with their control messages.

use super::FdPassError;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Longest message. The longest real one, `list` on a node with 1,000 mounts, has about 60 bytes for each.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Most descriptors that one message may carry (SCM_MAX_FD). Room for all of them, so that the kernel never has to cut the
/// list, and we see and close what should not have come.
const FDS_MAX: usize = 253;
const CONTROL: usize = FDS_MAX * size_of::<RawFd>() + 64;

/// Aligned as control messages must be.
#[repr(align(8))]
struct Control(MaybeUninit<[u8; CONTROL]>);

/// What recvmsg gave, not judged yet. All descriptors are owned here, so whatever happens they get closed.
pub(crate) struct Received {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    flags: libc::c_int,
}

/// Without blocking: `WouldBlock` when there is no message.
pub(crate) fn receive(socket: RawFd) -> io::Result<Received> {
    // One byte more than the limit is not needed: a longer message sets MSG_TRUNC.
    let mut bytes = vec![0u8; MESSAGE_MAX];
    let mut control = Control(MaybeUninit::uninit());
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr (null pointers with zero lengths).
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let n = loop {
        // SAFETY: the header points to `bytes` and `control`, which live and stay where they are until the end of this
        // function, with their true lengths.
        let n = unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(n) => break n,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    };
    // SAFETY: recvmsg succeeded and set msg_controllen to what it filled in.
    let fds = unsafe { take_fds(&header) };
    bytes.truncate(n);
    Ok(Received { bytes, fds, flags: header.msg_flags })
}

/// Takes ownership of every descriptor in the control messages.
///
/// # Safety
/// `header` is as a successful recvmsg left it, its control buffer alive, and this is called once.
unsafe fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: by contract the header describes control messages written by the kernel; the CMSG macros stay within them.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let data = libc::CMSG_DATA(at).cast::<RawFd>();
                // Each was installed for this process just now; nobody else owns it.
                fds.extend((0..count).map(|i| OwnedFd::from_raw_fd(data.add(i).read_unaligned())));
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    fds
}

/// One whole message and the descriptor that came with it.
type Whole = (Vec<u8>, Option<OwnedFd>);

/// Refuses what is not one whole message with at most one whole descriptor. None is the end of the stream.
pub(crate) fn check(received: Received) -> Result<Option<Whole>, FdPassError> {
    let Received { bytes, mut fds, flags } = received;
    if flags & libc::MSG_TRUNC != 0 {
        return Err(FdPassError::TooLong);
    }
    if flags & libc::MSG_CTRUNC != 0 {
        return Err(FdPassError::Descriptors("some could not be installed; is the limit of open files reached?"));
    }
    if fds.len() > 1 {
        return Err(FdPassError::Descriptors("more than one"));
    }
    let fd = fds.pop();
    // A message of no bytes cannot be told from the end of the stream; nobody of ours sends one.
    Ok((!bytes.is_empty()).then_some((bytes, fd)))
}

/// Without blocking: `WouldBlock` when the peer's queue is full.
pub(super) fn send(socket: RawFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT, None)?;
    // SEQPACKET sends all or nothing.
    debug_assert_eq!(sent, bytes.len());
    Ok(())
}
