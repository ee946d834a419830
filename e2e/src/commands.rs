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
use crate::ci::{self, Phase, Record};
use crate::cluster::{ClusterSpec, node_holder};
use crate::lab::Lab;
use crate::lanes::{self, Queue};
use crate::outside::{self, Outside};
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
    /// Break daemons, pods, disks and nodes under readers; results in target/faults
    Faults {
        /// Use the image that `target/images` has
        #[arg(long)]
        no_build: bool,
        /// Parts of the names of the cases to run, separated by commas
        #[arg(long, env = "ONLY", default_value = "")]
        only: String,
        /// Few faults of each kind, in about fifteen minutes
        #[arg(long, env = "QUICK", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", num_args = 0..=1, default_missing_value = "true")]
        quick: bool,
    },
    /// Measure Larder against a plain S3 client and the local disk; results in target/bench
    Bench {
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
    #[command(hide = true, name = lanes::STAGE)]
    /// See `lanes`
    Lane {
        /// The file with the tests that are left
        queue: PathBuf,
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
    #[command(flatten)]
    record: Record,
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
            Self::Bench { no_build } => bench(no_build),
            Self::Faults { no_build, only, quick } => faults(no_build, &only, quick),
            Self::Test(arguments) => test(&arguments),
            Self::Ci(arguments) => ci(arguments),
            Self::Keep { demo } => in_capsule(&own_arguments(), |run, tools| keep::inside(run, tools, demo)),
            Self::Lane { queue } => lane(queue),
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
        return work(&run, &tools).with_context(|| format!("logs are in {}", run.log_folder().display()));
    }
    RunDir::sweep();
    let run = RunDir::create()?;
    capsule::run(&run, &tools, arguments)
}

fn test(arguments: &TestArgs) -> Result<i32> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let tests: Vec<Test> = scenarios::ALL.iter().filter(|test| test.name.contains(filter)).copied().collect();
    let outside: Vec<Outside> = outside::ALL.iter().filter(|test| test.name.contains(filter)).copied().collect();
    if arguments.list {
        outside.iter().map(|test| test.name).chain(tests.iter().map(|test| test.name)).for_each(say);
        return Ok(0);
    }
    if tests.is_empty() && outside.is_empty() {
        bail!("no test has `{filter}` in its name; see `larder-e2e test --list`");
    }
    let mut record = arguments.record.clone();
    if !inside_a_capsule() {
        preflight::check()?;
        let tools = Tools::install(Wanted::All)?;
        let needs_larder = tests.iter().any(|test| test.needs_larder) || outside.iter().any(|test| test.needs_larder);
        if !arguments.no_build && needs_larder {
            product::build(&tools)?;
        }
        if !outside.is_empty() {
            let start = Instant::now();
            record.count(outside::run(&outside, record.tally()));
            record.phases.push(Phase::since("harness_tests", start));
        }
        if tests.is_empty() {
            return ci::conclude(record);
        }
    }
    let handed_on = record.arguments();
    let lanes = lanes::count(tests.len())?;
    let start = Instant::now();
    let mut conclude = |tally| {
        record.count(record.tally() + tally);
        record.phases.push(Phase::since("cluster_tests", start));
        ci::conclude(record.clone())
    };
    if lanes > 1 {
        return conclude(lanes::run(&tests, lanes)?);
    }
    let again = ["test".into()].into_iter().chain(arguments.filter.clone().map(OsString::from)).chain(handed_on);
    let total = tests.len();
    let mut left = tests.into_iter().enumerate();
    in_capsule(&again.collect::<Vec<_>>(), |run, tools| {
        let next = || Ok(left.next().map(|(index, test)| (test, format!("{} of {total}", index + 1))));
        conclude(suite::run(run, tools, next)?)
    })
}

/// Runs tests of a queue as long as there are any.
fn lane(queue: PathBuf) -> Result<i32> {
    if !inside_a_capsule() {
        lanes::follow_the_owner()?;
    }
    in_capsule(&own_arguments(), |run, tools| {
        let queue = Queue::at(queue);
        let mut record = Record::default();
        record.count(suite::run(run, tools, || queue.take())?);
        ci::conclude(record)
    })
}

fn ci(arguments: CiArgs) -> Result<i32> {
    if arguments.filter.is_some() {
        // Not by calling `test`: inside the capsule it is started with this process's arguments.
        return again(["test".into()].into_iter().chain(arguments.filter.map(OsString::from)));
    }
    let lacks = preflight::lacks()?;
    let wanted = if lacks.is_empty() { Wanted::All } else { Wanted::Checks };
    let start = Instant::now();
    let tools = Tools::install(wanted)?;
    let mut record = Record::default();
    record.phases.push(Phase::since("tools", start));
    if !lacks.is_empty() {
        let why = lacks.join("; ");
        say(format!("no cluster can run here, which needs {why}; what can be checked without one follows"));
        ci::checks(&tools, product::Parts::Programs, &mut record);
        let tests = outside::ALL.iter().map(|test| test.name).chain(scenarios::ALL.iter().map(|test| test.name));
        record.skipped.extend(tests.map(|name| format!("{name}: needs {why}")));
        return ci::conclude(record);
    }
    ci::checks(&tools, product::Parts::All, &mut record);
    if !product::archive().exists() {
        return ci::conclude(record);
    }
    again(["test".into(), "--no-build".into()].into_iter().chain(record.arguments()))
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
            product::build(&tools)?;
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

fn faults(no_build: bool, only: &str, quick: bool) -> Result<i32> {
    if !inside_a_capsule() {
        preflight::check()?;
        let tools = Tools::install(Wanted::All)?;
        if !no_build {
            product::build(&tools)?;
        }
    }
    in_capsule(&own_arguments(), |run, tools| {
        let mut spec = ClusterSpec::from_environment()?;
        spec.quick_restarts = true;
        let lab = Lab::up(run, tools, &spec)?;
        let hold = scenarios::faults(&lab, only, quick)?;
        lab.down().map(|()| i32::from(!hold))
    })
}

fn bench(no_build: bool) -> Result<i32> {
    if !inside_a_capsule() {
        preflight::check()?;
        let tools = Tools::install(Wanted::Cluster)?;
        tools.s5cmd()?;
        if !no_build {
            product::build(&tools)?;
        }
    }
    in_capsule(&own_arguments(), |run, tools| {
        let lab = Lab::up(run, tools, &ClusterSpec::from_environment()?)?;
        scenarios::bench(&lab)?;
        lab.down().map(|()| 0)
    })
}
