//! How many requests go to the origin at the same time.
//!
//! More as long as answers do not begin later for it, half as many when the origin asks for fewer. Several workers that share an origin come
//! to share what it gives in that way, without knowing of each other. A time that it asks to be left alone for holds for all
//! requests of a worker. Who waits for bytes goes before who fetches ahead of use.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// Requests at the same time before the origin said anything. A small file takes about 20 ms: 1,600 of them a second.
const FIRST: f64 = 32.0;
/// More than this helps no origin that answers within a second.
const MOST: f64 = 256.0;
/// Answers that begin so many times later than the quickest one waited for others: more requests would only wait longer.
const QUEUED: u32 = 3;
/// Longest time that an origin is left alone for, whatever it asks for.
pub(crate) const LEAVE_ALONE: Duration = Duration::from_secs(30);

/// Who a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Someone waits for the bytes.
    Reader,
    /// Fetched ahead of use: at most three quarters of what goes on at the same time.
    Background,
}

/// Shared by everything of one worker that asks the origin; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: f64,
    running: usize,
    background: usize,
    /// The origin has asked for fewer before: the limit grows slowly from then on.
    careful: bool,
    last_cut: Instant,
    /// The shortest time in which an answer began; forgotten slowly.
    quickest: Duration,
    alone_until: Instant,
    readers: VecDeque<oneshot::Sender<Turn>>,
    ahead: VecDeque<oneshot::Sender<Turn>>,
}

impl Default for State {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            limit: FIRST,
            running: 0,
            background: 0,
            careful: false,
            last_cut: now,
            quickest: Duration::MAX,
            alone_until: now,
            readers: VecDeque::new(),
            ahead: VecDeque::new(),
        }
    }
}

/// The right to ask the origin; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    pace: Pace,
    lane: Lane,
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.pace.0.lock();
            state.running -= 1;
            state.background -= usize::from(self.lane == Lane::Background);
        }
        self.pace.admit();
    }
}

