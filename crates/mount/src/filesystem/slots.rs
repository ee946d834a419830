//! What of a passthrough mount must outlive the process: its open handles and its backing files, in a memory file that others
//! hold too.
//!
//! One slot of 32 bytes for each, written at once by pwrite(2), which no signal cuts in two: whenever the process is killed,
//! every slot is as it was before or as it is after. There is one writer at a time.

use larder_core::format::LaterFormat;
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use std::{fs::File, io, os::unix::fs::FileExt as _};

const SIZE: usize = 32;

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A handle by which the kernel reads a backing file itself.
    Passthrough {
        /// As the kernel was told.
        handle: u64,
        /// What is open.
        inode: u64,
        /// The backing file.
        id: u32,
    },
    /// A handle whose reads are ours.
    Cached {
        /// As the kernel was told.
        handle: u64,
        /// What is open.
        inode: u64,
    },
    /// A backing file is registered, in use or not.
    Backing {
        /// Which.
        id: u32,
    },
    /// No backing file has had a higher number: they are given in order.
    Highest {
        /// Which.
        id: u32,
    },
}

const FREE: u32 = 0;
const PASSTHROUGH: u32 = 1;
const CACHED: u32 = 2;
const BACKING: u32 = 3;
const HIGHEST: u32 = 4;

impl Entry {
    /// `[handle: u64][inode: u64][id: u32][kind: u32][8 bytes 0]`, little-endian.
    fn encode(self) -> [u8; SIZE] {
        let (handle, inode, id, kind) = match self {
            Self::Passthrough { handle, inode, id } => (handle, inode, id, PASSTHROUGH),
            Self::Cached { handle, inode } => (handle, inode, 0, CACHED),
            Self::Backing { id } => (0, 0, id, BACKING),
            Self::Highest { id } => (0, 0, id, HIGHEST),
        };
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&handle.to_le_bytes());
        bytes[8..16].copy_from_slice(&inode.to_le_bytes());
        bytes[16..20].copy_from_slice(&id.to_le_bytes());
        bytes[20..24].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    /// None: nothing. What only a later release knows is not nothing: it must be neither forgotten nor written over.
    fn decode(bytes: &[u8; SIZE]) -> Result<Option<Self>, LaterFormat> {
        let [h0, h1, h2, h3, h4, h5, h6, h7, i0, i1, i2, i3, i4, i5, i6, i7, b0, b1, b2, b3, k0, k1, k2, k3, ..] = *bytes;
        let handle = u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7]);
        let inode = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let id = u32::from_le_bytes([b0, b1, b2, b3]);
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        LaterFormat::refuse(kind, HIGHEST)?;
        Ok(match kind {
            PASSTHROUGH => Some(Self::Passthrough { handle, inode, id }),
            CACHED => Some(Self::Cached { handle, inode }),
            BACKING => Some(Self::Backing { id }),
            HIGHEST => Some(Self::Highest { id }),
            _ => None,
        })
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// The file and what is free in it.
#[derive(Debug)]
pub(super) struct Slots {
    file: File,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    within: Vec<u32>,
    /// Slots there are.
    end: u32,
}

impl Slots {
    /// A file in memory, empty.
    pub(super) fn file() -> io::Result<File> {
        Ok(memfd_create("larder-opens", MFdFlags::MFD_CLOEXEC)?.into())
    }

    /// Goes on with what another process has left in the file. An entry of a later release is an error.
    pub(super) fn load(file: File) -> io::Result<(Self, Vec<(Slot, Entry)>)> {
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        let (mut free, mut found) = (Free::default(), Vec::new());
        for bytes in bytes.as_chunks::<SIZE>().0 {
            match Entry::decode(bytes).map_err(io::Error::other)? {
                Some(entry) => found.push((Slot(free.end), entry)),
                None => free.within.push(free.end),
            }
            free.end += 1;
        }
        Ok((Self { file, free: Mutex::new(free) }, found))
    }

