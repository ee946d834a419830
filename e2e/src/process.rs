//! Running other programs: always with an argument array, output captured, a failure that says what was run.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// What the harness does with a [`Command`].
pub trait Run {
    /// Runs to the end and returns standard output.
    ///
    /// # Errors
    /// The program did not start or did not exit with 0; the message has the end of its standard error.
    fn run(&mut self) -> Result<String>;

    /// Like [`Run::run`], with `input` on standard input.
    ///
    /// # Errors
    /// As [`Run::run`].
    fn run_with_input(&mut self, input: &[u8]) -> Result<String>;

    /// Runs to the end, whatever the exit status: (status is 0, standard output, standard error).
    ///
    /// # Errors
    /// The program did not start.
    fn run_any(&mut self) -> Result<(bool, String, String)>;

    /// Starts it in the background with both outputs appended to `log`.
    ///
    /// # Errors
    /// The log cannot be opened or the program did not start.
    fn start(&mut self, log: &Path) -> Result<Child>;
}

impl Run for Command {
    fn run(&mut self) -> Result<String> {
        self.stdin(Stdio::null());
        let (ok, stdout, stderr) = self.run_any()?;
        if !ok {
            bail!("`{}` failed: {}", line(self), end_of(if stderr.trim().is_empty() { &stdout } else { &stderr }, 15));
        }
        Ok(stdout)
    }

    fn run_with_input(&mut self, input: &[u8]) -> Result<String> {
        let mut child = self
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{}`", line(self)))?;
        let mut stdin = child.stdin.take().context("standard input of a child")?;
        let output = std::thread::scope(|scope| {
            // A program that ends before it has read everything is judged by its exit status.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output()
        })
        .with_context(|| format!("wait for `{}`", line(self)))?;
        if !output.status.success() {
            bail!("`{}` failed: {}", line(self), end_of(&String::from_utf8_lossy(&output.stderr), 15));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn run_any(&mut self) -> Result<(bool, String, String)> {
        let output = self.output().with_context(|| format!("start `{}`", line(self)))?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    fn start(&mut self, log: &Path) -> Result<Child> {
        let out = append_to(log)?;
        let err = out.try_clone().context("duplicate a log file")?;
        self.stdin(Stdio::null()).stdout(out).stderr(err).spawn().with_context(|| format!("start `{}`", line(self)))
    }
}

/// Opens a log for appending, with its folder.
///
/// # Errors
/// The folder or the file cannot be made.
pub fn append_to(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    }
    OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("open log {}", log.display()))
}

/// The command as a person would type it; long arguments shortened.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let short: String = argument.chars().take(120).collect();
        let _ = write!(text, " {short}{}", if short.len() < argument.len() { "…" } else { "" });
    }
    text
}

/// The last `lines` lines of a text.
pub fn end_of(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The last `lines` lines of a file, reading no more than its last 64 KiB; empty if there is none.
pub fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 64 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    end_of(&read().unwrap_or_default(), lines)
}
