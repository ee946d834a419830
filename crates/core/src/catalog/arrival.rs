//! Verifies a catalog while it comes in.

use super::{
    CatalogError,
    format::{HEADER, Header},
};

/// Takes the bytes of a catalog in order; says at the end whether they are what their name says, all of them.
#[derive(Debug, Default)]
pub struct Arrival {
    header: Vec<u8>,
    decoded: Option<Header>,
    at: u64,
    body: blake3::Hasher,
    table: blake3::Hasher,
}

impl Arrival {
    /// Nothing came yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// As soon as it is seen that this is no catalog of this version.
    pub fn update(&mut self, mut piece: &[u8]) -> Result<(), CatalogError> {
        let missing = (HEADER as usize - self.header.len()).min(piece.len());
        self.header.extend_from_slice(&piece[..missing]);
        piece = &piece[missing..];
        let body_end = match &self.decoded {
            Some(header) => header.body_end,
            None => match self.header.first_chunk() {
                Some(header) => {
                    self.at = HEADER;
                    self.decoded.insert(Header::decode(header)?).body_end
                }
                None => return Ok(()),
            },
        };
        let of_body = usize::try_from(body_end.saturating_sub(self.at)).map_or(piece.len(), |left| left.min(piece.len()));
        self.body.update(&piece[..of_body]);
        self.table.update(&piece[of_body..]);
        self.at += piece.len() as u64;
        Ok(())
    }

    /// Was this the whole catalog with this digest?
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn finish(self, digest: &str) -> Result<(), CatalogError> {
        let header = self.decoded.ok_or(CatalogError::Header("shorter than its header"))?;
        let found = super::digest(&self.header);
        if found != digest {
            return Err(CatalogError::Digest { wanted: digest.to_owned(), found });
        }
        if header.file_len() != Some(self.at) {
            return Err(CatalogError::Header("not as long as its header says"));
        }
        if *self.body.finalize().as_bytes() != header.body || *self.table.finalize().as_bytes() != header.table {
            return Err(CatalogError::Header("its bytes are not those that its header says"));
        }
        Ok(())
    }
}