    /// When this returns, whoever comes after this process knows of it.
    pub(super) fn write(&self, entry: Entry) -> io::Result<Slot> {
        let slot = {
            let mut free = self.free.lock();
            free.within.pop().unwrap_or_else(|| {
                free.end += 1;
                free.end - 1
            })
        };
        let written = self.put(slot, &entry.encode());
        if written.is_err() {
            self.free.lock().within.push(slot);
        }
        written.map(|()| Slot(slot))
    }

    /// In place of what is there.
    pub(super) fn replace(&self, slot: Slot, entry: Entry) -> io::Result<()> {
        self.put(slot.0, &entry.encode())
    }

    pub(super) fn clear(&self, slot: Slot) -> io::Result<()> {
        self.put(slot.0, &[FREE as u8; SIZE])?;
        self.free.lock().within.push(slot.0);
        Ok(())
    }

    fn put(&self, slot: u32, bytes: &[u8; SIZE]) -> io::Result<()> {
        #[cfg(test)]
        if death::strikes() {
            return Ok(());
        }
        self.file.write_all_at(bytes, u64::from(slot) * SIZE as u64)
    }
}

/// The process is killed before one of its writes: what this thread does after that has no effect.
#[cfg(test)]
pub(super) mod death {
    use std::cell::Cell;

    thread_local! {
        /// Writes until then.
        static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    pub(in super::super) fn after(writes: u32) {
        LEFT.set(writes);
    }

    pub(in super::super) fn has_struck() -> bool {
        LEFT.get() == 0
    }

    pub(super) fn strikes() -> bool {
        LEFT.set(LEFT.get().saturating_sub(1));
        has_struck()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_finds_what_was_written_and_not_cleared() {
        let file = Slots::file().unwrap();
        let (slots, found) = Slots::load(file.try_clone().unwrap()).unwrap();
        assert!(found.is_empty());
        let entries = [
            Entry::Passthrough { handle: u64::MAX >> 1, inode: 7, id: 3 },
            Entry::Cached { handle: 4, inode: 8 },
            Entry::Backing { id: 3 },
        ];
        let at: Vec<Slot> = entries.iter().map(|entry| slots.write(*entry).unwrap()).collect();
        slots.clear(at[1]).unwrap();
        drop(slots);
        let (slots, found) = Slots::load(file.try_clone().unwrap()).unwrap();
        assert_eq!(found, [(at[0], entries[0]), (at[2], entries[2])]);
        assert_eq!(slots.write(entries[1]).unwrap(), at[1], "what is free is used again");
        slots.replace(at[2], Entry::Highest { id: 9 }).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3 * SIZE as u64);
        assert_eq!(Slots::load(file).unwrap().1[2], (at[2], Entry::Highest { id: 9 }));
    }

    #[test]
    fn an_entry_that_only_a_later_release_knows_is_refused_and_stays() {
        let file = Slots::file().unwrap();
        let (slots, _) = Slots::load(file.try_clone().unwrap()).unwrap();
        slots.write(Entry::Cached { handle: 4, inode: 8 }).unwrap();
        let mut later = Entry::Cached { handle: 6, inode: 9 }.encode();
        later[20] = 5;
        file.write_all_at(&later, SIZE as u64).unwrap();
        let told = Slots::load(file.try_clone().unwrap()).unwrap_err().to_string();
        assert!(told.contains("format 5") && told.contains("up to 4"), "{told}");
        let mut found = [0; SIZE];
        file.read_exact_at(&mut found, SIZE as u64).unwrap();
        assert_eq!(found, later);
        // What there is room for in an entry is no format.
        later[20] = 2;
        later[24] = 1;
        file.write_all_at(&later, SIZE as u64).unwrap();
        assert_eq!(Slots::load(file).unwrap().1[1].1, Entry::Cached { handle: 6, inode: 9 });
    }
}
