//! Mounts that have ended and whose series are still shown.

use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long the series of a mount outlive it: time enough for the slowest scrapers to see its last counts, and short beside
/// the life of a node, on which the series of every snapshot ever mounted would pile up.
pub(super) const SHOWN: Duration = Duration::from_secs(15 * 60);

/// Dataset UID and identity.
pub(super) type Series = (String, String);

#[derive(Debug, Default)]
pub(super) struct EndedMounts(BTreeMap<Series, Instant>);

impl EndedMounts {
    pub(super) fn ended(&mut self, series: Series, now: Instant) {
        self.0.insert(series, now);
    }

    /// It is mounted again and goes on counting.
    pub(super) fn is_back(&mut self, series: &Series) {
        self.0.remove(series);
    }

    /// Those that were shown long enough; each is told once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Series> {
        let due = |ended: &Instant| now.duration_since(*ended) >= SHOWN;
        let told = self.0.iter().filter(|(_, ended)| due(ended)).map(|(series, _)| series.clone()).collect();
        self.0.retain(|_, ended| !due(ended));
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_shown_for_a_while_after_its_last_end() {
        let series = |identity: &str| ("u".to_owned(), identity.to_owned());
        let (mut ended, start) = (EndedMounts::default(), Instant::now());
        for identity in ["gone", "back", "twice"] {
            ended.ended(series(identity), start);
        }
        ended.is_back(&series("back"));
        ended.ended(series("twice"), start + SHOWN / 2);
        assert!(ended.due(start + SHOWN - Duration::from_secs(1)).is_empty());
        assert_eq!(ended.due(start + SHOWN), [series("gone")]);
        assert_eq!(ended.due(start + SHOWN * 2), [series("twice")]);
        assert!(ended.due(start + SHOWN * 9).is_empty());
    }
}
