//! Ratios as an SVG: a bar for each row, its interval, its target.

use crate::rows::{Row, Verdict};
use std::fmt::Write as _;

const LEFT: f64 = 190.0;
const WIDTH: f64 = 520.0;
const ROW: f64 = 22.0;
const TOP: f64 = 34.0;
/// What is beyond is cut off; its number is beside it.
const MOST: f64 = 1.5;

/// The rows that have a ratio.
pub(super) fn ratios(rows: &[Row]) -> String {
    let shown: Vec<_> = rows.iter().filter_map(|row| Some((row, row.ratio?))).collect();
    let height = TOP + ROW * shown.len() as f64 + 12.0;
    let x = |ratio: f64| LEFT + WIDTH * ratio.clamp(0.0, MOST) / MOST;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 70.0
    );
    // Writing to a string cannot fail.
    for mark in [0.0, 0.5, 1.0, 1.5] {
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.1}\" y1=\"24\" x2=\"{0:.1}\" y2=\"{height:.0}\" stroke=\"#ccc\"/><text x=\"{0:.1}\" y=\"18\" text-anchor=\"middle\">{mark}</text>",
            x(mark)
        );
    }
    for (i, (row, ratio)) in shown.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let colour = match row.verdict {
            Verdict::Holds => "#3a8f5c",
            Verdict::Misses => "#c0504d",
            Verdict::Undecided => "#9a9a9a",
        };
        let (value, low, high, target) = (x(ratio.value), x(ratio.low), x(ratio.high), x(row.bound.value()));
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/><line x1=\"{low:.1}\" y1=\"{m:.1}\" x2=\"{high:.1}\" y2=\"{m:.1}\" stroke=\"black\"/><line x1=\"{target:.1}\" y1=\"{:.1}\" x2=\"{target:.1}\" y2=\"{:.1}\" stroke=\"black\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            LEFT - 8.0,
            y + 11.0,
            row.id,
            value - LEFT,
            y - 2.0,
            y + 16.0,
            LEFT + WIDTH + 8.0,
            y + 11.0,
            ratio.value,
            m = y + 7.0,
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rows::{Bound, Samples},
        stats::Ratio,
    };

    #[test]
    fn rows_without_a_ratio_have_no_bar() {
        let empty = Row::undecided("empty", "t", "s", Bound::AtMost(1.0), "why");
        let ratio = Some(Ratio { value: 0.9, low: 0.8, high: 17.0 });
        let shown = Row { id: "shown", ratio, samples: Samples::default(), ..empty.clone() };
        let svg = ratios(&[empty, shown]);
        assert!(svg.contains(">shown<") && !svg.contains(">empty<"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
