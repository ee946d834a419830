//! The catalog: file format of a snapshot.
//!
//! ```text
//! 0      header, 4096 bytes: magic, version, counts, how large the files are, hashes of body and table; its own CRC at the end
//! 4096   body: the origin, then sections, one behind the other as they were finished
//!          entry section: 64 entries of 32 bytes and their names and versions. The children of a folder are contiguous and
//!                         sorted by name, folders come before what is in them; entry 0 is the root
//!          folder section: where the children of 512 folders begin
//! ...    table: offset, length and CRC-32C of each section, entry sections first
//! ```
//!
//! All numbers are little-endian. Position in the file + 1 = inode number, so a nodeid means the same in every process and
//! after every restart. Readdir is a slice; lookup is a binary search whose last six steps lie in one section, because entries
//! and their names lie together. The file is read by pread through a cache of sections, never mapped: a failing disk must
//! be an error, not a SIGBUS. A section is verified each time it is loaded.
//!
//! The digest that names a snapshot is BLAKE3 of the header, which holds the BLAKE3 of everything else: whether a file is
//! the one that its name says is seen from a few pages, whatever its size. Equal listings give equal files, and the file is
//! written in one pass, front to back.

mod arrival;
mod build;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod read;
mod record;
mod section;
mod sizes;
mod tree;
mod write;

pub use arrival::Arrival;
pub use build::{Builder, Skipped};
pub use format::VERSION;
pub use read::{Catalog, CatalogError, ReadAt, Scan, Scanned};
pub use record::{Listed, Record, Records};
pub use section::{Entry, Kind};
pub use sizes::{SizeClass, Sizes};
pub use tree::{Queue, Tree};
pub use write::{Writer, Written};

/// Longest name a directory entry may have on Linux.
pub const NAME_MAX: usize = 255;
/// Longest path: what PATH_MAX leaves for it, the final NUL taken off.
pub const PATH_MAX: usize = 4095;
/// Longest version (ETag); those of Amazon have 34 to 40 bytes.
pub const VERSION_MAX: usize = 255;
/// Largest file: twenty times the largest object of any store. A size beyond that is a mistake of the origin, and what is kept of each chunk
/// of such a file would fill the memory.
pub const SIZE_MAX: u64 = 1 << 50;

/// Names the snapshot that this catalog file holds, 64 hex digits. What is no catalog has a digest that none has.
#[must_use]
pub fn digest(file: &[u8]) -> String {
    blake3::hash(&file[..file.len().min(format::HEADER as usize)]).to_hex().to_string()
}

#[cfg(test)]
mod tests;
