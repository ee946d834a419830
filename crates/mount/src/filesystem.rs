//! A snapshot as a file system.
//!
//! Everything but `read` is answered from the catalog in the FUSE thread that got the request. `read` is answered there too
//! when the local file is open already; else in a task, so that a slow network never holds a FUSE thread. How files are
//! opened is in [`opens`].

mod attributes;
mod failures;
mod listing;
mod opens;
mod read;
mod slots;

pub use attributes::Look;

use crate::{backend::Backend, error::FsError, metrics::ReadCounters, passthrough::Backings};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use larder_core::catalog::{Catalog, Kind, NAME_MAX};
use larder_fuse::{
    journal::{self, Data, Journal},
    protocol::mounter::Mode,
    session,
};
use opens::OpenTable;
use read::Reader;
use slots::Slots;
use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

/// How long the kernel may believe names and attributes. A snapshot never changes: any time is right; a day bounds how long a
/// mistake of ours could live.
const TTL: Duration = Duration::from_secs(24 * 3600);
const GENERATION: Generation = Generation(0);
/// Read-ahead requests in flight. The kernel's default of 12 is too few to keep several peers busy.
const MAX_BACKGROUND: u16 = 64;
const BLOCK: u32 = 4096;

/// One mounted snapshot.
pub struct DatasetFs<B> {
    identity: Arc<str>,
    catalog: Arc<Catalog<File>>,
    look: Look,
    reader: Arc<Reader<B>>,
    opening: Opening,
    runtime: tokio::runtime::Handle,
    /// On a passthrough mount.
    opens: Option<Arc<OpenTable>>,
    /// Of the connection, if it is written.
    journal: Option<Arc<Journal>>,
}

/// How files are to be opened.
#[derive(Clone, Default)]
pub struct Opening {
    /// What the user wants.
    pub wanted: Mode,
    /// Without, there is no passthrough.
    pub backings: Option<Arc<dyn Backings>>,
    /// What is open on a passthrough mount, noted for the next process: a file of [`Opening::table`], or one that another
    /// process has left. Without, one that goes with this process.
    pub table: Option<Arc<File>>,
    /// Where what is in flight may be for the next process. Without, the kernel must send it again.
    pub journal: Option<Arc<Journal>>,
    /// What comes of it.
    pub outcome: Arc<Outcome>,
}

impl Opening {
    /// A new file for what will be open.
    ///
    /// # Errors
    /// Out of memory or descriptors.
    pub fn table() -> io::Result<File> {
        Slots::file()
    }

    /// Could a process of this release go on with such a file?
    ///
    /// # Errors
    /// A later release has written what this one does not know.
    pub(crate) fn check_table(file: File) -> io::Result<()> {
        Slots::load(file).map(drop)
    }

    /// A new file for [`Opening::journal`].
    ///
    /// # Errors
    /// The same.
    pub fn journal() -> io::Result<File> {
        journal::file()
    }
}

/// What came of how files were to be opened. Each is set at most once.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Set when the kernel's INIT has been answered; never to `Auto`.
    pub mode: OnceLock<Mode>,
    /// Does this kernel offer passthrough? Set with the mode.
    pub kernel_can: OnceLock<bool>,
    /// Why the local files of a passthrough mount are read through the mounter all the same.
    pub refused: OnceLock<String>,
}

impl<B: Backend> DatasetFs<B> {
    /// `catalog` has been verified; reads and opens that must wait run on `runtime`.
    #[must_use]
    pub fn new(
        identity: &str,
        catalog: Arc<Catalog<File>>,
        look: Look,
        backend: B,
        reads: ReadCounters,
        opening: Opening,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let identity: Arc<str> = identity.into();
        let reader = Arc::new(Reader::new(Arc::clone(&identity), backend, reads, runtime.clone()));
        Self { identity, catalog, look, reader, opening, runtime, opens: None, journal: None }
    }

