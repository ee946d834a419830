//! How large the files of a snapshot are: what rules about small files need, without a look at every entry.

/// Classes by the number of bits of the size.
const CLASSES: usize = 64;

/// Some files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeClass {
    /// How many.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}

/// Files by size; class `c` holds those of 2^(c-1) up to 2^c bytes, class 0 the empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes([SizeClass; CLASSES]);

impl Default for Sizes {
    fn default() -> Self {
        Self([SizeClass::default(); CLASSES])
    }
}

impl Sizes {
    pub(super) const ENCODED: usize = CLASSES * 16;

    pub(super) fn add(&mut self, size: u64) {
        let class = &mut self.0[((u64::BITS - size.leading_zeros()) as usize).min(CLASSES - 1)];
        class.files += 1;
        class.bytes = class.bytes.saturating_add(size);
    }

    /// Files smaller than `limit`, which is rounded down to a power of two.
    #[must_use]
    pub fn below(&self, limit: u64) -> SizeClass {
        limit.checked_ilog2().map_or(SizeClass::default(), |bits| sum(&self.0[..=(bits as usize).min(CLASSES - 1)]))
    }

    /// All files.
    #[must_use]
    pub fn all(&self) -> SizeClass {
        sum(&self.0)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for class in &self.0 {
            out.extend_from_slice(&class.files.to_le_bytes());
            out.extend_from_slice(&class.bytes.to_le_bytes());
        }
    }

    pub(super) fn decode(bytes: &[u8; Self::ENCODED]) -> Self {
        let at = |i| super::format::u64_at(bytes, i);
        Self(std::array::from_fn(|c| SizeClass { files: at(16 * c), bytes: at(16 * c + 8) }))
    }
}

fn sum(classes: &[SizeClass]) -> SizeClass {
    let add = |a: SizeClass, b: &SizeClass| SizeClass {
        files: a.files.saturating_add(b.files),
        bytes: a.bytes.saturating_add(b.bytes),
    };
    classes.iter().fold(SizeClass::default(), add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_below_every_limit_above_its_size() {
        let mut sizes = Sizes::default();
        for size in [0, 1, 1023, 1024, 1 << 20, u64::MAX >> 1] {
            sizes.add(size);
        }
        let below = |limit| (sizes.below(limit).files, sizes.below(limit).bytes);
        assert_eq!(below(0), (0, 0));
        assert_eq!(below(1), (1, 0));
        assert_eq!(below(1024), (3, 1024));
        assert_eq!(below(2047), (3, 1024));
        assert_eq!(below(2048), (4, 2048));
        assert_eq!(below(1 << 20), (4, 2048));
        assert_eq!(below(1 << 21), (5, 2048 + (1 << 20)));
        assert_eq!(sizes.all().files, 6);
        let mut bytes = Vec::new();
        sizes.encode(&mut bytes);
        assert_eq!(Sizes::decode(bytes.as_slice().try_into().unwrap()), sizes);
    }
}
