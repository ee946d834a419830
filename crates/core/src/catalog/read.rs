//! Catalog file → entries, names, lookups.

use super::{
    arrival::Arrival,
    format::{ENTRIES, FOLDERS, HEADER, Header, ROW, Row, SECTION_MAX, crc32c},
    section::{self, Entry, Kind, Section},
    sizes::Sizes,
};
use crate::key::ObjectKey;
use arc_swap::ArcSwap;
use std::{
    cmp::Ordering,
    io,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Where a catalog is read from.
pub trait ReadAt {
    /// Fills `buf` from `offset` on; MUST fail when there are not so many bytes.
    ///
    /// # Errors
    /// The disk's.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Bytes there are.
    ///
    /// # Errors
    /// The disk's.
    fn len(&self) -> io::Result<u64>;
    /// No bytes at all?
    ///
    /// # Errors
    /// The disk's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = usize::try_from(offset).ok().and_then(|o| o.checked_add(buf.len()));
        match end.and_then(|end| self.get(end - buf.len()..end)) {
            Some(s) => {
                buf.copy_from_slice(s);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    fn len(&self) -> io::Result<u64> {
        Ok(Self::len(self) as u64)
    }
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// What can be wrong with a catalog file.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be read.
    #[error("read catalog: {0}")]
    Io(#[from] io::Error),
    /// Not ours, or cut short.
    #[error("catalog is not usable: {0}")]
    Header(&'static str),
    /// Written by another Larder.
    #[error(
        "catalog has format {0}, and this release of Larder reads format {VERSION}; go back to a release that reads it, or have the origin listed again",
        VERSION = super::VERSION
    )]
    Version(u32),
    /// A catalog, and another one.
    #[error("catalog is {found} and not {wanted}")]
    Digest {
        /// What its name says.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// Bytes changed after the file was written.
    #[error("catalog section {0} does not match its checksum")]
    Section(u64),
    /// A number points outside of the file, or a name cannot be.
    #[error("catalog entry {0} is not consistent")]
    Entry(u64),
}

type OnDamage = Box<dyn Fn(&CatalogError) + Send + Sync>;

/// An opened catalog. Shared between threads; memory does not depend on its size.
pub struct Catalog<R> {
    /// In the cache of sections.
    id: u64,
    file: ArcSwap<R>,
    header: Header,
    origin: String,
    digest: String,
    on_damage: OnceLock<OnDamage>,
}

impl<R> std::fmt::Debug for Catalog<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("digest", &self.digest).field("entries", &self.header.entries).finish_non_exhaustive()
    }
}

/// Numbers the catalogs of this process.
static IDS: AtomicU64 = AtomicU64::new(0);

impl<R: ReadAt> Catalog<R> {
    /// Checks header, length, table and origin; sections are checked as they are read.
    ///
    /// # Errors
    /// A file that is not a catalog of this version, whole.
    pub fn open(file: R) -> Result<Self, CatalogError> {
        let (header, digest) = header(&file)?;
        let mut origin = vec![0; header.origin_len as usize];
        file.read_exact_at(&mut origin, HEADER)?;
        if crc32c(&origin) != header.origin_crc {
            return Err(CatalogError::Header("origin does not match its checksum"));
        }
        let origin = String::from_utf8(origin).map_err(|_| CatalogError::Header("origin is no text"))?;
        let (id, file) = (IDS.fetch_add(1, Relaxed), ArcSwap::from_pointee(file));
        Ok(Self { id, file, header, origin, digest, on_damage: OnceLock::new() })
    }

    /// As [`Self::open`], and it MUST be the catalog with this digest.
    ///
    /// # Errors
    /// As [`Self::open`]; another catalog.
    pub fn open_as(file: R, digest: &str) -> Result<Self, CatalogError> {
        let catalog = Self::open(file)?;
        catalog.is(digest).map(|()| catalog)
    }

    fn is(&self, digest: &str) -> Result<(), CatalogError> {
        if self.digest == digest {
            return Ok(());
        }
        Err(CatalogError::Digest { wanted: digest.to_owned(), found: self.digest.clone() })
    }

    /// The copy that is read now.
    pub fn file(&self) -> Arc<R> {
        self.file.load_full()
    }

    /// From now on reads another copy of the same catalog. What was damaged is read anew; positions stay what they are.
    ///
    /// # Errors
    /// A file that is not this catalog; the one before stays.
    pub fn replace(&self, file: R) -> Result<(), CatalogError> {
        let (_, digest) = header(&file)?;
        self.is(&digest)?;
        self.file.store(Arc::new(file));
        Ok(())
    }

    /// Calls this whenever bytes of the file cannot be had or are wrong. Only the first one counts.
    pub fn on_damage(&self, call: impl Fn(&CatalogError) + Send + Sync + 'static) {
        // A second one would be a mistake of ours, and a harmless one.
        let _ = self.on_damage.set(Box::new(call));
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// The first thing that is not as it was written.
    pub fn verify(&self) -> Result<(), CatalogError> {
        let file = self.file.load();
        let (mut arrival, mut at, mut piece) = (Arrival::new(), 0, vec![0; 1 << 20]);
        let len = self.header.file_len().unwrap_or_default();
        while at < len {
            let n = (len - at).min(piece.len() as u64) as usize;
            file.read_exact_at(&mut piece[..n], at)?;
            arrival.update(&piece[..n])?;
            at += n as u64;
        }
        arrival.finish(&self.digest)?;
        (0..self.header.sections()).try_for_each(|number| self.load(number).map(drop))
    }

    /// Names the snapshot.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
    /// Files in the snapshot.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.header.sizes.all().files
    }
    /// Folders, the root among them.
    #[must_use]
    pub fn dirs(&self) -> u64 {
        self.header.folders
    }
    /// Sum of the sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.sizes.all().bytes
    }
    /// How large the files are.
    #[must_use]
    pub fn sizes(&self) -> &Sizes {
        &self.header.sizes
    }
    /// Files and folders.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.header.entries
    }
    /// The source's URI with its prefix.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The entry at a position.
    ///
    /// # Errors
    /// A section that cannot be read, a position that is none.
    pub fn entry(&self, index: u64) -> Result<Entry, CatalogError> {
        self.at(index, Section::entry)
    }

    /// Name of the entry at a position; the root's is empty.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn name(&self, index: u64) -> Result<String, CatalogError> {
        self.at(index, |s, slot| text(s.name(slot)))?.ok_or(CatalogError::Entry(index))
    }

    /// Version of a file (its ETag at the origin).
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn version(&self, index: u64) -> Result<String, CatalogError> {
        self.at(index, |s, slot| text(s.version(slot)))?.ok_or(CatalogError::Entry(index))
    }

    /// Positions of what lies in a folder, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::entry`]; a file has no children.
    pub fn children(&self, dir: u64) -> Result<Range<u64>, CatalogError> {
        let rank = self.entry(dir)?.rank().filter(|r| *r < self.header.folders).ok_or(CatalogError::Entry(dir))?;
        let number = self.header.entry_sections() + rank / FOLDERS;
        let (start, end) = self.section(number, |s| s.children((rank % FOLDERS) as usize))?;
        // Children come behind their folder: no loop, whatever the file says.
        let sound = dir < start && start <= end && end <= self.header.entries;
        sound.then_some(start..end).ok_or(CatalogError::Entry(dir))
    }

    /// Position of the child with this name.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn lookup(&self, dir: u64, name: &str) -> Result<Option<u64>, CatalogError> {
        let (name, children) = (name.as_bytes(), self.children(dir)?);
        if children.is_empty() {
            return Ok(None);
        }
        // The last section that begins with this name or one before it, then the name in there.
        let (mut low, mut high) = (children.start / ENTRIES, (children.end - 1) / ENTRIES);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            // Not the folder's first section, so that its first entry is one of the children.
            match self.section(middle, |s| s.name(0).cmp(name))? {
                Ordering::Equal => return Ok(Some(middle * ENTRIES)),
                Ordering::Less => low = middle,
                Ordering::Greater => high = middle - 1,
            }
        }
        let first = low * ENTRIES;
        let (mut start, mut end) = (children.start.max(first) - first, children.end.min(first + ENTRIES) - first);
        self.section(low, |s| {
            while start < end {
                let middle = start + (end - start) / 2;
                match s.name(middle as usize).cmp(name) {
                    Ordering::Equal => return Some(first + middle),
                    Ordering::Less => start = middle + 1,
                    Ordering::Greater => end = middle,
                }
            }
            None
        })
    }

    /// Entries one after another, without memory for each.
    #[must_use]
    pub fn scan(&self, range: Range<u64>) -> Scan<'_, R> {
        Scan { catalog: self, next: range.start, end: range.end.min(self.header.entries), section: None }
    }

    /// Path of the entry, relative to the root; the root's is empty.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn path(&self, index: u64) -> Result<String, CatalogError> {
        // Written from its end.
        let (mut path, mut at) = (Vec::with_capacity(64), index);
        while at != 0 {
            let parent = self.at(at, |s, slot| {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend(s.name(slot).iter().rev());
                s.entry(slot).parent
            })?;
            // Parents come before their children: no loop, whatever the file says.
            if parent >= at {
                return Err(CatalogError::Entry(at));
            }
            at = parent;
        }
        path.reverse();
        String::from_utf8(path).map_err(|_| CatalogError::Entry(index))
    }

    /// Name of a file's content in every cache.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn object_key(&self, index: u64) -> Result<ObjectKey, CatalogError> {
        let path = self.path(index)?;
        let key = self.at(index, |s, slot| {
            let version = std::str::from_utf8(s.version(slot)).ok()?;
            Some(ObjectKey::new(&self.origin, &path, version, s.entry(slot).size()))
        })?;
        key.ok_or(CatalogError::Entry(index))
    }

    /// Positions of all files.
    pub fn file_indices(&self) -> impl Iterator<Item = Result<u64, CatalogError>> + '_ {
        let mut scan = self.scan(0..self.header.entries);
        std::iter::from_fn(move || {
            loop {
                match scan.next() {
                    Ok(Some(e)) if e.entry.kind == Kind::Dir => {}
                    Ok(next) => return next.map(|e| Ok(e.index)),
                    Err(e) => return Some(Err(e)),
                }
            }
        })
    }

    fn at<T>(&self, index: u64, look: impl FnOnce(&Section, usize) -> T) -> Result<T, CatalogError> {
        if index >= self.header.entries {
            return Err(CatalogError::Entry(index));
        }
        self.section(index / ENTRIES, |s| look(s, (index % ENTRIES) as usize))
    }

    /// `number` MUST be one of its sections.
    fn section<T>(&self, number: u64, look: impl FnOnce(&Section) -> T) -> Result<T, CatalogError> {
        if let Some(held) = section::cached(self.id, number)
            && let Some(section) = held.get()
        {
            return Ok(look(section));
        }
        Ok(look(&*self.fetch(number)?))
    }

    fn fetch(&self, number: u64) -> Result<Arc<Section>, CatalogError> {
        match self.load(number) {
            Ok(section) => {
                let section = Arc::new(section);
                section::keep(Arc::clone(&section));
                Ok(section)
            }
            Err(e) => {
                if let Some(call) = self.on_damage.get() {
                    call(&e);
                }
                Err(e)
            }
        }
    }

    fn load(&self, number: u64) -> Result<Section, CatalogError> {
        let file = self.file.load();
        let mut row = [0; ROW];
        file.read_exact_at(&mut row, self.header.body_end + number * ROW as u64)?;
        let row = Row::decode(&row);
        let end = row.start.checked_add(row.len.into());
        let inside = row.start >= self.header.first_section() && end.is_some_and(|end| end <= self.header.body_end);
        if !inside || row.len as usize > SECTION_MAX {
            return Err(CatalogError::Section(number));
        }
        let mut bytes = vec![0; row.len as usize];
        file.read_exact_at(&mut bytes, row.start)?;
        if crc32c(&bytes) != row.crc {
            return Err(CatalogError::Section(number));
        }
        let rows = self.header.rows_of(number) as usize;
        let section = if number < self.header.entry_sections() {
            Section::of_entries(self.id, number, bytes, rows, number * ENTRIES)
        } else {
            Section::of_folders(self.id, number, bytes, rows)
        };
        section.ok_or(CatalogError::Section(number))
    }
}