    /// Prepares for the mode that was agreed on with the kernel.
    fn take_mode(&mut self, mode: Mode) -> io::Result<()> {
        if let (Mode::Passthrough, Some(backings)) = (mode, self.opening.backings.clone()) {
            let _runtime = self.runtime.enter();
            let file = self.opening.table.as_ref().map_or_else(Slots::file, |file| file.try_clone())?;
            self.opens = Some(OpenTable::start(backings, Arc::clone(&self.opening.outcome), file)?);
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, inode: INodeNo, error: &FsError) -> Errno {
        error.handled(&self.identity, operation, inode.0)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Option<fuser::FileAttr>, FsError> {
        let dir = self.folder(parent)?;
        // The kernel lets FUSE file systems have longer names.
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        // Names in a catalog are UTF-8: any other name is not there.
        let Some(name) = name.to_str() else { return Ok(None) };
        let Some(index) = self.catalog.lookup(dir, name)? else { return Ok(None) };
        Ok(Some(self.look.attributes(index, &self.catalog.entry(index)?)))
    }

    fn attributes(&self, inode: INodeNo) -> Result<fuser::FileAttr, FsError> {
        let index = self.index(inode)?;
        Ok(self.look.attributes(index, &self.catalog.entry(index)?))
    }

    fn index(&self, inode: INodeNo) -> Result<u64, FsError> {
        inode.0.checked_sub(1).filter(|i| *i < self.catalog.entries()).ok_or(FsError::NotFound)
    }

    fn folder(&self, inode: INodeNo) -> Result<u64, FsError> {
        let index = self.index(inode)?;
        match self.catalog.entry(index)?.kind {
            Kind::Dir => Ok(index),
            Kind::File => Err(FsError::NotAFolder),
        }
    }

    /// Position and size.
    fn file(&self, inode: INodeNo) -> Result<(u64, u64), FsError> {
        let index = self.index(inode)?;
        let entry = self.catalog.entry(index)?;
        match entry.kind {
            Kind::File => Ok((index, entry.size())),
            Kind::Dir => Err(FsError::NotAFile),
        }
    }

    /// Size of a file that may be opened in this way.
    fn open_file(&self, inode: INodeNo, flags: OpenFlags) -> Result<u64, FsError> {
        let (_, size) = self.file(inode)?;
        if flags.acc_mode() == OpenAccMode::O_RDONLY { Ok(size) } else { Err(FsError::ReadOnly) }
    }

    /// Opens at once what is or was open, else in a task: the local file is the worker's to give.
    fn open_in_table(&self, table: &Arc<OpenTable>, inode: u64, size: u64, handle: u64, reply: ReplyOpen) {
        if let Some(way) = table.again(inode, size, handle) {
            return way.reply(handle, reply);
        }
        let (table, reader, identity) = (Arc::clone(table), Arc::clone(&self.reader), Arc::clone(&self.identity));
        self.runtime.spawn(async move {
            table.open(inode, handle, reader.local_file(inode, size), &identity).await.reply(handle, reply);
        });
    }

    /// Names of the attributes that tell where a file's content comes from.
    const KEY: &'static str = "user.larder.key";
    const ETAG: &'static str = "user.larder.etag";

    fn attribute(&self, inode: INodeNo, name: &OsStr) -> Result<Vec<u8>, FsError> {
        let name = name.to_str().unwrap_or_default();
        if !name.starts_with("user.") {
            return Err(FsError::AttributeKind);
        }
        match (self.file(inode), name) {
            (Ok((index, _)), Self::KEY) => Ok(self.catalog.object_key(index)?.to_string().into_bytes()),
            (Ok((index, _)), Self::ETAG) => Ok(self.catalog.version(index)?.into_bytes()),
            (Ok(_) | Err(FsError::NotAFile), _) => Err(FsError::NoAttribute),
            (Err(e), _) => Err(e),
        }
    }

    fn attribute_names(&self, inode: INodeNo) -> Result<Vec<u8>, FsError> {
        match self.file(inode) {
            Ok(_) => Ok(format!("{}\0{}\0", Self::ETAG, Self::KEY).into_bytes()),
            Err(FsError::NotAFile) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn reply_attribute(
        &self,
        operation: &'static str,
        inode: INodeNo,
        value: Result<Vec<u8>, FsError>,
        size: u32,
        reply: ReplyXattr,
    ) {
        let size = size as usize;
        match value {
            Ok(v) if size == 0 => reply.size(u32::try_from(v.len()).unwrap_or(u32::MAX)),
            Ok(v) if v.len() <= size => reply.data(&v),
            Ok(_) => reply.error(self.failed(operation, inode, &FsError::AttributeSize)),
            Err(e) => reply.error(self.failed(operation, inode, &e)),
        }
    }

    fn read_only(&self, operation: &'static str, inode: INodeNo) -> Errno {
        self.failed(operation, inode, &FsError::ReadOnly)
    }
}

/// What INIT is answered, and the mode that comes of it. All that ever serve a mount must answer the same.
fn agree(identity: &str, wanted: Mode, config: &mut KernelConfig) -> Mode {
    // Each is an optimisation that old kernels do without. Not FUSE_READDIRPLUS_AUTO: with it a folder that is read to its end before
    // its files are looked at (`find`, `ls -l`) costs a lookup for each of them but the first two hundred.
    for wanted in [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_PARALLEL_DIROPS] {
        if config.add_capabilities(wanted).is_err() {
            tracing::debug!(identity, ?wanted, "kernel does not offer this");
        }
    }
    if config.set_max_background(MAX_BACKGROUND).is_err() {
        tracing::debug!(identity, "kernel refused the number of background requests");
    }
    // Asked for only when it is used: a connection with it refuses other things. 1 lets the mount lie beneath an overlay; files that
    // lie on one themselves cannot be backing files then.
    let passthrough = wanted == Mode::Passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok();
    if passthrough { Mode::Passthrough } else { Mode::NoOpen }
}

/// Answers INIT as the [`DatasetFs`] of a mount would, and nothing else: for who has to know whether it could go on with it.
pub(crate) struct Greeting {
    identity: String,
    wanted: Mode,
}

impl Greeting {
    pub(crate) fn new(identity: &str, wanted: Mode, catalog: &Catalog<File>) -> Self {
        Self { identity: identity.to_owned(), wanted: opens::resolve(wanted, catalog) }
    }
}

impl Filesystem for Greeting {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        agree(&self.identity, self.wanted, config);
        Ok(())
    }
}

impl<B: Backend> Filesystem for DatasetFs<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offers = config.capabilities();
        let journal = self.opening.journal.clone();
        self.journal = journal.filter(|journal| journal.choose(offers.contains(InitFlags::FUSE_HAS_RESEND)));
        let can = self.opening.backings.is_some();
        let wanted = if can { opens::resolve(self.opening.wanted, &self.catalog) } else { Mode::NoOpen };
        let mode = agree(&self.identity, wanted, config);
        self.take_mode(mode)?;
        // A session answers INIT once.
        let outcome = &self.opening.outcome;
        let _ = (outcome.kernel_can.set(offers.contains(InitFlags::FUSE_PASSTHROUGH)), outcome.mode.set(mode));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(Some(attr)) => reply.entry(&TTL, &attr, GENERATION),
            // Inode 0 with a time to live: the kernel remembers that the name is not there.
            Ok(None) => reply.entry(&TTL, &Look::nothing(), GENERATION),
            Err(e) => reply.error(self.failed("lookup", parent, &e)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(self.failed("getattr", ino, &e)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match (self.open_file(ino, flags), &self.opens) {
            (Ok(size), Some(table)) => self.open_in_table(table, ino.0, size, session::unique(request), reply),
            // Told once, the kernel opens and closes without us from then on, and keeps the page cache.
            (Ok(_), None) => reply.error(Errno::ENOSYS),
            (Err(e), _) => reply.error(self.failed("open", ino, &e)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(table) = &self.opens {
            table.release(ino.0, handle.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = Data::new(request, reply, self.journal.as_ref());
        match self.file(ino) {
            Ok((index, file_size)) => self.reader.read(&self.catalog, index, file_size, offset, size, reply),
            Err(e) => reply.error(self.failed("read", ino, &e)),
        }
    }

    // Told once, the kernel closes files without asking. On a mount without opens nothing else would tell it.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.folder(ino) {
            // Always asked, so that the listing of a mount whose mounter is gone is an error and not what the kernel remembers.
            Ok(_) => reply.opened(FileHandle(ino.0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(e) => reply.error(self.failed("opendir", ino, &e)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result =
            self.list(ino, offset, |e| reply.add(INodeNo(e.index + 1), e.next, attributes::file_type(e.entry.kind), e.name));
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.failed("readdir", ino, &e)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let result = self.list(ino, offset, |e| {
            let attr = self.look.attributes(e.index, &e.entry);
            reply.add(attr.ino, e.next, e.name, &TTL, &attr, GENERATION)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.failed("readdirplus", ino, &e)),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.catalog.bytes().div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, self.catalog.entries(), 0, BLOCK, NAME_MAX as u32, BLOCK);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.reply_attribute("getxattr", ino, self.attribute(ino, name), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.reply_attribute("listxattr", ino, self.attribute_names(ino), size, reply);
    }

    // Not asked with default_permissions; a kernel that asks all the same gets the mode bits' answer from its own check.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    // There are no links in a snapshot.
    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    // ENOSYS, told once, makes the kernel answer from the size alone: no holes.
    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(self.failed("lseek", ino, &FsError::Unsupported));
    }

    fn ioctl(&self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _: u32, _: &[u8], _: u32, reply: ReplyIoctl) {
        reply.error(Errno::ENOTTY);
    }

    // What follows would change the dataset. The mount is read-only, so that the kernel refuses first; this is the second lock.

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(self.read_only("setattr", ino));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.read_only("mknod", parent));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.read_only("mkdir", parent));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.read_only("unlink", parent));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.read_only("rmdir", parent));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.read_only("symlink", parent));
    }

    fn rename(&self, _: &Request, parent: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(self.read_only("rename", parent));
    }

    fn link(&self, _: &Request, ino: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.read_only("link", ino));
    }

    fn create(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(self.read_only("create", parent));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(self.read_only("write", ino));
    }

    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(self.read_only("fallocate", ino));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(self.read_only("copy_file_range", ino));
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(self.read_only("setxattr", ino));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.read_only("removexattr", ino));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Fetched;
    use larder_core::{
        catalog::{Builder, Listed},
        key::ObjectKey,
    };
    use std::io::Write as _;

    struct NoBackend;

    impl Backend for NoBackend {
        fn known_file(&self, _: u64) -> Option<Arc<File>> {
            None
        }
        async fn find_file(&self, _: u64) -> Option<Arc<File>> {
            None
        }
        fn reject_file(&self, _: u64) {}
        async fn fetch(
            &self,
            _: u64,
            _: ObjectKey,
            _: std::ops::Range<u64>,
            _: tokio::time::Instant,
        ) -> Result<Fetched, larder_peer::ReadError> {
            unreachable!("nothing is read")
        }
    }

    fn mk_fs(runtime: &tokio::runtime::Runtime) -> DatasetFs<NoBackend> {
        let mut builder = Builder::new("s3://b/");
        builder.push(Listed { path: "d/f".into(), size: 3, mtime_ns: 0, version: "\"etag\"".into() });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.finish().0).unwrap();
        let look = Look { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
        let catalog = Arc::new(Catalog::open(file).unwrap());
        let opening = Opening::default();
        DatasetFs::new("test", catalog, look, NoBackend, ReadCounters::default(), opening, runtime.handle().clone())
    }

    #[test]
    fn attributes_tell_key_and_etag_of_files() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fs = mk_fs(&runtime);
        let dir = fs.find(INodeNo::ROOT, OsStr::new("d")).unwrap().unwrap().ino;
        let file = fs.find(dir, OsStr::new("f")).unwrap().unwrap().ino;
        let get = |ino, name| fs.attribute(ino, OsStr::new(name));
        let key = ObjectKey::new("s3://b/", "d/f", "\"etag\"", 3).to_string();
        assert_eq!(get(file, "user.larder.key").unwrap(), key.as_bytes());
        assert_eq!(get(file, "user.larder.etag").unwrap(), b"\"etag\"");
        assert_eq!(fs.attribute_names(file).unwrap(), b"user.larder.etag\0user.larder.key\0");
        assert!(fs.attribute_names(dir).unwrap().is_empty());
        assert!(matches!(get(file, "user.other"), Err(FsError::NoAttribute)));
        assert!(matches!(get(dir, "user.larder.key"), Err(FsError::NoAttribute)));
        for name in ["security.selinux", "system.posix_acl_access", "trusted.x"] {
            assert!(matches!(get(file, name), Err(FsError::AttributeKind)), "{name}");
        }
    }

