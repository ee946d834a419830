//! The `Range` header: one range with both ends.

use http::HeaderValue;
use std::ops::Range;

/// Larder's clients always know both ends; the other forms of RFC 9110 are refused.
pub(super) fn parse(header: Option<&HeaderValue>) -> Result<Range<u64>, &'static str> {
    const FORM: &str = "send a header Range: bytes=<first>-<last>";
    let text = header.ok_or(FORM)?.to_str().map_err(|_| FORM)?;
    let (first, last) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')).ok_or(FORM)?;
    let number = |s: &str| if s.bytes().all(|b| b.is_ascii_digit()) { s.parse::<u64>().ok() } else { None };
    let (first, last) = (number(first).ok_or(FORM)?, number(last).ok_or(FORM)?);
    let end = last.checked_add(1).ok_or(FORM)?;
    if first > last { Err("the range ends before it begins") } else { Ok(first..end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_range_with_both_ends_is_taken() {
        let parse = |s: &'static str| parse(Some(&HeaderValue::from_static(s)));
        assert_eq!(parse("bytes=0-0"), Ok(0..1));
        assert_eq!(parse("bytes=5-9"), Ok(5..10));
        for bad in [
            "",
            "bytes=",
            "bytes=5-",
            "bytes=-5",
            "bytes=9-5",
            "bytes=0-1,4-5",
            "bytes=+1-2",
            "0-1",
            "bytes=0-18446744073709551615",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(super::parse(None).is_err());
    }
}
