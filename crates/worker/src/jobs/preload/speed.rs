//! How fast bytes come, from what was seen lately.

use parking_lot::Mutex;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// What is older says nothing about now.
const LATELY: Duration = Duration::from_secs(60);
/// Looks that are closer together say no more.
const APART: Duration = Duration::from_secs(1);

/// Looks at a count.
#[derive(Debug, Default)]
pub(crate) struct Speed(Mutex<VecDeque<(Instant, u64)>>);

impl Speed {
    /// Looks at the count, and says how long the rest takes at the speed of the last minute; `None`: nobody knows.
    pub fn left(&self, now: Instant, done: u64, rest: u64) -> Option<Duration> {
        let mut looks = self.0.lock();
        if looks.back().is_none_or(|(at, _)| now - *at >= APART) {
            looks.push_back((now, done));
        }
        while looks.len() > 2 && now - looks[1].0 >= LATELY {
            looks.pop_front();
        }
        let (since, before) = *looks.front()?;
        let (time, bytes) = ((now - since).as_secs_f64(), done.saturating_sub(before));
        (bytes > 0 && time >= APART.as_secs_f64()).then(|| Duration::from_secs_f64(rest as f64 * time / bytes as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_speed_of_the_last_minute_says() {
        let (speed, start) = (Speed::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(speed.left(at(0), 500, 1000), None);
        // 100 a second, of which what was there before is no part.
        assert_eq!(speed.left(at(10), 1500, 1000), Some(Duration::from_secs(10)));
        for s in 11..100 {
            speed.left(at(s), 1500, 1000);
        }
        assert_eq!(speed.left(at(100), 1500, 1000), None, "nothing came for more than a minute");
        assert_eq!(speed.left(at(110), 1600, 600).map(|d| d.as_secs()), Some(360));
    }
}