    #[test]
    fn a_listing_goes_on_wherever_it_was_cut() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fs = mk_fs(&runtime);
        let dir = fs.find(INodeNo::ROOT, OsStr::new("d")).unwrap().unwrap().ino;
        for (folder, expected) in [(INodeNo::ROOT, [".", "..", "d"]), (dir, [".", "..", "f"])] {
            // One name at a time.
            let (mut names, mut offset) = (Vec::new(), 0);
            loop {
                let mut got = None;
                fs.list(folder, offset, |child| {
                    let full = got.is_some();
                    if !full {
                        got = Some((child.name.to_owned(), child.next));
                    }
                    full
                })
                .unwrap();
                let Some((name, next)) = got else { break };
                names.push(name);
                offset = next;
            }
            assert_eq!(names, expected);
        }
        fs.list(INodeNo::ROOT, u64::MAX, |_| panic!("behind the end")).unwrap();
    }

    #[test]
    fn inodes_that_do_not_exist_are_errors_and_not_panics() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fs = mk_fs(&runtime);
        for ino in [0, 4, u64::MAX] {
            assert!(matches!(fs.attributes(INodeNo(ino)), Err(FsError::NotFound)), "{ino}");
            assert!(matches!(fs.find(INodeNo(ino), OsStr::new("x")), Err(FsError::NotFound)), "{ino}");
        }
    }
}
