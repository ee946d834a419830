//! For the fuzzer: makes checksums right, so that it comes to what lies behind them.

use super::format::{HEADER, MAGIC, ROW, Row, VERSION, crc32c, u32_at, u64_at};

/// The bytes with the magic, hashes and checksums that the rest of them should have; none: they are cut at odd places.
#[must_use]
pub fn with_checksums(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    const AT: usize = HEADER as usize;
    let header = bytes.get(..AT)?;
    let origin = AT + u32_at(header, 12) as usize;
    let body_end = usize::try_from(u64_at(header, 32)).ok()?;
    let origin = crc32c(bytes.get(AT..origin)?);
    if !(AT..=bytes.len()).contains(&body_end) {
        return None;
    }
    let (front, table) = bytes.split_at_mut(body_end);
    for row in table.as_chunks_mut::<ROW>().0 {
        let mut decoded = Row::decode(row);
        let start = usize::try_from(decoded.start).unwrap_or(usize::MAX);
        if let Some(section) = front.get(start..start.saturating_add(decoded.len as usize)) {
            decoded.crc = crc32c(section);
            *row = decoded.encode();
        }
    }
    let (header, body) = front.split_at_mut(AT);
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[40..44].copy_from_slice(&origin.to_le_bytes());
    header[44..76].copy_from_slice(blake3::hash(body).as_bytes());
    header[76..108].copy_from_slice(blake3::hash(table).as_bytes());
    let crc = crc32c(&header[..AT - 4]);
    header[AT - 4..].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}
