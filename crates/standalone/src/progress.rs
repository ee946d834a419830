//! A preload as people see it: a bar on a terminal, else a line now and then.

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use larder_proto::control::v1::{Phase, Preload, Problem};
use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
const STYLE: &str = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {msg}  ETA {eta}";

/// Shows one preload.
pub(crate) struct Progress {
    name: String,
    shown: Shown,
    /// The problem told last.
    told: Option<Problem>,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Progress {
    pub fn new(name: &str) -> Self {
        let bar = || {
            // A template that is a constant of ours.
            let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_prefix(name.to_owned())
        };
        let shown = if stderr().is_terminal() { Shown::Bar(bar()) } else { Shown::Lines { last: None } };
        Self { name: name.to_owned(), shown, told: None }
    }

    pub fn show(&mut self, preload: &Preload) {
        let held_up = preload.phase() == Phase::Failed && preload.attempts == 0;
        // One that an attempt has ended with is the error that the command ends with.
        if held_up
            && let Some(problem) = preload.problem.as_ref().filter(|p| self.told.as_ref().map(|t| &t.reason) != Some(&p.reason))
        {
            let text = format!("{}: {} ({}); going on", self.name, problem.message, problem.reason);
            match &self.shown {
                Shown::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
                Shown::Lines { .. } => eprintln!("{text}"),
            }
            self.told = Some(problem.clone());
        }
        // Nothing is known before the share has been counted.
        if preload.files_total == 0 {
            return;
        }
        let files = format!("{}/{} files", preload.files_done, preload.files_total);
        let over = preload.phase() == Phase::Succeeded || preload.attempts > 0;
        match &mut self.shown {
            Shown::Bar(bar) => {
                if bar.length() != Some(preload.bytes_total) {
                    // What is here already is no speed.
                    bar.set_length(preload.bytes_total);
                    bar.set_position(preload.bytes_done);
                    bar.reset_eta();
                }
                bar.set_position(preload.bytes_done);
                bar.set_message(files);
                if over {
                    bar.abandon();
                }
            }
            Shown::Lines { last } => {
                if over || last.is_none_or(|last| last.elapsed() >= LINE) {
                    *last = Some(Instant::now());
                    let (done, total) = (BinaryBytes(preload.bytes_done), BinaryBytes(preload.bytes_total));
                    eprintln!("{}: {done} of {total}, {files} on disk", self.name);
                }
            }
        }
    }
}
