//! What could not be brought about, and when a user is told.
//!
//! What the API server refuses stays refused until someone changes something, so it is told at once. What may be gone at the next
//! attempt (a conflict, a time-out, a server that starts again) is told when it lasts, so that no condition turns for a moment.

use super::{conditions::Cause, error::Error};
use jiff::{SignedDuration, Timestamp};
use larder_api::conditions::reasons;
use parking_lot::Mutex;
use std::collections::HashMap;

/// An API server that starts again is back by then.
const LASTS: SignedDuration = SignedDuration::from_mins(1);
/// Some refusals repeat the whole object.
const LONGEST: usize = 1500;

/// What the part of a reconcile that failed is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// To see what there is.
    Sight,
    Workers,
    Claim,
    /// Copies of Secret and CA that go: nobody waits for that.
    Copies,
}

/// An object that is not as the plan wants it.
#[derive(Debug)]
pub(super) struct Failure {
    pub of: Purpose,
    pub error: Error,
}

/// What the conditions are told of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Refusals {
    /// Something of the workers is not as the spec says, whether that is told yet or not.
    pub behind: bool,
    pub workers: Option<Cause>,
    pub claim: Option<Cause>,
}

/// Per dataset UID and purpose: since when each reconcile fails. Lost with the process, which only makes it be told later.
#[derive(Default)]
pub(super) struct Since(Mutex<HashMap<(String, Purpose), Timestamp>>);

impl Since {
    /// Another reconcile has failed at this, or has not. Have they for so long that it is told whatever it is?
    pub(super) fn lasts(&self, uid: &str, of: Purpose, failed: bool, now: Timestamp) -> bool {
        let key = (uid.to_owned(), of);
        if !failed {
            self.0.lock().remove(&key);
            return false;
        }
        let since = *self.0.lock().entry(key).or_insert(now);
        now.duration_since(since) >= LASTS
    }

    /// There will be no more.
    pub(super) fn forget(&self, uid: &str) {
        self.0.lock().retain(|(other, _), _| other != uid);
    }
}

/// What is to be told of the workers and of the claim: the first that stays, else the first that lasts. `dataset` is the namespace of
/// the claim, `ours` that of the workers.
pub(super) fn refusals(failures: &[Failure], lasts: impl Fn(Purpose) -> bool, dataset: &str, ours: &str) -> Refusals {
    let first = |of: Purpose, reason: &str, remedy: &dyn Fn(&Error) -> String| {
        let all = || failures.iter().filter(|f| f.of == of).map(|f| &f.error);
        let error = all().find(|e| e.stays()).or_else(|| all().next().filter(|_| lasts(of)))?;
        Some(Cause::new(reason, format!("{}; {}", text(error), remedy(error))))
    };
    Refusals {
        behind: failures.iter().any(|f| f.of == Purpose::Workers),
        workers: first(Purpose::Workers, reasons::workers::REFUSED, &|error| match (error, error.code()) {
            (Error::Apply { object, .. }, Some(400 | 422)) if object.starts_with("DaemonSet ") => {
                "correct spec.workers; workers that run go on as they were".to_owned()
            }
            (_, Some(403)) => allow(&format!("a quota or an admission policy of namespace {ours}")),
            _ => again(),
        }),
        claim: first(Purpose::Claim, reasons::ready::CLAIM_REFUSED, &|error| match (error, error.code()) {
            (Error::Create { .. }, Some(403)) => {
                let what = "a quota on claims, a LimitRange (the claim asks for 1 byte) or an admission policy";
                allow(&format!("{what} of namespace {dataset}"))
            }
            (_, Some(403)) => allow("an admission policy"),
            _ => again(),
        }),
    }
}

fn allow(by: &str) -> String {
    format!("{by} forbids it, or the operator's rights do not allow it: have that changed")
}

fn again() -> String {
    "the operator goes on trying".to_owned()
}

/// What failed, and why in the API server's own words.
pub(super) fn text(error: &Error) -> String {
    let mut text = error.told();
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::testing::{api_error, now};
    use super::*;

    fn failure(of: Purpose, code: u16, message: &str) -> Failure {
        let error = match of {
            Purpose::Workers => Error::Apply { object: "DaemonSet d".into(), source: api_error(code, message) },
            Purpose::Claim => Error::Create { object: "PersistentVolumeClaim c".into(), source: api_error(code, message) },
            Purpose::Sight | Purpose::Copies => Error::Delete { object: "Secret s".into(), source: api_error(code, message) },
        };
        Failure { of, error }
    }

    fn told(failures: &[Failure], lasts: bool) -> Refusals {
        refusals(failures, |_| lasts, "vision", "larder-system")
    }

    #[test]
    fn what_is_refused_is_told_at_once_and_what_may_pass_when_it_lasts() {
        for (code, at_once) in [
            (400, true),
            (403, true),
            (404, true),
            (422, true),
            (409, false),
            (429, false),
            (500, false),
            (503, false),
            (504, false),
        ] {
            let failures = [failure(Purpose::Workers, code, "why")];
            let now = told(&failures, false);
            assert_eq!((now.workers.is_some(), now.behind, now.claim), (at_once, true, None), "{code}");
            assert!(told(&failures, true).workers.is_some(), "{code}");
        }
    }

    #[test]
    fn it_lasts_when_no_attempt_has_been_good_for_a_minute() {
        let since = Since::default();
        let lasts = |uid, of, failed, s| since.lasts(uid, of, failed, now() + SignedDuration::from_secs(s));
        assert_eq!([0, 59, 60].map(|s| lasts("a", Purpose::Claim, true, s)), [false, false, true]);
        assert!(!lasts("a", Purpose::Workers, true, 60) && !lasts("b", Purpose::Claim, true, 60));
        assert!(!lasts("a", Purpose::Claim, false, 61) && !lasts("a", Purpose::Claim, true, 62));
        since.forget("a");
        assert!(!lasts("a", Purpose::Workers, true, 200) && lasts("b", Purpose::Claim, true, 200));
    }

    #[test]
    fn the_first_that_is_told_of_each_purpose_is_told_with_its_remedy() {
        let all = [
            failure(Purpose::Copies, 403, "forbidden"),
            failure(Purpose::Workers, 409, "conflict"),
            failure(Purpose::Workers, 422, "requests: must be less than limits"),
            failure(Purpose::Claim, 403, "exceeded quota"),
            failure(Purpose::Claim, 422, "another"),
        ];
        let Refusals { workers: Some(workers), claim: Some(claim), .. } = told(&all, false) else { panic!("both are told") };
        assert_eq!(
            workers.message,
            "apply DaemonSet d: requests: must be less than limits; correct spec.workers; workers that run go on as they were"
        );
        assert!(claim.message.starts_with("create PersistentVolumeClaim c: exceeded quota; a quota on claims"), "{claim:?}");
        assert!(claim.message.contains("namespace vision"), "{claim:?}");
        // A conflict that comes on top of a refusal changes nothing of what is told.
        assert_eq!(told(&all, true).workers, Some(workers));
        let long = told(&[failure(Purpose::Claim, 422, &"é".repeat(5000))], false).claim.unwrap();
        assert!(long.message.len() < LONGEST + 100, "{}", long.message.len());
    }
}
