//! When an answer is late, and how often that may be worth a second request.

use parking_lot::Mutex;
use std::time::Duration;

/// Reads up to this size are measured apart from larger ones: they wait for the disk, those for the network.
const SMALL: u64 = 256 << 10;
/// One of so many answers is late.
const ONE_IN: f64 = 20.0;
/// How far an answer moves the estimate.
const STEP: f64 = 0.04;
/// Bounds of the estimate, in seconds: it must be able to come back.
const BOUNDS: (f64, f64) = (0.000_5, 5.0);
/// Second requests that may be saved up.
const SAVED: f64 = 10.0;

/// Estimates the 95th percentile of answers from disks: each moves it a little, so that one in twenty is above. Second requests
/// are as rare: a node that is slow because it is loaded must not be loaded more.
#[derive(Debug)]
pub(super) struct Hedging {
    at_least: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Seconds: of small reads, and of large ones.
    late: [f64; 2],
    saved: f64,
}

impl Hedging {
    pub(super) fn new(at_least: Duration) -> Self {
        let late = at_least.as_secs_f64().clamp(BOUNDS.0, BOUNDS.1);
        Self { at_least, state: Mutex::new(State { late: [late; 2], saved: SAVED }) }
    }

    /// After this an answer of so many bytes is late.
    pub(super) fn late(&self, len: u64) -> Duration {
        let late = self.state.lock().late[usize::from(len > SMALL)];
        self.at_least.max(Duration::from_secs_f64(late))
    }

    /// An answer of so many bytes took that long.
    pub(super) fn answered(&self, len: u64, took: Duration) {
        let mut state = self.state.lock();
        state.saved = (state.saved + 1.0 / ONE_IN).min(SAVED);
        let late = &mut state.late[usize::from(len > SMALL)];
        let up = took.as_secs_f64() > *late;
        let factor = if up { 1.0 + STEP * (1.0 - 1.0 / ONE_IN) } else { 1.0 - STEP / ONE_IN };
        *late = (*late * factor).clamp(BOUNDS.0, BOUNDS.1);
    }

    /// Takes one of the second requests that are saved up.
    pub(super) fn may(&self) -> bool {
        let mut state = self.state.lock();
        let may = state.saved >= 1.0;
        if may {
            state.saved -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_in_twenty_is_late_and_small_reads_are_measured_apart() {
        let hedging = Hedging::new(Duration::from_millis(20));
        for n in 0..20_000_u64 {
            // Evenly spread from 0 to 200 ms, in an order that is none.
            hedging.answered(1 << 20, Duration::from_millis(n * 7919 % 200));
        }
        let late = hedging.late(1 << 20).as_millis();
        assert!((170..=199).contains(&late), "{late}");
        assert_eq!(hedging.late(4096), Duration::from_millis(20));
        (0..20_000).for_each(|_| hedging.answered(1 << 20, Duration::from_millis(1)));
        assert_eq!(hedging.late(1 << 20), Duration::from_millis(20), "never earlier than that");
    }

    #[test]
    fn second_requests_are_no_more_than_one_in_twenty() {
        let hedging = Hedging::new(Duration::from_millis(20));
        let burst = (0..100).filter(|_| hedging.may()).count();
        assert_eq!(burst, 10);
        (0..100).for_each(|_| hedging.answered(1, Duration::ZERO));
        assert!((4..=5).contains(&(0..100).filter(|_| hedging.may()).count()));
    }
}