impl Pace {
    /// Waits for a turn; one that is not waited for any more is passed on.
    pub async fn turn(&self, lane: Lane) -> Turn {
        let (send, turn) = oneshot::channel();
        {
            let mut state = self.0.lock();
            if lane == Lane::Reader { &mut state.readers } else { &mut state.ahead }.push_back(send);
        }
        self.admit();
        match turn.await {
            Ok(turn) => turn,
            // Only a queue that is gone drops its senders, and this one lives as long as `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Requests that may go on at the same time.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.lock().limit as usize
    }

    /// Waits until the origin wants to be asked again, but no longer than to the end of the caller's time: requests of others may
    /// be told again and again to leave it alone. Gives the time at which that was.
    pub(crate) async fn clear(&self, end: Instant) -> Instant {
        loop {
            let (now, until) = (Instant::now(), self.0.lock().alone_until.min(end));
            if until <= now {
                return now;
            }
            // Not all at once.
            let pause = (until - now).mul_f64(1.0 + random() / 4.0);
            tokio::time::sleep_until(end.min(now + pause)).await;
        }
    }

    /// A request that began then was answered; the answer began after this time.
    pub(crate) fn answered(&self, began: Instant, after: Duration) {
        {
            let mut state = self.0.lock();
            state.quickest = state.quickest.saturating_add(state.quickest / 1000).min(after);
            if after > state.quickest * QUEUED {
                return;
            }
            // What was not used says nothing about what more of it would do.
            if began < state.last_cut || (state.running as f64) < state.limit / 2.0 {
                return;
            }
            let more = if state.careful { 1.0 / state.limit } else { 1.0 };
            state.limit = (state.limit + more).min(MOST);
        }
        self.admit();
    }

    /// A request that began then was refused, because there are too many, or took too long. Requests that were on their way
    /// together count once.
    pub(crate) fn refused(&self, began: Instant, leave_alone: Option<Duration>) {
        let mut state = self.0.lock();
        let now = Instant::now();
        if let Some(time) = leave_alone {
            state.alone_until = state.alone_until.max(now + time.min(LEAVE_ALONE));
        }
        if began >= state.last_cut {
            state.limit = (state.limit / 2.0).max(1.0);
            (state.last_cut, state.careful) = (now, true);
            tracing::info!(limit = state.limit as usize, ?leave_alone, "the origin wants fewer requests");
        }
    }

    fn admit(&self) {
        // Turns that nobody took are given back after the lock is.
        let mut unwanted = Vec::new();
        let mut state = self.0.lock();
        loop {
            let most = state.limit as usize;
            if state.running >= most {
                break;
            }
            let (lane, waiting) = if let Some(waiting) = state.readers.pop_front() {
                (Lane::Reader, waiting)
            } else if state.background < (most * 3 / 4).max(1)
                && let Some(waiting) = state.ahead.pop_front()
            {
                (Lane::Background, waiting)
            } else {
                break;
            };
            if waiting.is_closed() {
                continue;
            }
            state.running += 1;
            state.background += usize::from(lane == Lane::Background);
            unwanted.extend(waiting.send(Turn { pace: self.clone(), lane }).err());
        }
        drop(state);
    }
}

/// Between 0 and 1. Good enough to keep requests apart.
pub(crate) fn random() -> f64 {
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    async fn clear(pace: &Pace) -> Instant {
        pace.clear(Instant::now() + LEAVE_ALONE).await
    }

    /// So many turns at once.
    async fn fill(pace: &Pace, lane: Lane, count: usize) -> Vec<Turn> {
        futures::future::join_all((0..count).map(|_| pace.turn(lane))).await
    }

    #[tokio::test]
    async fn fetching_ahead_leaves_room_for_readers_who_go_first() {
        let pace = Pace::default();
        let mut ahead = fill(&pace, Lane::Background, 24).await;
        assert!(pace.turn(Lane::Background).now_or_never().is_none());
        let mut readers = fill(&pace, Lane::Reader, 8).await;
        let (mut next_ahead, mut next_reader) = (Box::pin(pace.turn(Lane::Background)), Box::pin(pace.turn(Lane::Reader)));
        assert!((&mut next_ahead).now_or_never().is_none() && (&mut next_reader).now_or_never().is_none());
        ahead.pop();
        assert!((&mut next_ahead).now_or_never().is_none());
        readers.push((&mut next_reader).now_or_never().unwrap());
        ahead.pop();
        assert!(next_ahead.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_any_more_is_passed_on() {
        let pace = Pace::default();
        let turns = fill(&pace, Lane::Reader, 32).await;
        assert!(pace.turn(Lane::Reader).now_or_never().is_none());
        drop(turns);
        assert_eq!(fill(&pace, Lane::Reader, 32).await.len(), 32);
    }

    #[tokio::test]
    async fn the_limit_is_halved_once_for_requests_that_were_on_their_way_together_and_grows_again() {
        let pace = Pace::default();
        let began = clear(&pace).await;
        (0..10).for_each(|_| pace.refused(began, None));
        assert_eq!(pace.limit(), 16);
        for want in [8, 4, 2, 1, 1] {
            pace.refused(clear(&pace).await, None);
            assert_eq!(pace.limit(), want);
        }
        let turn = pace.turn(Lane::Background).await;
        let now = clear(&pace).await;
        let quick = Duration::from_millis(10);
        pace.answered(now, quick);
        assert_eq!(pace.limit(), 2);
        (0..100).for_each(|_| pace.answered(now, quick));
        assert_eq!(pace.limit(), 2, "one request at a time says nothing about more of them");
        drop(turn);
    }

    #[tokio::test]
    async fn the_limit_grows_as_long_as_answers_do_not_begin_later_for_it() {
        let pace = Pace::default();
        let _turns = fill(&pace, Lane::Reader, 32).await;
        let now = clear(&pace).await;
        (0..32).for_each(|_| pace.answered(now, Duration::from_millis(10)));
        let grown = pace.limit();
        assert!(grown > 32, "{grown}");
        let _more = fill(&pace, Lane::Reader, grown - 32).await;
        (0..100).for_each(|_| pace.answered(now, Duration::from_millis(50)));
        assert_eq!(pace.limit(), grown);
    }

    #[tokio::test]
    async fn an_origin_that_asks_to_be_left_alone_is_but_not_for_ever() {
        let pace = Pace::default();
        let began = clear(&pace).await;
        pace.refused(began, Some(Duration::from_millis(200)));
        assert!(clear(&pace).await - began >= Duration::from_millis(200));
        pace.refused(clear(&pace).await, Some(Duration::from_secs(3600)));
        assert!(pace.0.lock().alone_until <= Instant::now() + LEAVE_ALONE);
        // Nor longer than the caller has time.
        let end = Instant::now() + Duration::from_millis(50);
        let ended = tokio::time::timeout(Duration::from_secs(10), pace.clear(end)).await;
        assert!(ended.is_ok_and(|at| at >= end));
    }
}
