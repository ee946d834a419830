//! Files that could not be fetched, told together.

use larder_proto::control::v1::Problem;
use parking_lot::Mutex;
use std::collections::HashSet;

/// Files that are named in a condition; the log names more.
const NAMED: usize = 10;
/// Files that are named in the log, so that an origin that refuses a million of them does not fill the disk.
const LOGGED: u64 = 1000;

/// Of one attempt.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Inodes: of a large file several stripes may fail.
    files: HashSet<u64>,
    first: Option<Problem>,
    /// Path and reason of some of the others.
    others: Vec<String>,
}

impl Failures {
    /// Gives how many there are. `news`: not told by an attempt before this one.
    pub fn add(&self, inode: u64, path: &str, problem: Problem, news: bool) -> u64 {
        let mut told = self.0.lock();
        let is_new = told.files.insert(inode);
        let count = told.files.len() as u64;
        if !is_new {
            return count;
        }
        if news && count <= LOGGED {
            tracing::warn!(path, reason = problem.reason, message = problem.message, "a file could not be fetched");
        }
        if told.first.is_none() {
            told.first = Some(problem);
        } else if told.others.len() + 1 < NAMED {
            told.others.push(format!("{path:?} ({})", problem.reason));
        }
        count
    }

    /// All of them in one problem, which has the reason of the first.
    pub fn told(self) -> (u64, Option<Problem>) {
        let Told { files, first, mut others } = self.0.into_inner();
        let count = files.len() as u64;
        others.sort();
        let problem = first.map(|mut first| {
            let named = others.len() as u64 + 1;
            if named < count {
                others.push(format!("{} more", count - named));
            }
            if !others.is_empty() {
                first.message.push_str(&format!("; {count} files failed, also {}", others.join(", ")));
            }
            first
        });
        (count, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: &str) -> Problem {
        Problem { reason: reason.into(), message: format!("it was {reason}") }
    }

    #[test]
    fn the_first_is_told_in_full_some_others_by_name_and_the_rest_by_number() {
        assert_eq!(Failures::default().told(), (0, None));
        let one = Failures::default();
        assert_eq!(one.add(7, "a", problem("Changed"), true), 1);
        assert_eq!(one.add(7, "a", problem("AccessDenied"), true), 1, "another stripe of it");
        assert_eq!(one.told(), (1, Some(problem("Changed"))));
        let many = Failures::default();
        for n in 0..20 {
            many.add(n, &format!("f{n}"), problem(if n == 0 { "Changed" } else { "AccessDenied" }), true);
        }
        let (count, told) = many.told();
        let told = told.unwrap();
        assert_eq!((count, told.reason.as_str()), (20, "Changed"));
        assert!(told.message.starts_with("it was Changed; 20 files failed, also "), "{}", told.message);
        assert!(told.message.contains("\"f9\" (AccessDenied)") && told.message.ends_with(", 10 more"), "{}", told.message);
    }
}
