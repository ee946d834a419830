//! What is stored or sent, and may be read by another release than the one that wrote it: see `docs/design/upgrade.md`.
//!
//! Each format has a number, which is raised when an older release could misread what is written, and only then: fields that are
//! not known are passed over.

use serde::Deserialize;

/// A format of a later release. Who finds one leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has format {found}, and this release of Larder reads formats up to {reads}; it is left as it is: go back to the release that wrote it, or to a later one"
)]
pub struct LaterFormat {
    /// What it says.
    pub found: u32,
    /// The latest that is known here.
    pub reads: u32,
}

impl LaterFormat {
    /// Refuses a format above those that are read here.
    ///
    /// # Errors
    /// It is above them.
    pub fn refuse(found: u32, reads: u32) -> Result<(), Self> {
        if found <= reads { Ok(()) } else { Err(Self { found, reads }) }
    }
}

/// What all records have in common that are JSON; to be read before anything else of one, whose other fields may be others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Versioned {
    /// The number of its format. None in those that have not needed one yet.
    #[serde(default)]
    pub version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_format_is_named_beside_those_that_are_read_and_with_what_to_do() {
        assert_eq!(LaterFormat::refuse(2, 2), Ok(()));
        let told = LaterFormat::refuse(3, 2).unwrap_err().to_string();
        for part in ["format 3", "up to 2", "left as it is", "go back to the release that wrote it"] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }
}
