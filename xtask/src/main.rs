//! Every developer command of cadscope: from a machine with nothing but Rust to a tested, measured build.
//!
//! Only this crate knows how tools are installed and in which order things are checked; what it prints is the
//! documentation of each step.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Purpose;

mod alerts;
mod bench;
mod build;
mod builds;
mod coverage;
mod dashboards;
mod demo;
mod docs;
mod fresh;
mod fuzz;
mod image;
mod imports;
mod kubernetes;
mod package;
mod places;
mod running_agent;
mod setup;
mod shell;
mod statistics;
mod summary;
mod test;
#[path = "../../agent/build/toolchain.rs"]
#[expect(
    dead_code,
    reason = "shared with agent/build.rs, which compiles with it; here it is only looked for"
)]
mod toolchain;
mod vm;

/// Every developer command of cadscope
///
/// A machine needs Rust (rustup) and, to install and test, root on Debian; everything else is installed by `setup`,
/// which the other commands call. Downloads are kept in ${CADSCOPE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/cadscope},
/// never in the repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: eBPF toolchain, FreeCAD, test tools
    ///
    /// Looks first, then installs from Debian packages and with `cargo install`, printing each step and its reason.
    /// Where everything is there it says so and ends. On another distribution, or without root, it prints what to
    /// install and exits with 1.
    Setup {
        /// Only report what is missing; exit 1 if anything is
        #[arg(long)]
        check: bool,
        /// What the machine is going to be used for
        #[arg(long = "for", value_enum, default_value_t = Purpose::Test)]
        purpose: Purpose,
    },
    /// Build the agent: one binary, `cadscope`, which carries the kernel side
    Build {
        /// Optimised, as it is shipped
        #[arg(long)]
        release: bool,
    },
    /// Make the other builds of FreeCAD and OCCT that tests run on, in the cache
    ///
    /// Root file systems of other Debian suites (mmdebstrap, needs root) and virtual environments with Python wheels.
    /// Makes what is missing; `test` calls it for those it needs.
    Builds {
        /// Which (all unless told): freecad-1.0, freecad-1.1, wheel-7.7, wheel-7.8, wheel-7.9, wheel-8.0,
        /// otel-python, otelcol, kubernetes, qemu, linux-5.10, linux-6.1, linux-6.12, linux-7, …
        names: Vec<String>,
    },
    /// Write what is made from something else
    ///
    /// docs/metrics.md from the registry, docs/support-matrix.md and docs/probe-sites.md from the real builds,
    /// deploy/kustomize from the chart.
    Docs,
    /// Make a site of the documentation: target/book/index.html
    Book,
    /// Build the container image with buildah: target/image/cadscope-amd64.tar
    ///
    /// From deploy/image/Containerfile, in a Debian that is made of its packages; the first time takes several minutes.
    Image {
        /// The machine that it is for
        #[arg(long, value_enum, default_value_t = image::Machine::Amd64)]
        machine: image::Machine,
    },
    /// Build the Debian package: target/package/cadscope_VERSION_amd64.deb
    Package,
    /// Write what is made from xtask/src/dashboards and from the rules: dashboards/*.json, the PrometheusRule
    Dashboards,
    /// Show it on a real FreeCAD job: the waterfall of its operations, then its metrics
    ///
    /// Runs `cadscope trace` on xtask/demo/job.py, then `cadscope agent` beside the same job, and prints the metric
    /// lines which that job produced. Needs root; changes nothing outside a temporary directory.
    Demo {
        /// Another job than xtask/demo/job.py
        #[arg(long, value_name = "FILE")]
        script: Option<PathBuf>,
    },
    /// Check and test everything, cheap checks first
    ///
    /// Format, import order, licences, lints; then tests without root; then tests with root and real FreeCAD. Stops
    /// at the first stage that fails, and prints how long each took. No test skips: what the machine lacks is a
    /// failure that says how to get it.
    Test {
        /// Also what takes long: tests marked `#[ignore]`, and the long form of others (CADSCOPE_FULL=1)
        #[arg(long)]
        full: bool,
    },
    /// What continuous integration runs: `test`, where a lock file that is not up to date is a failure too
    Ci {
        /// Also what takes long: tests marked `#[ignore]`, and the long form of others (CADSCOPE_FULL=1)
        #[arg(long)]
        full: bool,
    },
    /// Try the README as a new user: a Debian with nothing but Rust, a clone of what is committed, one command
    ///
    /// In a root file system of its own, which is made for it and removed afterwards; needs root and mmdebstrap. The
    /// demo takes about ten minutes.
    Fresh {
        /// Which of the two commands
        #[arg(value_enum, default_value_t = fresh::Promise::Demo)]
        promise: fresh::Promise,
        /// Leave the root file system for a look
        #[arg(long)]
        keep: bool,
    },
    /// A real Kubernetes node on this machine: `up`, `kubectl …`, `load IMAGE.tar`, `image …`, `down`
    ///
    /// One node with etcd, apiserver, kubelet and containerd, in namespaces of its own; needs root. The programs are
    /// compiled once, in about five minutes. `k8s image OUT.tar NAME:TAG [--entrypoint ARG]… SOURCE=/DEST…` makes an
    /// image out of files.
    K8s {
        /// What the node is to do; without, it says what there is
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Give inputs that coverage guides to everything that parses what a worker or a client says, for as long as you like
    ///
    /// libFuzzer, with the targets of agent/tests/mutations; needs `cargo xtask setup --for fuzz`. A choice of what it learns goes
    /// into tests/fuzz/corpus; an input that breaks a promise does in any case, and is a failure.
    Fuzz {
        /// Some of elf, proc, environ, cgroup, records, catalogue, config, http, memory, exports, names, accept, url; all
        /// in turn without
        targets: Vec<String>,
        /// How long each
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
    },
    /// Try other kernels in virtual machines: 5.10 (is refused), 6.1, 6.12, 7 (the newest)
    ///
    /// Debian's kernels under QEMU, whose processor is emulated; the guests see this machine's files and write none of them.
    /// Runs the same tests as on this kernel, release build, and writes what came out into the table of
    /// docs/reliability.md. Takes about half an hour a kernel, `--short` a minute.
    Vm {
        /// Which kernels (all unless told)
        kernels: Vec<String>,
        /// Only what `cargo xtask test` tries
        #[arg(long)]
        short: bool,
        /// Only what this file of tests/tests tries (more than once for several): `memory`
        #[arg(long, value_name = "TEST")]
        only: Vec<String>,
    },
    /// How much of the agent's code unit and root tests reach: docs/coverage.md
    ///
    /// Compiles with the compiler's counters, in a folder of its own; takes as long as the tests and some minutes more.
    Coverage {
        /// Only these programs of tests/tests (all unless told)
        tests: Vec<String>,
    },
    /// Mixed FreeCAD work and faults for as long as you like, while everything is counted: nothing lost, nothing kept
    Soak {
        /// How long
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// What observing one call costs, by class of its sites, against the kernel's floor and bpftrace: docs/bench-calls.md
    Calls {
        /// Rounds; in each every way of observing takes its turn
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(3..))]
        rounds: u32,
    },
    /// Operations a second until some are lost, and what the agent uses meanwhile: docs/bench-throughput.md
    Throughput {
        /// How long each rate is held
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// What the agent uses beside 1, 50 and 200 idle workers: docs/bench-scale.md
    Scale {
        /// How long each number is watched
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// From exec until the first probe is in place, for new and known files: docs/bench-ready.md
    Ready {
        /// Workers of each kind
        #[arg(long, default_value_t = 100)]
        rounds: u32,
    },
    /// Time to place 1,000 sites and to take them away: docs/bench-attach.md
    Attach {
        /// How often
        #[arg(long, default_value_t = 7)]
        rounds: u32,
    },
    /// Time and memory of the agent's start: docs/bench-start.md
    Start {
        /// How often
        #[arg(long, default_value_t = 7)]
        rounds: u32,
    },
    /// What being observed costs FreeCAD's own test suite (two minutes a pair): docs/bench-suite.md
    Suite {
        /// Pairs of runs
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..))]
        pairs: u32,
    },
    /// The same for a job or FreeCAD's tests in instructions, counted by an emulated machine: docs/bench-instructions.md
    Instructions {
        /// Pairs of runs: of the job, whose runs take minutes, and of FreeCAD's tests, whose take half an hour; of 0 the page keeps its row
        #[arg(long, num_args = 2, value_names = ["JOB", "TESTS"], default_values_t = [2, 4])]
        pairs: Vec<u32>,
        /// Make the page anew of what was measured before: `bench-instructions.txt` of the target directory
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// What finding the probe sites in the libraries of each build costs: docs/bench-resolve.md
    Resolve,
    /// What being observed costs a FreeCAD job, in CPU time and in wall time
    ///
    /// Runs the job in pairs, alternately with and without `cadscope agent` beside it, and writes the ratio (median
    /// and its 95 % bootstrap confidence interval) to docs/bench-job.md with kernel, processor and date.
    Job {
        /// Pairs of runs
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..))]
        pairs: u32,
        /// Another job than xtask/demo/job.py
        #[arg(long, value_name = "FILE")]
        script: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done: Result<()> = match Arguments::parse().command {
        Task::Setup { check: true, purpose } => setup::check(purpose),
        Task::Setup { check: false, purpose } => setup::install(purpose),
        Task::Build { release } => build::build(build::Profile::named(release)).map(drop),
        Task::Builds { names } => setup::install(Purpose::Test).and_then(|()| builds::make(&names)),
        Task::Docs => docs::write(),
        Task::Book => docs::book(),
        Task::Image { machine } => image::image(machine).map(drop),
        Task::Package => package::package().map(drop),
        Task::Fuzz { targets, minutes } => fuzz::fuzz(&targets, minutes),
        Task::Dashboards => dashboards::write().and_then(|()| alerts::write()),
        Task::Demo { script } => demo::demo(script),
        Task::Test { full } => test::test(test::Rules { full, locked: false }),
        Task::Ci { full } => test::test(test::Rules { full, locked: true }),
        Task::Vm { kernels, short, only } => vm::vm(&kernels, short, &only),
        Task::Fresh { promise, keep } => fresh::fresh(promise, keep),
        Task::Coverage { tests } => coverage::coverage(&tests),
        Task::Soak { minutes } => test::soak(minutes),
        Task::K8s { words } => kubernetes::node(&words),
        Task::Bench(Bench::Calls { rounds }) => bench::calls(rounds),
        Task::Bench(Bench::Throughput { seconds }) => bench::throughput(seconds),
        Task::Bench(Bench::Scale { seconds }) => bench::scale(seconds),
        Task::Bench(Bench::Ready { rounds }) => bench::ready(rounds),
        Task::Bench(Bench::Attach { rounds }) => bench::attach(rounds),
        Task::Bench(Bench::Start { rounds }) => bench::start(rounds),
        Task::Bench(Bench::Suite { pairs }) => bench::suite(pairs),
        Task::Bench(Bench::Instructions { pairs, from }) => bench::instructions(&pairs, from.as_deref()),
        Task::Bench(Bench::Resolve) => bench::resolve(),
        Task::Bench(Bench::Job { pairs, script }) => bench::job(pairs, script),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
