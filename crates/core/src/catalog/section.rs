//! One section in memory, and the sections of all open catalogs.

use super::format::{ENTRY, u32_at, u64_at};
use arc_swap::{ArcSwapOption, Guard};
use std::sync::{Arc, LazyLock};

pub(super) const KIND_DIR: u8 = 1;
pub(super) const KIND_FILE: u8 = 2;

/// File or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file.
    File,
}

/// One file or folder.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Position of the folder it lies in; the root's is 0.
    pub parent: u64,
    /// File or folder.
    pub kind: Kind,
    a: u64,
    b: i64,
}

impl Entry {
    /// Bytes of a file; 0 of a folder.
    #[must_use]
    pub fn size(&self) -> u64 {
        if self.kind == Kind::File { self.a } else { 0 }
    }
    /// Nanoseconds since 1970; 0 of a folder.
    #[must_use]
    pub fn mtime_ns(&self) -> i64 {
        if self.kind == Kind::File { self.b } else { 0 }
    }
    /// How many folders come before this one.
    pub(super) fn rank(&self) -> Option<u64> {
        (self.kind == Kind::Dir).then_some(self.a)
    }
}

/// A verified section: entries with their strings, or where the children of folders begin.
pub(super) struct Section {
    catalog: u64,
    number: u64,
    entries: usize,
    bytes: Box<[u8]>,
}

impl Section {
    /// `None`: what it says cannot be, although its checksum is right. `first` is the position of the first entry.
    pub fn of_entries(catalog: u64, number: u64, bytes: Vec<u8>, entries: usize, first: u64) -> Option<Self> {
        let section = Self { catalog, number, entries, bytes: bytes.into() };
        let strings = section.bytes.get(entries * ENTRY..)?;
        // All at once: cheaper than name by name.
        let text = std::str::from_utf8(strings).ok().filter(|text| !text.contains('\0'))?;
        let slashes = text.contains('/');
        let sound = (0..entries).all(|slot| {
            let (from, name, version, kind) = section.fields(slot);
            let Some(name) = text.get(from..from + name).filter(|_| text.get(from + name..from + name + version).is_some())
            else {
                return false;
            };
            // Only the root has no name.
            let is_name = if name.is_empty() { first + slot as u64 == 0 } else { !matches!(name, "." | "..") };
            is_name && matches!(kind, KIND_DIR | KIND_FILE) && !(slashes && name.contains('/'))
        });
        sound.then_some(section)
    }

    pub fn of_folders(catalog: u64, number: u64, bytes: Vec<u8>, folders: usize) -> Option<Self> {
        (bytes.len() == (folders + 1) * 8).then(|| Self { catalog, number, entries: 0, bytes: bytes.into() })
    }

    /// The entry in this place; MUST be one of its entries, like everywhere here.
    pub fn entry(&self, slot: usize) -> Entry {
        let e = &self.bytes[slot * ENTRY..][..ENTRY];
        let kind = if self.fields(slot).3 == KIND_DIR { Kind::Dir } else { Kind::File };
        Entry { parent: u64_at(e, 0), kind, a: u64_at(e, 8), b: u64_at(e, 16).cast_signed() }
    }

    pub fn name(&self, slot: usize) -> &[u8] {
        let (from, name, ..) = self.fields(slot);
        &self.bytes[self.entries * ENTRY + from..][..name]
    }

    pub fn version(&self, slot: usize) -> &[u8] {
        let (from, name, version, _) = self.fields(slot);
        &self.bytes[self.entries * ENTRY + from + name..][..version]
    }

    /// Where the children of a folder begin, and where they end.
    pub fn children(&self, slot: usize) -> (u64, u64) {
        (u64_at(&self.bytes, slot * 8), u64_at(&self.bytes, slot * 8 + 8))
    }

    /// Offset of the strings, length of name and version, kind.
    fn fields(&self, slot: usize) -> (usize, usize, usize, u8) {
        let e = &self.bytes[slot * ENTRY..][..ENTRY];
        (u32_at(e, 24) as usize, usize::from(e[28]), usize::from(e[29]), e[30])
    }
}

/// Sections in memory, all catalogs of the process together: at 5 to 7 KiB for one this is about 12 MiB, and never more than
/// 70 MiB.
const SLOTS: usize = 2048;

static SECTIONS: LazyLock<Box<[ArcSwapOption<Section>]>> =
    LazyLock::new(|| (0..SLOTS).map(|_| ArcSwapOption::empty()).collect());

/// A section that stays in memory as long as this is held.
pub(super) struct Held(Guard<Option<Arc<Section>>>);

impl Held {
    pub fn get(&self) -> Option<&Section> {
        self.0.as_deref()
    }
}

/// The section, if it is in memory. No lock, and no memory that threads would write to in turn.
pub(super) fn cached(catalog: u64, number: u64) -> Option<Held> {
    let held = Held(slot(catalog, number).load());
    held.get().is_some_and(|s| s.catalog == catalog && s.number == number).then_some(held)
}

/// The same for longer.
pub(super) fn cached_arc(catalog: u64, number: u64) -> Option<Arc<Section>> {
    cached(catalog, number).and_then(|held| Guard::into_inner(held.0))
}

pub(super) fn keep(section: Arc<Section>) {
    slot(section.catalog, section.number).store(Some(section));
}

/// Neighbours get neighbouring slots: a folder that is read from front to back throws nothing of its own out.
fn slot(catalog: u64, number: u64) -> &'static ArcSwapOption<Section> {
    let at = catalog.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(16).wrapping_add(number);
    &SECTIONS[(at % SLOTS as u64) as usize]
}
