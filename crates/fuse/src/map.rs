//! A read-only shared map of a file, for the tests and benchmarks of mounts. The daemons map nothing: a disk that fails must be an
//! error, not a SIGBUS.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::{ffi::c_void, fs::File, io, num::NonZeroUsize, ops::Deref, ptr::NonNull};

/// The first bytes of a file.
#[derive(Debug)]
pub struct Map {
    at: NonNull<c_void>,
    len: usize,
}

impl Map {
    /// Maps the first `len` bytes, which must be more than none and which nobody may cut off while the map is there.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new map at an address of the kernel's choice.
        let at = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { at, len })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped readable with this length until it is dropped.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; slices of it borrow this and are gone.
        // It fails only for arguments that mmap did not give.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_map_shows_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"larder").unwrap();
        assert_eq!(&*Map::new(&file, 6).unwrap(), b"larder");
        assert!(Map::new(&file, 0).is_err());
    }
}
