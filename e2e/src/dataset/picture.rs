//! How a picture of a class looks: a pattern of cells under noise, with another class's pattern shining through. Any single
//! pixel says next to nothing; all of them together say the class, except where the other pattern is the stronger one.

use super::content::mix;

/// How many classes there are.
pub(super) const CLASSES: u64 = 20;

/// Cells of a pattern, across and down.
const CELLS: usize = 8;

/// What is added to each pixel of one picture, by cell. Less than 128.
pub(super) struct Look([[u8; CELLS]; CELLS]);

impl Look {
    /// The look of one picture of a class; `random` makes it different from the next.
    pub(super) fn new(class: u64, random: u64) -> Self {
        let part = |shift: u32, count: u64| (random >> shift & 0xffff) % count;
        // Noise has a deviation of 37 per pixel. The other pattern is the stronger one in a fifth of all pictures: with
        // these a model cannot be right but by luck.
        let (own, other) = (4 + part(0, 12) as u8, part(16, 13) as u8);
        let other_class = (class + 1 + part(32, CLASSES - 1)) % CLASSES;
        let brightness = 20 + part(48, 40) as u8;
        let mut cells = [[brightness; CELLS]; CELLS];
        for (strength, class) in [(own, class), (other, other_class)] {
            for (bit, cell) in cells.iter_mut().flatten().enumerate() {
                *cell += strength * (mix(class) >> bit & 1) as u8;
            }
        }
        Self(cells)
    }

    /// Adds it to pixels that are all below 128.
    pub(super) fn add_to(&self, pixels: &mut [u8], width: usize, height: usize) {
        for (y, row) in pixels.chunks_exact_mut(width).enumerate() {
            for (x, add) in self.0[y * CELLS / height].iter().enumerate() {
                row[x * width / CELLS..(x + 1) * width / CELLS].iter_mut().for_each(|pixel| *pixel += add);
            }
        }
    }

    /// The same for rows whose width is a multiple of eight, eight pixels at a time.
    pub(super) fn add_to_words<const WIDTH: usize>(&self, pixels: &mut [u8]) {
        let height = pixels.len() / WIDTH;
        let rows = self.0.map(|cells| {
            let mut row = [0; WIDTH];
            row.iter_mut().enumerate().for_each(|(x, pixel)| *pixel = cells[x * CELLS / WIDTH]);
            row
        });
        for (y, row) in pixels.chunks_exact_mut(WIDTH).enumerate() {
            let (words, adds) = (row.as_chunks_mut::<8>().0, rows[y * CELLS / height].as_chunks::<8>().0);
            for (word, add) in words.iter_mut().zip(adds) {
                // No byte overflows into the next: both are below 128.
                *word = (u64::from_le_bytes(*word) + u64::from_le_bytes(*add)).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_add_a_look_agree() {
        let (mut one, mut two) = (vec![7; 80 * 51], vec![7; 80 * 51]);
        let look = Look::new(4, mix(9));
        look.add_to(&mut one, 80, 51);
        look.add_to_words::<80>(&mut two);
        assert!(one == two && one.iter().any(|pixel| *pixel != one[0]));
    }

    #[test]
    fn no_pixel_overflows() {
        assert!((0..1_000).all(|i| Look::new(i % CLASSES, mix(i)).0.iter().flatten().all(|cell| *cell < 128)));
    }
}
