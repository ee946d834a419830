//! What came out: results.json, a table, a plot.

mod plot;

use crate::{
    RunArgs,
    rows::{Row, Verdict},
};
use anyhow::Context as _;
use std::{fmt::Write as _, fs};

/// One row, as soon as it is known.
pub(crate) fn say(row: &Row) {
    println!("{}", line(row));
}

/// Writes everything beneath the folder for results.
pub(crate) fn write(args: &RunArgs, facts: &str, rows: &[Row]) -> anyhow::Result<()> {
    let stem = if args.quick { "results-quick" } else { "results" };
    let write = |extension: &str, text: String| {
        let path = args.out.join(format!("{stem}.{extension}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("json", serde_json::to_string_pretty(rows)? + "\n")?;
    write("md", markdown(facts, rows))?;
    write("svg", plot::ratios(rows))?;
    println!();
    rows.iter().for_each(say);
    let count = |verdict| rows.iter().filter(|r| r.verdict == verdict).count();
    println!(
        "{} rows: {} hold, {} miss, {} undecided; {}/{stem}.json",
        rows.len(),
        count(Verdict::Holds),
        count(Verdict::Misses),
        count(Verdict::Undecided),
        args.out.display()
    );
    Ok(())
}

fn line(row: &Row) -> String {
    let target = row.bound.text();
    let verdict = word(row.verdict);
    match row.ratio {
        Some(r) => format!(
            "{:<24} {:>7.3} [{:.3}, {:.3}]  {target:<8} {verdict:<9} {} {} of {} {}",
            row.id,
            r.value,
            r.low,
            r.high,
            short(crate::stats::median(&row.samples.mount)),
            row.unit,
            short(crate::stats::median(&row.samples.local)),
            row.unit
        ),
        None => format!("{:<24} {:>7} {:<14}  {target:<8} {verdict:<9} {}", row.id, "-", "", row.conditions),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Holds => "holds",
        Verdict::Misses => "misses",
        Verdict::Undecided => "undecided",
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}

fn markdown(facts: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "{} UTC, larder-bench {}, {facts}\n\n| id | test | ratio | 95 % interval | target | verdict | mount | local | CPU s, mount / local |\n|---|---|---|---|---|---|---|---|---|\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M"),
        env!("CARGO_PKG_VERSION"),
    );
    for row in rows {
        let target = row.bound.text();
        let verdict = word(row.verdict);
        // Writing to a string cannot fail.
        let _ = match row.ratio {
            Some(r) => writeln!(
                text,
                "| `{}` | {} | {:.3} | {:.3} – {:.3} | {target} | {verdict} | {} {unit} | {} {unit} | {} |",
                row.id,
                row.test,
                r.value,
                r.low,
                r.high,
                short(crate::stats::median(&row.samples.mount)),
                short(crate::stats::median(&row.samples.local)),
                row.cpu_seconds.map_or_else(String::new, |[local, mount]| format!("{} / {}", short(mount), short(local))),
                unit = row.unit,
            ),
            None => writeln!(text, "| `{}` | {} | | | {target} | {verdict} | {} | | |", row.id, row.test, row.conditions),
        };
    }
    text
}
