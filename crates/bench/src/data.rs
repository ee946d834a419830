//! Files to read. Each set is made once per run, on the disk that is measured, with bytes that no disk can make smaller.

use crate::stats::Random;
use anyhow::Context as _;
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

/// A set of files: one dataset.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub name: &'static str,
    /// Where they lie.
    pub root: PathBuf,
    pub parts: Vec<Part>,
}

/// Files of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// File with their names beneath the set's root, one a line.
    pub names: PathBuf,
    pub files: usize,
    pub bytes: u64,
}

/// What the files of a part are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub name: &'static str,
    pub files: usize,
    /// Without, they only have a size and take no room.
    pub content: bool,
    /// Of each.
    pub size: u64,
    pub per_folder: usize,
}

impl Shape {
    /// 16 files, one for each of the parallel readers.
    pub fn large(quick: bool) -> Self {
        let size = if quick { 16 << 20 } else { 64 << 20 };
        Self { name: "large", files: 16, content: true, size, per_folder: 16 }
    }

    /// The size of ImageNet's.
    pub fn small(quick: bool) -> Self {
        let files = if quick { 2_000 } else { 10_000 };
        Self { name: "small", files, content: true, size: 114 << 10, per_folder: 500 }
    }

    /// Many names. Nobody reads them, so they are holes.
    pub fn tree(quick: bool) -> Self {
        let files = if quick { 20_000 } else { 200_000 };
        Self { name: "tree", files, content: false, size: 114 << 10, per_folder: 1_000 }
    }

    /// As many bytes in small files as in files of more than 100 MiB.
    pub fn mixed(quick: bool) -> [Self; 2] {
        let (large, small) = if quick { (2, 2_000) } else { (5, 5_000) };
        let size = (small as u64 * (114 << 10)) / large as u64;
        [
            Self { files: small, ..Self::small(quick) },
            Self { name: "large", files: large, content: true, size, per_folder: large },
        ]
    }

    /// Makes the part beneath the set's root.
    fn make(&self, root: &Path, names: PathBuf) -> anyhow::Result<Part> {
        let write = |path: &Path| format!("write {}", path.display());
        let (mut list, mut block) = (String::new(), vec![0u8; 1 << 20]);
        let mut random = Random::new(self.files as u64 ^ self.size);
        for i in 0..self.files {
            let name = format!("{}/{:04}/{i:07}.bin", self.name, i / self.per_folder);
            let path = root.join(&name);
            if i % self.per_folder == 0 {
                fs::create_dir_all(path.parent().unwrap_or(root)).with_context(|| write(&path))?;
            }
            let mut file = File::create(&path).with_context(|| write(&path))?;
            if self.content {
                let mut left = self.size;
                while left > 0 {
                    let part = usize::try_from(left.min(block.len() as u64))?;
                    for word in block[..part.next_multiple_of(8)].chunks_exact_mut(8) {
                        word.copy_from_slice(&random.next().to_le_bytes());
                    }
                    file.write_all(&block[..part]).with_context(|| write(&path))?;
                    left -= part as u64;
                }
            } else {
                file.set_len(self.size).with_context(|| write(&path))?;
            }
            list += &name;
            list.push('\n');
        }
        fs::write(&names, list).with_context(|| write(&names))?;
        Ok(Part { names, files: self.files, bytes: self.size * self.files as u64 })
    }
}

impl Set {
    /// Makes all parts beneath `data`.
    pub fn make(data: &Path, name: &'static str, shapes: &[Shape]) -> anyhow::Result<Self> {
        let root = data.join("origin").join(name);
        let make = |shape: &Shape| shape.make(&root, data.join(format!("{name}-{}.names", shape.name)));
        let parts = shapes.iter().map(make).collect::<anyhow::Result<_>>()?;
        Ok(Self { name, root, parts })
    }

    pub fn files(&self) -> usize {
        self.parts.iter().map(|p| p.files).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_of_a_mixed_set_have_the_same_bytes() {
        for quick in [true, false] {
            let bytes = Shape::mixed(quick).map(|s| s.size * s.files as u64);
            assert_eq!(bytes[0], bytes[1]);
            assert!(Shape::mixed(quick)[1].size > 100 << 20);
        }
    }

    #[test]
    fn a_set_has_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        for content in [true, false] {
            let name = if content { "full" } else { "holes" };
            let shape = Shape { name, files: 5, content, size: 10_001, per_folder: 2 };
            let set = Set::make(dir.path(), name, &[shape]).unwrap();
            let names = fs::read_to_string(&set.parts[0].names).unwrap();
            assert_eq!(names.lines().count(), 5);
            let read = names.lines().map(|n| fs::read(set.root.join(n)).unwrap());
            assert!(read.into_iter().all(|f| f.len() == 10_001 && f.iter().any(|b| *b != 0) == content));
            assert_eq!((set.files(), set.bytes()), (5, 50_005));
        }
    }
}
