//! What tells an object from the one that had its key before: its ETag.
//!
//! A weak ETag (`W/"x"`) says that what it stood for means the same, not that it has the same bytes. So size and time of the listing are
//! kept with it, and compared as well.

/// How far the times of a listing and of an answer may be apart: one of them may be rounded to seconds.
const ROUNDED: i64 = 1;

/// As it is kept in the catalog.
pub(super) fn of(e_tag: String, size: u64, mtime_ns: i64) -> String {
    if is_weak(&e_tag) { format!("{e_tag} {size} {}", mtime_ns.div_euclid(1_000_000_000)) } else { e_tag }
}

/// The version of a snapshot, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version<'a> {
    /// Without what makes it weak, and without quotes: some servers list ETags without them.
    tag: &'a str,
    /// Size and seconds since 1970.
    weak: Option<(u64, i64)>,
}

impl<'a> Version<'a> {
    pub fn new(version: &'a str) -> Self {
        let weak = is_weak(version).then(|| version.rsplitn(3, ' '));
        let parts = weak.and_then(|mut parts| Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?)));
        match parts {
            Some((seconds, size, tag)) => Self { tag: bare(tag), weak: Some((size, seconds)) },
            None => Self { tag: bare(version), weak: None },
        }
    }

    /// For If-Match, which compares strongly: a weak ETag never passes it.
    pub fn condition(&self) -> Option<String> {
        self.weak.is_none().then(|| format!("\"{}\"", self.tag))
    }

    /// Is this the object? Also one whose ETag was made weak on the way, as proxies do.
    pub fn is(&self, e_tag: &str, size: u64, seconds: i64) -> bool {
        // 0: nothing was said about the time.
        let same_time = |listed: i64| listed == 0 || seconds == 0 || (listed - seconds).abs() <= ROUNDED;
        self.tag == bare(e_tag) && self.weak.is_none_or(|(listed, time)| listed == size && same_time(time))
    }
}

fn is_weak(e_tag: &str) -> bool {
    e_tag.starts_with("W/")
}

fn bare(e_tag: &str) -> &str {
    let tag = e_tag.strip_prefix("W/").unwrap_or(e_tag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strong_ones_are_compared_by_themselves_and_weak_ones_with_size_and_time() {
        let strong = of("\"a b\"".into(), 5, 7_900_000_000);
        assert_eq!(strong, "\"a b\"");
        let strong = Version::new(&strong);
        assert_eq!(strong.condition().as_deref(), Some("\"a b\""));
        assert_eq!(Version::new("a b"), strong);
        assert!(strong.is("\"a b\"", 0, 0) && strong.is("W/\"a b\"", 0, 0) && !strong.is("\"a\"", 0, 0));

        let weak = of("W/\"a b\"".into(), 5, 7_900_000_000);
        let weak = Version::new(&weak);
        assert_eq!(weak.condition(), None);
        for (e_tag, size, seconds, same) in [
            ("W/\"a b\"", 5, 7, true),
            ("\"a b\"", 5, 8, true),
            ("W/\"a b\"", 5, 0, true),
            ("W/\"a b\"", 6, 7, false),
            ("W/\"a b\"", 5, 9, false),
            ("W/\"a\"", 5, 7, false),
        ] {
            assert_eq!(weak.is(e_tag, size, seconds), same, "{e_tag} {size} {seconds}");
        }
    }
}
