//! Object keys: the name of one file's content in every cache.

use std::fmt;

/// Digest of (origin, path, version, size). A new version is a new key, so nothing is ever invalidated,
/// and snapshots share what did not change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey([u8; 32]);

impl ObjectKey {
    /// Every field is length-prefixed: no two inputs give the same text.
    #[must_use]
    pub fn new(origin: &str, path: &str, version: &str, size: u64) -> Self {
        let mut h = blake3::Hasher::new_derive_key("larder 2026 object key v1");
        for field in [origin, path, version] {
            h.update(&(field.len() as u64).to_le_bytes());
            h.update(field.as_bytes());
        }
        h.update(&size.to_le_bytes());
        Self(*h.finalize().as_bytes())
    }

    /// From 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(s: &str) -> Option<Self> {
        if !crate::names::is_digest(s) {
            return None;
        }
        Some(Self(*blake3::Hash::from_hex(s).ok()?.as_bytes()))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Identifies what is listed. Changes exactly when the listing could have another result: `uri` with its folder ended by a slash,
/// the endpoint, and the globs.
#[must_use]
pub fn listing_id(uri: &str, endpoint: &str, include: &[String], exclude: &[String]) -> String {
    let mut hash = blake3::Hasher::new_derive_key("larder 2026 listing id v1");
    let mut field = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    field(uri);
    field(endpoint);
    for globs in [include, exclude] {
        field(&globs.len().to_string());
        globs.iter().for_each(|g| field(g));
    }
    hash.finalize().to_hex()[..32].to_owned()
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts_and_borders_do_not_blur() {
        let k = ObjectKey::new("s3://b", "a/b", "v", 1);
        for other in [
            ObjectKey::new("s3://b", "a/b", "v", 2),
            ObjectKey::new("s3://b", "a/b", "w", 1),
            ObjectKey::new("s3://b", "a/c", "v", 1),
            ObjectKey::new("s3://c", "a/b", "v", 1),
            ObjectKey::new("s3://ba", "/b", "v", 1),
        ] {
            assert_ne!(k, other);
        }
    }

    #[test]
    fn hex_round_trip() {
        let k = ObjectKey::new("o", "p", "v", 3);
        assert_eq!(ObjectKey::from_hex(&k.to_string()), Some(k));
        assert_eq!(ObjectKey::from_hex("zz"), None);
    }
}
