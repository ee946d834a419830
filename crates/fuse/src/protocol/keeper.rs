//! Mounter and node plugin ↔ keeper: items that outlive the process which made them.
//!
//! **Version 1, frozen.** A keeper runs for as long as its node does, so both ends may be of any release, and what is here is
//! never changed. It need not be: keys, values and descriptors are opaque, and mean nothing to the keeper.
//!
//! An item's *stamp* says which of two writes of a key is the later one: whoever makes an item gives it a stamp above all that
//! it knows of the key, and whoever passes an item on leaves it the one it has. So it does not matter who deposits first.

use crate::fdpass::MESSAGE_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest key.
pub const KEY_MAX: usize = 512;
/// Longest value. Written as JSON, and with its key, it must fit into a message besides.
pub const VALUE_MAX: usize = 48 * 1024;
/// What a page of keys may take of a message.
const PAGE_MAX: usize = MESSAGE_MAX - 256;

/// Asked of the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Hold this, and the descriptor that comes along, if one does, in place of an item of this key with a lower stamp.
    Put {
        /// See [`is_key`].
        key: String,
        /// Which write of the key it is.
        stamp: u64,
        /// At most [`VALUE_MAX`] bytes.
        value: Value,
    },
    /// The item of a key.
    Get {
        /// Which.
        key: String,
    },
    /// A page of the keys, in their order.
    Keys {
        /// Those above this one; the first page is after "".
        after: String,
    },
    /// Hold an item no more, unless its stamp is a higher one.
    Remove {
        /// Which.
        key: String,
        /// The highest that goes.
        stamp: u64,
    },
}

/// Answered by the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To `Put`: this, or a later item, is held.
    Kept {},
    /// To `Get`; with the descriptor, if the item has one.
    Item {
        /// As it was put.
        stamp: u64,
        /// As it was put.
        value: Value,
    },
    /// To `Get`: there is none.
    Absent {},
    /// To `Keys`. An empty page is behind the last one.
    Keys {
        /// Differs between processes: none of them holds what an earlier one held.
        life: u64,
        /// Keys and stamps.
        keys: Vec<(String, u64)>,
    },
    /// To `Remove`: none up to this stamp is held.
    Removed {},
    /// To any; nothing was changed.
    Error {
        /// What is wrong with the request.
        message: String,
    },
}

/// Bytes of an item. They may be a secret, so they are never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Value(pub String);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// May it be a key: 1 to [`KEY_MAX`] printable characters of ASCII?
#[must_use]
pub fn is_key(key: &str) -> bool {
    (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// As many of these keys as fit into one message.
pub fn page<'k>(keys: impl IntoIterator<Item = (&'k str, u64)>) -> Vec<(String, u64)> {
    let mut left = PAGE_MAX;
    let fits = |(key, _): &(&str, u64)| {
        // Each byte may be escaped; a stamp has at most 20 digits.
        let fits = left.checked_sub(2 * key.len() + 32);
        left = fits.unwrap_or_default();
        fits.is_some()
    };
    keys.into_iter().take_while(fits).map(|(key, stamp)| (key.to_owned(), stamp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_as_they_were_frozen() {
        let looks = |request: Request, json| assert_eq!(serde_json::to_string(&request).unwrap(), json);
        looks(
            Request::Put { key: "k".into(), stamp: 7, value: Value("v".into()) },
            r#"{"put":{"key":"k","stamp":7,"value":"v"}}"#,
        );
        looks(Request::Get { key: "k".into() }, r#"{"get":{"key":"k"}}"#);
        looks(Request::Keys { after: String::new() }, r#"{"keys":{"after":""}}"#);
        looks(Request::Remove { key: "k".into(), stamp: 7 }, r#"{"remove":{"key":"k","stamp":7}}"#);

        let looks = |reply: Reply, json| assert_eq!(serde_json::to_string(&reply).unwrap(), json);
        looks(Reply::Kept {}, r#"{"kept":{}}"#);
        looks(Reply::Item { stamp: 7, value: Value("v".into()) }, r#"{"item":{"stamp":7,"value":"v"}}"#);
        looks(Reply::Absent {}, r#"{"absent":{}}"#);
        looks(Reply::Keys { life: 1, keys: vec![("k".into(), 7)] }, r#"{"keys":{"life":1,"keys":[["k",7]]}}"#);
        looks(Reply::Removed {}, r#"{"removed":{}}"#);
        looks(Reply::Error { message: "m".into() }, r#"{"error":{"message":"m"}}"#);
    }

    #[test]
    fn keys_are_short_and_printable() {
        for good in ["k", "mount/a b~", &"k".repeat(KEY_MAX)] {
            assert!(is_key(good), "{good}");
        }
        for bad in ["", "a\nb", "\u{7f}", "ä", &"k".repeat(KEY_MAX + 1)] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn a_page_of_the_worst_keys_fits_into_a_message() {
        let key = r"\".repeat(KEY_MAX);
        let keys = page(std::iter::repeat_n((key.as_str(), u64::MAX), 1000));
        assert!((50..1000).contains(&keys.len()), "{}", keys.len());
        let reply = Reply::Keys { life: u64::MAX, keys };
        assert!(serde_json::to_vec(&reply).unwrap().len() <= MESSAGE_MAX);
    }

    #[test]
    fn a_value_is_not_shown() {
        let put = Request::Put { key: "permit/u".into(), stamp: 7, value: Value("a secret".into()) };
        assert!(!format!("{put:?}").contains("secret"), "{put:?}");
    }
}