/// What [`Scan`] gives.
pub struct Scanned<'a> {
    /// Position.
    pub index: u64,
    /// File or folder.
    pub entry: Entry,
    /// Its name.
    pub name: &'a str,
}

/// Entries one after another. Holds one section.
pub struct Scan<'a, R> {
    catalog: &'a Catalog<R>,
    next: u64,
    end: u64,
    section: Option<(u64, Arc<Section>)>,
}

impl<R: ReadAt> Scan<'_, R> {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// As [`Catalog::entry`].
    // No Iterator: what it gives lives only until the next one.
    #[expect(clippy::should_implement_trait, reason = "see above")]
    pub fn next(&mut self) -> Result<Option<Scanned<'_>>, CatalogError> {
        if self.next >= self.end {
            return Ok(None);
        }
        let index = self.next;
        let (number, slot) = (index / ENTRIES, (index % ENTRIES) as usize);
        if self.section.as_ref().is_none_or(|(held, _)| *held != number) {
            let section = section::cached_arc(self.catalog.id, number).map_or_else(|| self.catalog.fetch(number), Ok)?;
            self.section = Some((number, section));
        }
        let Some((_, section)) = &self.section else { return Ok(None) };
        self.next += 1;
        let name = std::str::from_utf8(section.name(slot)).map_err(|_| CatalogError::Entry(index))?;
        Ok(Some(Scanned { index, entry: section.entry(slot), name }))
    }
}

/// The header of a file that is as long as it says and has the table it says; and the digest.
fn header<R: ReadAt>(file: &R) -> Result<(Header, String), CatalogError> {
    if file.len()? < HEADER {
        return Err(CatalogError::Header("shorter than its header"));
    }
    let mut bytes = [0; HEADER as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let header = Header::decode(&bytes)?;
    if header.file_len() != Some(file.len()?) {
        return Err(CatalogError::Header("not as long as its header says"));
    }
    // In pieces: its size grows with the catalog.
    let (mut table, mut piece) = (blake3::Hasher::new(), vec![0; 1 << 16]);
    let (mut at, end) = (header.body_end, file.len()?);
    while at < end {
        let n = (end - at).min(piece.len() as u64) as usize;
        file.read_exact_at(&mut piece[..n], at)?;
        table.update(&piece[..n]);
        at += n as u64;
    }
    if *table.finalize().as_bytes() != header.table {
        return Err(CatalogError::Header("table of sections is not the one that its header says"));
    }
    Ok((header, super::digest(&bytes)))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}
