//! Kubernetes quantities as bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{Schema, SchemaGenerator, json_schema};

/// What the API server accepts as a quantity.
const PATTERN: &str =
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The quantity as a whole number of bytes, rounded up; nothing if it is no quantity, negative or beyond `u64`.
#[must_use]
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    // Exact decimals: mantissa without its point, and how many digits stood behind the point.
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let behind = u32::try_from(fraction.len()).ok()?;
    let (times, power): (u128, i32) = match suffix {
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        other => (1, other.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let power = power.checked_sub(i32::try_from(behind).ok()?)?;
    let scaled = mantissa.checked_mul(times)?;
    let value = if power >= 0 {
        scaled.checked_mul(10u128.checked_pow(power.unsigned_abs())?)?
    } else {
        // A divisor beyond u128 leaves less than one byte.
        10u128.checked_pow(power.unsigned_abs()).map_or(u128::from(scaled > 0), |d| scaled.div_ceil(d))
    };
    u64::try_from(value).ok()
}

/// Schema of one quantity, without the page of prose that the generic one carries.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN })
}

/// Schema of a map of quantities.
pub(crate) fn map_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": schema(generator) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_exact_and_fractions_round_up() {
        for (text, want) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("2Ti", Some(2 << 40)),
            ("1.5Gi", Some(3 << 29)),
            ("10G", Some(10_000_000_000)),
            ("+3k", Some(3000)),
            ("1e3", Some(1000)),
            ("12E2", Some(1200)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            ("15Ei", Some(15 << 60)),
            ("16Ei", None),
            ("-1", None),
            ("", None),
            ("Gi", None),
            ("1 Gi", None),
            ("1.2.3", None),
            ("1e99", None),
        ] {
            assert_eq!(bytes(&Quantity(text.into())), want, "{text:?}");
        }
    }
}
