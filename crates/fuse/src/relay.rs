//! Between the kernel and fuser, on kernels that do not send again what was read and not answered: every request is read into
//! memory that others hold too, and stays there until it is answered.
//!
//! ```text
//!  kernel ──read(2) into a slot──► reader ──► socket ──► fuser, callbacks
//!     ▲                                                     │      │
//!     ├──────────── replier ◄──────── socket ◄──────────────┘      │
//!     │                └── the slot is free                        │
//!     └──────────────────── the bytes of a READ ◄──────────────────┘
//! ```
//!
//! A SIGKILL does not cut read(2) once it copies: either a request is in a slot, or the kernel has it still. That holds also for
//! what a thread takes that wakes up only to die. Nothing is between the two, so that nothing is lost.

use larder_core::format::LaterFormat;
use nix::sys::{
    mman::{MapFlags, ProtFlags, mmap, munmap},
    uio::writev,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::HashMap,
    ffi::c_void,
    fs::File,
    io::{self, IoSlice},
    num::NonZeroUsize,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

/// A page. Longer requests are those that would change something, of which a read-only mount gets none, and FORGETs, of which
/// nothing needs to be known.
const SLOT: usize = 4096;
/// Requests in flight at a time; further ones stay in the kernel. Memory is taken by those that were ever needed at once.
const SLOTS: usize = 1024;
/// The first slot of the file says that, and in which format, a journal is written: this above the number of the format.
const MARK: u32 = 0x4c4a_0000;
const FORMAT: u32 = 1;
const WHOLE: usize = (SLOTS + 1) * SLOT;
/// The kernel wants room for the longest write that it may send, which fuser says is 16 MiB, at every read.
const ROOM: usize = (16 << 20) + SLOT;
/// Of fuse_in_header.
const HEADER: usize = 40;
/// Longest listing that is asked of fuser: its answer must fit in a message of the socket.
const LISTING: u32 = 64 * 1024;
/// More than any answer that goes over the socket: an extended attribute of 64 KiB.
const ANSWER: usize = 128 * 1024;

/// Where in a slot an answer is, behind its length: the answer to an OPEN, which may not be made twice.
const KEPT: usize = SLOT / 2;

const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READDIR: u32 = 28;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const READDIRPLUS: u32 = 44;

/// Is there a journal in the file? One of a later format is an error: it has requests that somebody must answer.
pub(crate) fn is_written(file: &File) -> io::Result<bool> {
    let mut mark = [0; 4];
    let length = file.metadata()?.len();
    if length < mark.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut mark, 0)?;
    let Some(format) = u32::from_ne_bytes(mark).checked_sub(MARK).filter(|format| *format <= 0xffff) else { return Ok(false) };
    LaterFormat::refuse(format, FORMAT).map_err(io::Error::other)?;
    Ok(format == FORMAT && length == WHOLE as u64)
}

