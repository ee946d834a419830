//! Buffers that are used again. A fresh one of a MiB costs 256 page faults, which is as much as copying the bytes into it.

use bytes::Bytes;
use parking_lot::Mutex;

/// Sizes are powers of two between these; others are not kept.
const SMALLEST: usize = 32 << 10;
const LARGEST: usize = 4 << 20;
const CLASSES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;
/// Bytes of buffers kept that nobody uses: what the readers of one node have in flight most of the time.
const IDLE: usize = 16 << 20;

static POOL: Pool = Pool { idle: Mutex::new(Idle { buffers: [const { Vec::new() }; CLASSES], bytes: 0 }) };

struct Pool {
    idle: Mutex<Idle>,
}

struct Idle {
    buffers: [Vec<Box<[u8]>>; CLASSES],
    bytes: usize,
}

/// Of exactly as many bytes as were asked for; what they are at first is left over from an earlier use, perhaps of another
/// dataset: whoever shares them must have written all of them.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

impl Buffer {
    /// One that was used before, if there is one.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let idle = class(len).and_then(|class| {
            let mut idle = POOL.idle.lock();
            let buffer = idle.buffers[class].pop()?;
            idle.bytes -= buffer.len();
            Some(buffer)
        });
        let size = class(len).map_or(len, |class| SMALLEST << class);
        Self { bytes: idle.unwrap_or_else(|| vec![0; size].into()), len }
    }

    /// To be shared; used again when the last of it is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// `None`: too small or too large to be kept.
fn class(len: usize) -> Option<usize> {
    (SMALLEST / 2 < len && len <= LARGEST).then(|| len.div_ceil(SMALLEST).next_power_of_two().ilog2() as usize)
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(class) = class(self.len) else { return };
        let mut idle = POOL.idle.lock();
        if idle.bytes + self.bytes.len() <= IDLE {
            idle.bytes += self.bytes.len();
            idle.buffers[class].push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_whoever_had_it_before() {
        for len in [0, 1, SMALLEST / 2, SMALLEST, SMALLEST + 1, 1 << 20, (1 << 20) + 1, LARGEST, LARGEST + 1] {
            for fill in [1, 2] {
                let mut buffer = Buffer::new(len);
                buffer.as_mut().fill(fill);
                let bytes = buffer.freeze();
                assert!(bytes.len() == len && bytes.iter().all(|b| *b == fill), "{len}");
            }
        }
    }

    #[test]
    fn no_more_than_some_are_kept() {
        let many: Vec<_> = (0..2 * IDLE / LARGEST).map(|_| Buffer::new(LARGEST)).collect();
        drop(many);
        assert!(POOL.idle.lock().bytes <= IDLE);
        let kept = POOL.idle.lock().buffers.iter().flatten().map(|b| b.len()).sum::<usize>();
        assert!((LARGEST..=IDLE).contains(&kept), "{kept}");
    }
}
