//! The subcommands: each outside a capsule, and those that need one inside it again.

mod keep;
mod preflight;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::capsule::{self, stage};
use crate::ci::{self, Phase, Tally};
use crate::cluster::{ClusterSpec, node_holder};
use crate::lab::Lab;
use crate::product;
use crate::report::say;
use crate::run_dir::{RUN_VARIABLE, RunDir};
use crate::scenarios;
use crate::suite::{self, Test};
use crate::tools::{Tools, Wanted};

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Install the pinned programs into the cache
    Tools(ToolsArgs),
    /// Start a cluster and leave it running in the background
    Up,
    /// Open a shell, or run a command, where kubectl, helm and larder work on the running cluster
    Shell(ShellArgs),
    /// End the running cluster
    Down,
    /// Show Larder at work; with KEEP=1 leave it running in the background
    Demo {
        /// Use the image that `target/images` has
        #[arg(long)]
        no_build: bool,
    },
    /// Run the tests on a cluster whose name contains the filter
    Test(TestArgs),
    /// Run all checks and tests, as before a change lands; with a filter only the tests `test` would run
    Ci(CiArgs),
    /// See `commands::keep`
    #[command(hide = true, name = keep::STAGE)]
    Keep {
        /// After showing Larder at work
        #[arg(long)]
        demo: bool,
    },
    #[command(hide = true, name = stage::ENTER)]
    /// See `capsule`
    Enter(Rest),
    #[command(hide = true, name = stage::INIT)]
    /// See `capsule`
    Init(Rest),
    #[command(hide = true, name = stage::JANITOR)]
    /// See `capsule`
    Janitor {
        /// The run
        id: String,
    },
    #[command(hide = true, name = stage::NODE)]
    /// See `cluster::node_holder`
    Node {
        /// The node's folder
        folder: PathBuf,
        /// Its name
        name: String,
        /// `gpu` or `cpu`
        kind: String,
        /// The root folder of its kubelet
        kubelet_dir: String,
    },
}

