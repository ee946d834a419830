//! One request is tried again until it succeeds, trying is of no use, or its time is over.

use crate::{
    Error, Pace, Patience,
    pace::{LEAVE_ALONE, random},
};
use std::time::Duration;
use tokio::time::Instant;

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    pub again: Again,
}

/// What helps against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing: it would fail again.
    Never,
    /// Another try soon; nobody is there, so that waiting long is of no use.
    Soon,
    /// Another try later.
    Later,
    /// The same, and fewer requests at once; not before the time that the origin asked for.
    Slower(Option<Duration>),
}

/// Pauses between tries: doubled from the first to the second value, each shortened by chance to as little as half.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// So many bytes more are a reason to go on.
const PROGRESS: u64 = 64 << 10;

/// The tries of one request.
pub(super) struct Tries<'a> {
    pace: &'a Pace,
    patience: Patience,
    pause: Duration,
    /// Of the first try, or when bytes last came.
    since: Instant,
    /// As many as there were then.
    had: u64,
}

impl<'a> Tries<'a> {
    pub fn new(pace: &'a Pace, patience: Patience) -> Self {
        Self { pace, patience, pause: PAUSE.0, since: Instant::now(), had: 0 }
    }

    /// Before each try. Gives the time it begins.
    pub async fn begin(&self) -> Instant {
        self.pace.clear(self.since + self.patience.failing).await
    }

    /// There are so many bytes now. If that is a good deal more than ever before, the time begins anew.
    pub fn have(&mut self, bytes: u64) {
        if bytes >= self.had + PROGRESS {
            (self.had, self.since, self.pause) = (bytes, Instant::now(), PAUSE.0);
        }
    }

    /// Waits for the next try, or gives up.
    pub async fn again(&mut self, began: Instant, failure: Failure) -> Result<(), Error> {
        let Failure { error, again } = failure;
        let (limit, at_least) = match again {
            Again::Never => {
                self.pace.answered(began, began.elapsed());
                return Err(error);
            }
            Again::Soon => (self.patience.nobody_there, Duration::ZERO),
            Again::Later => (self.patience.failing, Duration::ZERO),
            Again::Slower(asked) => {
                self.pace.refused(began, asked);
                // What all requests wait at most is what this one does.
                (self.patience.failing, asked.unwrap_or_default().min(LEAVE_ALONE))
            }
        };
        let pause = self.pause.mul_f64(1.0 - random() / 2.0).max(at_least);
        if self.since.elapsed() + pause > limit {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_no_longer_than_all_others_whatever_the_origin_asks_for() {
        let pace = Pace::default();
        let mut tries = Tries::new(&pace, Patience::default());
        let began = tries.begin().await;
        let throttled = || Failure {
            error: Error::new(Reason::Throttled, "slower"),
            again: Again::Slower(Some(Duration::from_secs(3600))),
        };
        tries.again(began, throttled()).await.unwrap();
        assert!((LEAVE_ALONE..LEAVE_ALONE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
