//! Medians, and how sure they are.

/// Resamples of the bootstrap.
const RESAMPLES: usize = 4000;

/// Ratio of two medians with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// Half of the interval.
    pub fn uncertainty(&self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// NaN for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value that this share of the values is below; NaN for no values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().saturating_sub(1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// `ours / theirs` by medians; the interval by resampling each side by itself. The same samples always give the same interval.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
    if ours.is_empty() || theirs.is_empty() {
        return None;
    }
    let mut random = Random::new(17);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut resample =
                |values: &[f64]| median(&values.iter().map(|_| values[random.below(values.len())]).collect::<Vec<_>>());
            resample(ours) / resample(theirs)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Ratio { value: median(ours) / median(theirs), low: at(0.025), high: at(0.975) })
}

/// Numbers that are the same in each run (xorshift).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `n`, which must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_holds_the_ratio_and_is_narrow_when_samples_agree() {
        let same = ratio(&[2.0; 5], &[4.0; 5]).unwrap();
        assert_eq!((same.value, same.low, same.high), (0.5, 0.5, 0.5));
        let noisy = ratio(&[1.0, 2.0, 3.0, 4.0, 5.0], &[3.0; 5]).unwrap();
        assert!(noisy.low < 1.0 && noisy.value == 1.0 && noisy.high > 1.0 && noisy.uncertainty() > 0.1, "{noisy:?}");
        assert_eq!(noisy, ratio(&[1.0, 2.0, 3.0, 4.0, 5.0], &[3.0; 5]).unwrap());
        assert_eq!(ratio(&[], &[1.0]), None);
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut values: Vec<usize> = (0..100).collect();
        Random::new(1).shuffle(&mut values);
        assert_ne!(values, (0..100).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
    }
}
