//! A key between two keys.

/// Longest key that is made up: that of S3.
const KEY_MAX: usize = 1024;
/// Keys are mostly made of what can be printed.
const FIRST: u32 = 0x20;
const ASCII: u32 = 0x7f;
const BEYOND: u32 = char::MAX as u32 + 1;
const SURROGATES: std::ops::Range<u32> = 0xd800..0xe000;

/// A key that is greater than `low` and less than `high`, with about as much room on both sides; `high` is `None` at the end of
/// everything. `None`: there is none worth asking for. `low` MUST be less than `high`.
pub(super) fn middle(low: &str, high: Option<&str>) -> Option<String> {
    let common = high.map_or(0, |high| {
        let same = low.char_indices().zip(high.chars()).take_while(|((_, a), b)| a == b);
        same.map(|((at, c), _)| at + c.len_utf8()).last().unwrap_or(0)
    });
    let (mut head, mut rest) = (low[..common].to_owned(), &low[common..]);
    let mut bound = high.and_then(|high| high[common..].chars().next()).map(u32::from);
    while head.len() < KEY_MAX {
        let next = rest.chars().next();
        let from = next.map_or(FIRST - 1, u32::from);
        let to = bound.unwrap_or(if from + 1 < ASCII { ASCII } else { BEYOND });
        let middle = from + to.saturating_sub(from) / 2;
        let middle = if SURROGATES.contains(&middle) { SURROGATES.end } else { middle };
        if from < middle && middle < to && middle >= FIRST {
            head.push(char::from_u32(middle)?);
            return Some(head);
        }
        // Neighbours: whatever begins with the lower one and is greater than the rest of it.
        head.push(next?);
        rest = &rest[next?.len_utf8()..];
        bound = None;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_as_they_are_used_are_cut_in_the_middle() {
        assert_eq!(middle("train/n01", Some("train/n09")).as_deref(), Some("train/n05"));
        assert_eq!(middle("a", Some("b")).as_deref(), Some("aO"));
        assert_eq!(middle("sample_0001", None).as_deref(), Some("y"));
        assert_eq!(middle("", Some("!")).as_deref(), Some(" "));
        assert_eq!(middle("x/", Some("x/\u{1}")), None);
    }

    proptest! {
        #[test]
        fn it_lies_between(low in ".{0,6}", high in proptest::option::of(".{0,6}")) {
            if let Some(high) = &high { prop_assume!(low < *high); }
            if let Some(middle) = middle(&low, high.as_deref()) {
                prop_assert!(middle > low);
                prop_assert!(high.is_none_or(|high| middle < high));
            }
        }

        /// However the keys lie, cutting again and again comes down to any of them.
        #[test]
        fn the_rest_shrinks_to_nothing_in_few_cuts(low in "[a-z]{1,3}/[0-9]{1,8}", key in "[a-z]{1,3}/[0-9]{1,8}") {
            prop_assume!(low < key);
            let mut high = None;
            for _ in 0..120 {
                match middle(&low, high.as_deref()) {
                    Some(at) if at >= key => high = Some(at),
                    _ => return Ok(()),
                }
            }
            prop_assert!(false, "{low} {key} {high:?}");
        }
    }
}