/// Answers a request of the kernel.
pub(crate) fn answer(connection: impl AsFd, id: u64, error: i32, bytes: &[u8]) -> io::Result<()> {
    // fuse_out_header: length, error, unique.
    let length = u32::try_from(16 + bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = [&length.to_ne_bytes()[..], &(-error).to_ne_bytes(), &id.to_ne_bytes()].concat();
    writev(connection, &[IoSlice::new(&header), IoSlice::new(bytes)]).map(drop).map_err(Into::into)
}

/// The threads of a relay.
pub(crate) struct Relay {
    reader: JoinHandle<io::Result<()>>,
    /// Requests that another process had read.
    pub(crate) found: usize,
}

impl Relay {
    /// Passes on what is in the file, and then whatever the connection has, to as many threads of fuser at the other end of the
    /// socket.
    pub(crate) fn start(file: &File, fuse: OwnedFd, socket: OwnedFd, threads: usize) -> io::Result<Self> {
        let (slots, left) = Slots::open(file)?;
        let ends = Arc::new(Ends { fuse, socket, slots });
        let (replier, reader) = (Arc::clone(&ends), ends);
        let found = left.len();
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        thread("fuse-replier").spawn(move || replier.pass_answers())?;
        let reader = thread("fuse-reader").spawn(move || {
            let ended = left.into_iter().try_for_each(|slot| reader.pass_again(slot)).and_then(|()| reader.pass_requests());
            // Each ends one thread of fuser's.
            let destroy = [HEADER as u32, DESTROY, 1, 0, 0, 0, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
            (0..threads).for_each(|_| drop(write(&reader.socket, &destroy)));
            ended
        })?;
        Ok(Self { reader, found })
    }

    /// How it ended; to be asked when fuser's threads have.
    pub(crate) fn ended(self) -> io::Result<()> {
        self.reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader of a connection panicked")))
    }
}

struct Ends {
    fuse: OwnedFd,
    socket: OwnedFd,
    slots: Slots,
}

impl Ends {
    /// Until the connection ends.
    fn pass_requests(&self) -> io::Result<()> {
        let mut rest = vec![0; ROOM - SLOT];
        loop {
            let slot = self.slots.free();
            match self.slots.read(slot, &self.fuse, &mut rest) {
                Ok(()) => self.pass(slot)?,
                Err(error) => {
                    self.slots.clear(slot);
                    match error.raw_os_error() {
                        // Interrupted: the request, or this thread.
                        Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                        Some(libc::ENODEV) => return Ok(()),
                        _ => return Err(error),
                    }
                }
            }
        }
    }

    /// An answer that was to be given is given, not made again: what it says may be over by now.
    fn pass_again(&self, slot: usize) -> io::Result<()> {
        let Some(answer) = self.slots.kept(slot) else { return self.pass(slot) };
        self.answer(&answer);
        self.slots.clear(slot);
        Ok(())
    }

    fn pass(&self, slot: usize) -> io::Result<()> {
        let Some(mut request) = self.slots.request(slot) else {
            // Longer than a slot.
            let id = self.slots.note(slot);
            let _ = answer(&self.fuse, id, libc::EROFS, &[]);
            self.slots.answered(id);
            return Ok(());
        };
        match word(&request, 4) {
            // They have no answer.
            FORGET | BATCH_FORGET => {
                self.slots.clear(slot);
                return Ok(());
            }
            READDIR | READDIRPLUS if word(&request, SIZE) > LISTING => {
                request[SIZE..SIZE + 4].copy_from_slice(&LISTING.to_ne_bytes());
            }
            _ => {}
        }
        self.slots.note(slot);
        write(&self.socket, &request)
    }

    /// Until fuser's end of the socket is closed.
    fn pass_answers(&self) {
        let mut answer = vec![0; ANSWER];
        loop {
            let length = match nix::unistd::read(&self.socket, &mut answer) {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            ANSWERING.iter().for_each(|step| step(self, &answer[..length]));
        }
    }

    fn keep(&self, answer: &[u8]) {
        self.slots.keep(answer);
    }

    fn answer(&self, answer: &[u8]) {
        // ENOENT: it was answered already, by this process or the one before; or who asked is gone.
        if let Err(error) = write(&self.fuse, answer)
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            tracing::debug!(%error, "answer a request");
        }
    }

    fn answered(&self, answer: &[u8]) {
        self.slots.answered(id(answer));
    }
}

/// What is done with an answer of fuser's. After a death between two of them, the next process answers as this one would have.
const ANSWERING: [fn(&Ends, &[u8]); 3] = [Ends::keep, Ends::answer, Ends::answered];

/// Of fuse_read_in, behind handle and offset.
const SIZE: usize = HEADER + 16;

/// The memory, and what is free in it. A slot is free if its first word, the request's length, is 0.
pub(crate) struct Slots {
    at: NonNull<c_void>,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    free: Vec<usize>,
    /// By the `unique` of the request that is in it.
    of: HashMap<u64, usize>,
}

// SAFETY: a slot is the reader's from when it is taken from `free` until it is in `of`, and the replier's from then on. Its two
// lengths are atomic, and the rest of the state is behind a lock.
unsafe impl Send for Slots {}
// SAFETY: the same.
unsafe impl Sync for Slots {}

impl Slots {
    /// Goes on with what is in the file, and says that there is something; gives the slots that are not free.
    pub(crate) fn open(file: &File) -> io::Result<(Self, Vec<usize>)> {
        if !is_written(file)? {
            file.set_len(0)?;
            file.set_len(WHOLE as u64)?;
            file.write_all_at(&(MARK | FORMAT).to_ne_bytes(), 0)?;
        }
        let length = NonZeroUsize::new(WHOLE).ok_or(io::ErrorKind::InvalidInput)?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new map at an address of the kernel's choice. It is memory that nobody cuts off as long as a process
        // writes it.
        let at = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, file, 0) }?;
        let slots = Self { at, state: Mutex::default(), freed: Condvar::new() };
        let (mut free, mut used) = (Vec::new(), Vec::new());
        // The low ones are used first. Looked at by read(2), one that was never used takes no memory.
        for slot in (1..=SLOTS).rev() {
            let mut length = [0; 4];
            file.read_exact_at(&mut length, (slot * SLOT) as u64)?;
            if length == [0; 4] { &mut free } else { &mut used }.push(slot);
        }
        slots.state.lock().free = free;
        Ok((slots, used))
    }

    /// Waits until there is one.
    fn free(&self) -> usize {
        let mut state = self.state.lock();
        loop {
            match state.free.pop() {
                Some(slot) => return slot,
                None => self.freed.wait(&mut state),
            }
        }
    }

    fn at(&self, slot: usize, offset: usize) -> *mut u8 {
        assert!((1..=SLOTS).contains(&slot) && offset < SLOT, "no slot {slot}");
        // SAFETY: within the map.
        unsafe { self.at.as_ptr().cast::<u8>().add(slot * SLOT + offset) }
    }

    fn word(&self, slot: usize, offset: usize) -> &AtomicU32 {
        // SAFETY: aligned, within the map, which lives as long as `self`; while it is borrowed the kernel does not write it.
        unsafe { AtomicU32::from_ptr(self.at(slot, offset).cast()) }
    }

    fn bytes(&self, slot: usize, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.min(SLOT - offset)];
        // SAFETY: within the slot, of which this thread is the only user.
        unsafe { self.at(slot, offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Reads one request into a slot that was free, and what has no room there into `rest`.
    fn read(&self, slot: usize, fuse: &OwnedFd, rest: &mut [u8]) -> io::Result<()> {
        // The page is there then, and the kernel need not fetch it for a process that is being killed.
        self.word(slot, 0).store(0, Ordering::Release);
        self.word(slot, KEPT).store(0, Ordering::Release);
        let parts = [
            libc::iovec { iov_base: self.at(slot, 0).cast(), iov_len: SLOT },
            libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
        ];
        // SAFETY: the first is a slot that this thread has taken, the other borrowed for the call.
        let length = unsafe { libc::readv(fuse.as_raw_fd(), parts.as_ptr(), 2) };
        match length {
            ..0 => Err(io::Error::last_os_error()),
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// What is in a slot. None: more than there is room for.
    fn request(&self, slot: usize) -> Option<Vec<u8>> {
        let length = self.word(slot, 0).load(Ordering::Acquire) as usize;
        (HEADER..=SLOT).contains(&length).then(|| self.bytes(slot, 0, length))
    }

    /// From now on it may be answered; gives its id.
    fn note(&self, slot: usize) -> u64 {
        let id = id(&self.bytes(slot, 0, HEADER));
        self.state.lock().of.insert(id, slot);
        id
    }

    /// Before it is given: the answer to an OPEN.
    fn keep(&self, answer: &[u8]) {
        let slot = self.state.lock().of.get(&id(answer)).copied();
        if let Some(slot) = slot
            && word(&self.bytes(slot, 0, HEADER), 4) == OPEN
            && answer.len() < SLOT - KEPT - 4
        {
            // SAFETY: within the slot, of which this thread is the only user.
            unsafe { self.at(slot, KEPT + 4).copy_from_nonoverlapping(answer.as_ptr(), answer.len()) };
            self.word(slot, KEPT).store(answer.len() as u32, Ordering::Release);
        }
    }

    fn kept(&self, slot: usize) -> Option<Vec<u8>> {
        if word(&self.bytes(slot, 0, HEADER), 4) != OPEN {
            return None;
        }
        let length = self.word(slot, KEPT).load(Ordering::Acquire) as usize;
        (length > 0).then(|| self.bytes(slot, KEPT + 4, length))
    }

    fn answered(&self, id: u64) {
        let slot = self.state.lock().of.remove(&id);
        slot.into_iter().for_each(|slot| self.clear(slot));
    }

    fn clear(&self, slot: usize) {
        self.word(slot, 0).store(0, Ordering::Release);
        self.state.lock().free.push(slot);
        self.freed.notify_one();
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and nothing of it is borrowed any more. It fails only for arguments that mmap
        // did not give.
        let _ = unsafe { munmap(self.at, WHOLE) };
    }
}

/// Whole messages only: that is how both sockets of this kind and the device take them.
pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    nix::unistd::write(fd, bytes).map(drop).map_err(Into::into)
}

fn word(message: &[u8], at: usize) -> u32 {
    message.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Of a request and of an answer, at the same place in both.
fn id(message: &[u8]) -> u64 {
    message.get(8..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    pub(super) fn request(operation: u32, id: u64, body: &[u8]) -> Vec<u8> {
        let length = (HEADER + body.len()) as u32;
        [&length.to_ne_bytes()[..], &operation.to_ne_bytes(), &id.to_ne_bytes(), &[0; 24], body].concat()
    }

    pub(super) fn read(fd: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER];
        let length = nix::unistd::read(fd, &mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn an_open_that_was_to_be_answered_is_not_made_again() {
        let file = crate::journal::file().unwrap();
        let (slots, _) = Slots::open(&file).unwrap();
        let answer = [&21u32.to_ne_bytes()[..], &[0; 4], &4u64.to_ne_bytes(), b"5 of it"].concat();
        for (id, operation) in [(2, OPEN), (4, OPEN), (6, READDIR)] {
            // As the kernel would.
            let (slot, message) = (slots.free(), request(operation, id, &[]));
            file.write_all_at(&message, (slot * SLOT) as u64).unwrap();
            slots.note(slot);
        }
        slots.keep(&answer);
        drop(slots);
        let ((kernel, fuse), (fuser, socket)) = (pair(), pair());
        let relay = Relay::start(&file, fuse, socket, 1).unwrap();
        assert_eq!(relay.found, 3);
        assert_eq!(read(&kernel), answer);
        let mut again = [id(&read(&fuser)), id(&read(&fuser))];
        again.sort_unstable();
        assert_eq!(again, [2, 6]);
    }

    #[test]
    fn what_is_not_answered_is_in_the_file() {
        let file = crate::journal::file().unwrap();
        // Sockets as the connection and as fuser's.
        let ((kernel, fuse), (fuser, socket)) = (pair(), pair());
        let relay = Relay::start(&file, fuse, socket, 1).unwrap();
        let listing = [&[0; 16][..], &(1u32 << 20).to_ne_bytes(), &[0; 20]].concat();
        for message in [request(BATCH_FORGET, 2, &[0; 8]), request(1, 4, b"name\0"), request(READDIR, 6, &listing)] {
            write(&kernel, &message).unwrap();
        }
        assert_eq!(read(&fuser), request(1, 4, b"name\0"));
        let cut = read(&fuser);
        assert_eq!((id(&cut), word(&cut, SIZE)), (6, LISTING));
        answer(&fuser, 4, 0, b"found").unwrap();
        assert_eq!(read(&kernel)[16..], *b"found");
        // As another process finds it, soon after.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let (found, left) = loop {
            let (found, left) = Slots::open(&file).unwrap();
            if left.len() == 1 {
                break (found, left);
            }
            assert!(std::time::Instant::now() < deadline, "{left:?}");
            thread::yield_now();
        };
        assert_eq!(found.request(left[0]).unwrap(), request(READDIR, 6, &listing), "as the kernel sent it");
        // The connection ends: so do fuser's threads.
        drop(kernel);
        assert_eq!(word(&read(&fuser), 4), DESTROY);
        assert_eq!(relay.ended().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