/// Arguments for a later stage.
#[derive(Args)]
pub struct Rest {
    /// Passed on
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Arguments of `tools`.
#[derive(Args)]
pub struct ToolsArgs {
    /// Only what a cluster needs; not what only some tests need
    #[arg(long)]
    cluster: bool,
    /// Afterwards print each tool and its path
    #[arg(long)]
    list: bool,
}

/// Arguments of `shell`.
#[derive(Args)]
pub struct ShellArgs {
    /// On this node instead of beside the cluster
    #[arg(long)]
    node: Option<String>,
    /// Command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Arguments of `test`.
#[derive(Args)]
pub struct TestArgs {
    /// Part of the names of the tests to run; all if absent
    filter: Option<String>,
    /// Only print the names
    #[arg(long)]
    list: bool,
    /// Use the image that `target/images` has
    #[arg(long)]
    no_build: bool,
    /// Add this many to those that passed
    #[arg(long, hide = true, default_value_t = 0)]
    passed: usize,
    /// Add this many to those that failed
    #[arg(long, hide = true, default_value_t = 0)]
    failed: usize,
    /// What came before, and how long it took
    #[arg(long = "phase", hide = true)]
    phases: Vec<Phase>,
}

/// Arguments of `ci`.
#[derive(Args)]
pub struct CiArgs {
    /// As of `test`
    filter: Option<String>,
}

impl Command {
    /// Runs it; returns the exit status.
    ///
    /// # Errors
    /// It failed.
    pub fn run(self) -> Result<i32> {
        match self {
            Self::Tools(arguments) => tools(&arguments),
            Self::Up => keep::up(false),
            Self::Shell(arguments) => keep::shell(arguments.node.as_deref(), &arguments.command),
            Self::Down => keep::down(),
            Self::Demo { no_build } => demo(no_build),
            Self::Test(arguments) => test(&arguments),
            Self::Ci(arguments) => ci(arguments),
            Self::Keep { demo } => in_capsule(&own_arguments(), |run, tools| keep::inside(run, tools, demo)),
            Self::Enter(rest) => capsule::enter(&rest.rest).map(|()| 1),
            Self::Init(rest) => capsule::init(&rest.rest),
            Self::Janitor { id } => capsule::janitor(&id).map(|()| 0),
            Self::Node { folder, name, kind, kubelet_dir } => {
                node_holder::hold(&folder, &name, &kind, &kubelet_dir).map(|()| 0)
            }
        }
    }
}

fn tools(arguments: &ToolsArgs) -> Result<i32> {
    let tools = Tools::install(if arguments.cluster { Wanted::Cluster } else { Wanted::All })?;
    if arguments.list {
        for (name, path) in tools.programs()? {
            say(format!("{name} {}", path.display()));
        }
        for (name, path) in
            [("debian-host", tools.host_root()), ("debian-image", tools.image_root()), ("busybox", tools.busybox())]
        {
            say(format!("{name} {}", path.display()));
        }
    }
    Ok(0)
}

fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

fn inside_a_capsule() -> bool {
    std::env::var_os(RUN_VARIABLE).is_some()
}

/// Runs `work` inside a capsule: makes one that runs this program with `arguments`, which must lead here again; or, being
/// in it, does the work.
fn in_capsule(arguments: &[OsString], work: impl FnOnce(&RunDir, &Tools) -> Result<i32>) -> Result<i32> {
    let tools = Tools::locate()?;
    if inside_a_capsule() {
        let run = RunDir::current()?;
        capsule::prepare(&run, &tools)?;
        return work(&run, &tools);
    }
    RunDir::sweep();
    let run = RunDir::create()?;
    let status = capsule::run(&run, &tools, arguments)?;
    if status != 0 {
        say(format!("logs: {}", run.log_folder().display()));
    }
    Ok(status)
}

fn test(arguments: &TestArgs) -> Result<i32> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let tests: Vec<Test> = scenarios::ALL.iter().filter(|test| test.name.contains(filter)).copied().collect();
    if arguments.list {
        tests.iter().for_each(|test| say(test.name));
        return Ok(0);
    }
    if tests.is_empty() {
        bail!("no test has `{filter}` in its name; see `larder-e2e test --list`");
    }
    if !inside_a_capsule() {
        preflight::check()?;
        let tools = Tools::install(Wanted::All)?;
        if !arguments.no_build && tests.iter().any(|test| test.needs_larder) {
            product::build(&tools, product::Scope::Product)?;
        }
    }
    in_capsule(&own_arguments(), |run, tools| {
        let tally = Tally { passed: arguments.passed, failed: arguments.failed };
        let start = Instant::now();
        let tally = suite::run(run, tools, &tests, tally)?;
        let phases = [arguments.phases.as_slice(), &[Phase::since("cluster_tests", start)]].concat();
        ci::conclude(tally, &phases)
    })
}

fn ci(arguments: CiArgs) -> Result<i32> {
    if arguments.filter.is_some() {
        // Not by calling `test`: inside the capsule it is started with this process's arguments.
        return again(["test".into()].into_iter().chain(arguments.filter.map(OsString::from)));
    }
    preflight::check()?;
    let start = Instant::now();
    let tools = Tools::install(Wanted::All)?;
    let installed = Phase::since("tools", start);
    let (tally, mut phases) = ci::checks(&tools);
    phases.insert(0, installed);
    if !product::archive().exists() {
        return ci::conclude(tally, &phases);
    }
    let counts = [format!("--passed={}", tally.passed), format!("--failed={}", tally.failed)];
    let phases = phases.iter().map(|phase| format!("--phase={phase}"));
    again(["test".into(), "--no-build".into()].into_iter().chain(counts.into_iter().chain(phases).map(OsString::from)))
}

/// Becomes this program with other arguments.
fn again(arguments: impl Iterator<Item = OsString>) -> Result<i32> {
    Err(std::process::Command::new(capsule::this_program()?).args(arguments).exec()).context("start this program again")
}

fn demo(no_build: bool) -> Result<i32> {
    if !inside_a_capsule() {
        preflight::check()?;
        let tools = Tools::install(Wanted::Cluster)?;
        if !no_build {
            product::build(&tools, product::Scope::Product)?;
        }
        if std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0") {
            return keep::up(true);
        }
    }
    in_capsule(&own_arguments(), |run, tools| {
        let lab = Lab::up(run, tools, &ClusterSpec::from_environment()?)?;
        scenarios::demo(&lab, false)?;
        lab.down()?;
        say("the cluster is down, nothing is left");
        Ok(0)
    })
}
