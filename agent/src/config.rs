//! Turns what the user typed into what they meant: [`Args`] → [`Config`].
//!
//! A setting comes from its flag, else from its `CADSCOPE_…` variable, else from the configuration file, else from its
//! default. Flag `--log-format`, variable `CADSCOPE_LOG_FORMAT` and key `log_format` are one setting with one name.
//!
//! Refuses unknown keys, naming the nearest known one, and values that cannot be meant, naming where they were said.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use toml::{Table, Value};

use crate::ai::Providers;
use crate::broker::RedisUrl;
use crate::budget::Limits;
use crate::catalog::keys::{suggestion, unknown_key};
use crate::catalog::{Catalog, CatalogError};
use crate::flow_type::{self, Rule};
use crate::job::{Names, Variables};

pub use self::agent_url::AgentUrl;

mod agent_url;

/// Where an agent listens unless told.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9777);

/// Keys of the configuration file.
pub const FILE_KEYS: [&str; 34] = [
    "ai_latency",
    "ai_provider",
    "attach",
    "ca_cert",
    "catalog",
    "count_above",
    "export_bytes",
    "export_validation",
    "flow",
    "flow_type_env",
    "give_way",
    "job_id_env",
    "linger",
    "listen",
    "log_format",
    "min_duration",
    "min_span_duration",
    "otlp_endpoint",
    "otlp_protocol",
    "pod_labels",
    "probe",
    "proc",
    "progress_redis",
    "remove_above",
    "request_id_env",
    "source_samples",
    "source_threshold",
    "span_pod_labels",
    "state",
    "sys",
    "tls_cert",
    "tls_key",
    "token_file",
    "trace_ratio",
];

/// Keys of an `[[ai_provider]]` table.
const AI_PROVIDER_KEYS: [&str; 2] = ["host", "provider"];

/// The command line, as typed.
#[derive(Clone, Debug, Parser)]
#[command(name = "cadscope", version, about, max_term_width = 100, after_help = MAIN_EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: CommandArgs,
}

const MAIN_EXAMPLES: &str = "\
Examples:
  cadscope doctor                         would the agent work here, and what is missing?
  cadscope trace -- freecadcmd job.py     run a job and print what it did
  cadscope top                            watch what every worker of this node does now
  cadscope agent --listen 0.0.0.0:9777    observe every worker of this node, serve /metrics

A setting comes from its flag (--log-format), else from its variable (CADSCOPE_LOG_FORMAT),
else from the configuration file (log_format = \"json\"), else from its default.
RUST_LOG chooses what is logged: RUST_LOG=cadscope=debug.";

const AGENT_EXAMPLES: &str = "\
Examples:
  cadscope agent
  cadscope agent --listen 0.0.0.0:9777 --log-format json
  cadscope agent --proc /host/proc --sys /host/sys    in a container, the host's mounted there
  cadscope agent --catalog gears.toml                 observe functions of your own as well
  cadscope agent --otlp-endpoint http://collector:4317    send spans; workers started with TRACEPARENT join its trace

Spans are sent with --otlp-endpoint, or if OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set.
OTEL_EXPORTER_OTLP_{HEADERS,TIMEOUT,COMPRESSION,PROTOCOL}, OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are honoured.";

const TRACE_EXAMPLES: &str = "\
Examples:
  cadscope trace -- freecadcmd job.py                   run it; exit with its exit status
  cadscope trace -p 4711                                follow a worker until it ends or Ctrl-C
  cadscope trace --format html -o job.html -- python3 job.py
  cadscope trace --format perfetto -o job.json -- python3 job.py    open it at ui.perfetto.dev";

const TOP_EXAMPLES: &str = "\
Examples:
  cadscope top                                     the agent of this node if one runs, else by itself (root)
  cadscope top --connect http://node-7:9777        an agent elsewhere; needs no root here
  cadscope top --connect https://node-7:9777 --token-file token --ca-cert ca.pem    one with TLS and a token
  cadscope top --alone                             by itself, beside an agent
  kubectl port-forward POD 9777 & cadscope top     the agent of a pod

Keys: ? shows them all; q quits; / filters; Tab, z, s and r choose, zoom and sort a panel.
NO_COLOR is honoured; without a UTF-8 locale the picture is ASCII.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  cadscope doctor                     each need of the agent: there, or how to get it
  cadscope doctor --format json       for a script; the exit status alone says whether the agent would work";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  cadscope completions bash > /etc/bash_completion.d/cadscope
  cadscope completions zsh > \"${fpath[1]}/_cadscope\"
  cadscope completions fish > ~/.config/fish/completions/cadscope.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  cadscope man /usr/local/share/man/man1      then: man cadscope, man cadscope-trace";

const PROBES_EXAMPLES: &str = "\
Examples:
  cadscope probes --pid 4711                            all libraries that the worker maps
  cadscope probes /usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3
  cadscope probes --catalog gears.toml libGears.so      is my own function found there?

A catalogue file holds [[probe]] tables:

  [[probe]]
  id = \"mine.gear\"
  function = \"Gear::build(int)\"
  symbols = [\"_ZN4Gear5buildEi\"]                 mangled names, as nm -D prints them
  title = \"gear with {teeth} teeth\"
  metric = \"gear_build_seconds\"
  help = \"Time to build a gear.\"
  error_when = [\"ret == 0\"]
  [probe.labels]
  status = \"status\"
  teeth = { value = \"teeth\", range = true }
  [[probe.layout]]
  [probe.layout.enter]
  teeth = \"i32(arg1)\"                          a register, or memory: i32[this + 0x40],
  [probe.layout.leave]                         text[arg2]:128, string[[this + 8]], class[arg1]
  ret = \"u8(ret)\"";

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
struct CommonArgs {
    /// Configuration file (TOML); unknown keys are errors [env: CADSCOPE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines are written to stderr [env: CADSCOPE_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// How probes are placed: auto takes uprobe_multi where the kernel has it (6.6) [env: CADSCOPE_ATTACH] [default: auto]
    #[arg(long, global = true, value_name = "HOW")]
    attach: Option<Attach>,
    /// Adds the probes of a catalogue file; may be repeated [env: CADSCOPE_CATALOG, paths separated by `:`]
    #[arg(long, global = true, value_name = "FILE")]
    catalog: Vec<PathBuf>,
    /// Where the node's procfs is mounted [env: CADSCOPE_PROC] [default: /proc]
    #[arg(long, global = true, value_name = "DIR")]
    proc: Option<PathBuf>,
    /// Where the node's sysfs is mounted [env: CADSCOPE_SYS] [default: /sys]
    #[arg(long, global = true, value_name = "DIR")]
    sys: Option<PathBuf>,
    /// Worker's variables (or baggage members) that hold the job's id [env: CADSCOPE_JOB_ID_ENV] [default: JOB_ID]
    #[arg(long, global = true, value_name = "NAMES")]
    job_id_env: Option<Names>,
    /// The same for the request's id [env: CADSCOPE_REQUEST_ID_ENV] [default: REQUEST_ID]
    #[arg(long, global = true, value_name = "NAMES")]
    request_id_env: Option<Names>,
    /// The same for the kind of job [env: CADSCOPE_FLOW_TYPE_ENV] [default: FLOW_TYPE]
    #[arg(long, global = true, value_name = "NAMES")]
    flow_type_env: Option<Names>,
    /// Operations of at least this length say which line of the job called them
    /// [env: CADSCOPE_SOURCE_THRESHOLD] [default: 250ms]
    #[arg(long, global = true, value_name = "DURATION")]
    source_threshold: Option<ShortTime>,
    /// So many Python stacks are read a second, at most; 0 for none [env: CADSCOPE_SOURCE_SAMPLES] [default: 20]
    #[arg(long, global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=1000))]
    source_samples: Option<u32>,
}

#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once")]
enum CommandArgs {
    /// Observes every FreeCAD and OCCT worker of this node and serves metrics
    #[command(after_help = AGENT_EXAMPLES)]
    Agent {
        /// Address to serve HTTP on [env: CADSCOPE_LISTEN] [default: 127.0.0.1:9777]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// File with a token: who asks for more than /livez and /readyz has to send it, as a bearer token or as a
        /// password [env: CADSCOPE_TOKEN_FILE] [default: none]
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// File with a chain of certificates (PEM): HTTPS is served, and no HTTP; with --tls-key
        /// [env: CADSCOPE_TLS_CERT] [default: none]
        #[arg(long, value_name = "FILE")]
        tls_cert: Option<PathBuf>,
        /// File with the certificate's private key (PEM) [env: CADSCOPE_TLS_KEY] [default: none]
        #[arg(long, value_name = "FILE")]
        tls_key: Option<PathBuf>,
        /// Seconds that probes stay on a file that no process maps [env: CADSCOPE_LINGER] [default: 60]
        #[arg(long, value_name = "SECONDS")]
        linger: Option<Seconds>,
        /// Collector that spans are sent to, as a URL [env: CADSCOPE_OTLP_ENDPOINT] [default: none]
        #[arg(long, value_name = "URL")]
        otlp_endpoint: Option<String>,
        /// How: grpc or http/protobuf [env: CADSCOPE_OTLP_PROTOCOL] [default: grpc; http/protobuf for port 4318]
        #[arg(long, value_name = "PROTOCOL")]
        otlp_protocol: Option<OtlpProtocol>,
        /// Shorter operations have no span [env: CADSCOPE_MIN_SPAN_DURATION] [default: 1ms]
        #[arg(long, value_name = "DURATION")]
        min_span_duration: Option<ShortTime>,
        /// Calls that return sooner are counted in the kernel, and are no operations: metrics have them, without labels
        /// that are read from the call [env: CADSCOPE_MIN_DURATION] [default: 0]
        #[arg(long, value_name = "DURATION")]
        min_duration: Option<ShortTime>,
        /// The same for all calls of a probe that is called more often a second than this
        /// [env: CADSCOPE_COUNT_ABOVE] [default: 50000]
        #[arg(long, value_name = "NUMBER")]
        count_above: Option<u32>,
        /// A probe that is called more often a second than this is taken away
        /// [env: CADSCOPE_REMOVE_ABOVE] [default: 500000]
        #[arg(long, value_name = "NUMBER")]
        remove_above: Option<u32>,
        /// Share of the workers without a trace context that become a trace [env: CADSCOPE_TRACE_RATIO] [default: 1]
        #[arg(long, value_name = "0..1")]
        trace_ratio: Option<Ratio>,
        /// Whether metrics about workers carry namespace, pod and container
        /// [env: CADSCOPE_POD_LABELS] [default: true]
        #[arg(long, value_name = "BOOL")]
        pod_labels: Option<bool>,
        /// Whether spans carry the labels of the worker's pod, which the Kubernetes API is asked for
        /// [env: CADSCOPE_SPAN_POD_LABELS] [default: false]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        span_pod_labels: Option<bool>,
        /// Redis that the progress of jobs is published to, redis://HOST:6379 [env: CADSCOPE_PROGRESS_REDIS]
        /// [default: none]
        #[arg(long, value_name = "URL")]
        progress_redis: Option<String>,
        /// Measures calls of AI providers, at OpenSSL in every process; see docs/ai-latency.md
        /// [env: CADSCOPE_AI_LATENCY] [default: false]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        ai_latency: Option<bool>,
        /// Whether exported files are digested and compared with the earlier export of the same inputs
        /// [env: CADSCOPE_EXPORT_VALIDATION] [default: true]
        #[arg(long, value_name = "BOOL")]
        export_validation: Option<bool>,
        /// Larger files are not digested, in bytes [env: CADSCOPE_EXPORT_BYTES] [default: 67108864]
        #[arg(long, value_name = "BYTES")]
        export_bytes: Option<u64>,
        /// Whether a file has no probes while valgrind runs it, which would take them for the worker's own breakpoints
        /// [env: CADSCOPE_GIVE_WAY] [default: true]
        #[arg(long, value_name = "BOOL")]
        give_way: Option<bool>,
        /// Folder for what is known after a restart: digests of exports
        /// [env: CADSCOPE_STATE] [default: /var/lib/cadscope]
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Runs or follows one process and prints its operations: nesting, duration, outcome
    #[command(after_help = TRACE_EXAMPLES)]
    Trace {
        /// Write to this file instead of stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// What to write
        #[arg(long, value_name = "FORMAT", default_value = "tree")]
        format: TraceFormat,
        /// Follow this process
        #[arg(short, long, value_name = "PID", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..))]
        pid: Option<u32>,
        /// Run this program
        #[arg(last = true, value_name = "CMD", required_unless_present = "pid")]
        run: Vec<OsString>,
    },
    /// Shows live on a terminal what this node's workers do: in flight, rates, memory, what was slow
    #[command(after_help = TOP_EXAMPLES)]
    Top {
        /// Show what the agent at this address observes: http://HOST:PORT, https://HOST:PORT
        #[arg(long, value_name = "URL", conflicts_with = "alone")]
        connect: Option<AgentUrl>,
        /// File with the agent's token [env: CADSCOPE_TOKEN_FILE] [default: none]
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// File with the authorities (PEM) that may vouch for an agent with TLS, instead of the system's
        /// [env: CADSCOPE_CA_CERT] [default: none]
        #[arg(long, value_name = "FILE")]
        ca_cert: Option<PathBuf>,
        /// Observe by itself, even if an agent runs here
        #[arg(long)]
        alone: bool,
    },
    /// Says what is missing on this node and how to get it; exits with 0 only if the agent would work
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// What to write
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: ReportFormat,
    },
    /// Shows where each probe of the catalogue lies in a worker's or the given files, or why it cannot be placed
    #[command(after_help = PROBES_EXAMPLES)]
    Probes {
        /// Look at the files that this process maps
        #[arg(short, long, value_name = "PID", conflicts_with = "files", value_parser = clap::value_parser!(u32).range(1..))]
        pid: Option<u32>,
        /// Look at these files
        #[arg(value_name = "FILE", required_unless_present = "pid")]
        files: Vec<PathBuf>,
        /// What to write
        #[arg(long, value_name = "FORMAT", default_value = "table")]
        format: TableFormat,
    },
    /// Prints the completions of a shell: bash, zsh, fish, elvish, powershell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Writes the manual pages into a directory: cadscope.1, and one for each command
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// Where to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How probes are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// By uprobe_multi where the kernel has it, else by perf events.
    Auto,
    /// By perf events, as on kernels before 6.6.
    PerfEvents,
}

/// What `trace` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceFormat {
    /// A waterfall for people
    Tree,
    /// One JSON document
    Json,
    /// A file for ui.perfetto.dev
    Perfetto,
    /// One page for a browser, whole in itself
    Html,
}

/// What `doctor` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// What `probes` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// For people
    Table,
    /// One JSON document
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| "is text or json".to_owned())
    }
}

impl FromStr for Attach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| "is auto or perf-events".to_owned())
    }
}

/// A time span of whole seconds, at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seconds(u64);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().filter(|seconds| *seconds <= 86_400);
        seconds.map(Self).ok_or_else(|| "is a number of seconds, at most 86400".to_owned())
    }
}

/// A duration with its unit, at most an hour: `500us`, `1ms`, `0.25s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShortTime(Duration);

impl FromStr for ShortTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
        let seconds = units.iter().find_map(|(unit, seconds)| {
            let number = text.strip_suffix(unit)?.trim_end().parse::<f64>().ok()?;
            Some(number * seconds).filter(|seconds| (0.0..=3600.0).contains(seconds))
        });
        match seconds {
            Some(seconds) => Ok(Self(Duration::from_secs_f64(seconds))),
            None if text == "0" => Ok(Self(Duration::ZERO)),
            None => Err("is a duration such as 500us, 1ms or 0.25s, at most an hour".to_owned()),
        }
    }
}

/// A share, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ratio(f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or_else(|| "is a number from 0 to 1".to_owned())
    }
}

impl FromStr for OtlpProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http/protobuf" => Ok(Self::Http),
            _ => Err("is grpc or http/protobuf".to_owned()),
        }
    }
}

/// Of which operations the Python stack is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Of those that take at least so long.
    pub threshold: Duration,
    /// So many a second at most; 0: none.
    pub per_second: u32,
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `http://collector:4317`; `None`: as the `OTEL_EXPORTER_OTLP_…` variables say.
    pub endpoint: Option<String>,
    /// How.
    pub protocol: OtlpProtocol,
}

/// How spans go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC.
    Grpc,
    /// Protobuf in HTTP/1.1.
    Http,
}

/// What the user meant.
#[derive(Clone, Debug)]
pub struct Config {
    /// How log lines are written.
    pub log_format: LogFormat,
    /// How probes are placed.
    pub attach: Attach,
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// Mount point of the node's sysfs.
    pub sys: PathBuf,
    /// The variables that say what a worker works on.
    pub variables: Variables,
    /// Of which operations the Python stack is read.
    pub sources: SourceOptions,
    /// Which command lines are which kind of job.
    pub flow_rules: Vec<Rule>,
    /// The built-in probes and the user's.
    pub catalog: Catalog,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `cadscope agent`
    Agent(Box<AgentConfig>),
    /// `cadscope trace`
    Trace(TraceConfig),
    /// `cadscope doctor`
    Doctor(ReportFormat),
    /// `cadscope probes`
    Probes(Subject, TableFormat),
    /// `cadscope top`
    Top(TopConfig),
    /// `cadscope completions`
    Completions(Shell),
    /// `cadscope man`
    Man(PathBuf),
}

/// Settings of `cadscope top`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopConfig {
    /// Where it has from what it shows.
    pub source: TopSource,
    /// How an agent is asked.
    pub access: Access,
}

/// What an agent is asked with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// File with its token.
    pub token: Option<PathBuf>,
    /// File with the authorities that vouch for its certificate; the system's unless told.
    pub authorities: Option<PathBuf>,
}

/// Where `top` has from what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopSource {
    /// That agent.
    Agent(AgentUrl),
    /// Its own observation.
    Own,
    /// The agent of this node if it answers there, else its own observation.
    Any(AgentUrl),
}

/// Settings of `cadscope agent`.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// Who may see the pages, and over what.
    pub guard: GuardConfig,
    /// How long probes stay on a file that no process maps.
    pub linger: Duration,
    /// Where spans go; `None`: none are made.
    pub otlp: Option<OtlpConfig>,
    /// Shorter operations have no span.
    pub min_span_duration: Duration,
    /// Calls that return sooner are counted, and are no operations.
    pub min_duration: Duration,
    /// How many calls a second of one probe are borne.
    pub limits: Limits,
    /// Share of the workers without a trace context that become a trace, 0 to 1.
    pub trace_ratio: f64,
    /// Whether metrics about workers carry the labels of their pod.
    pub pod_labels: bool,
    /// Whether spans carry the labels that the worker's pod was given.
    pub span_pod_labels: bool,
    /// Where the progress of jobs is published.
    pub progress_redis: Option<RedisUrl>,
    /// Whose calls are measured; `None`: nobody's.
    pub ai_providers: Option<Providers>,
    /// How exports are compared with earlier ones; `None`: they are not.
    pub validation: Option<ValidationConfig>,
    /// Whether a file has no probes while valgrind runs it.
    pub give_way: bool,
}

/// Which files guard the pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardConfig {
    /// File of the token.
    pub token: Option<PathBuf>,
    /// Files of the certificate chain and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// How exports are compared with earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationConfig {
    /// Larger files are not digested.
    pub most_bytes: u64,
    /// Folder for what is known after a restart.
    pub state: PathBuf,
}

/// Settings of `cadscope trace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// File to write to; stdout without.
    pub output: Option<PathBuf>,
    /// What to write.
    pub format: TraceFormat,
    /// Whom to observe.
    pub target: Target,
}

/// Whom `trace` observes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process that runs already.
    Process(u32),
    /// A program to run, with its arguments; never empty.
    Program(Vec<OsString>),
}

/// What `probes` looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The files that a process maps.
    Process(u32),
    /// Files; never empty.
    Files(Vec<PathBuf>),
}

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration file is no TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the TOML parser says, with line and column.
        message: String,
    },
    /// A key of the configuration file is not known.
    #[error("{}: unknown key `{key}`; {suggestion}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The nearest known key, or all.
        suggestion: String,
    },
    /// A value cannot be meant.
    #[error("{place}: `{value}` {problem}")]
    Value {
        /// `CADSCOPE_LISTEN`, or the file and the key.
        place: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A probe is wrong.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Config {
    /// Merges flags, environment (`env` looks a variable up) and configuration file, and loads the catalogue files.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_args(args: Args, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let Args { common, command } = args;
        let path =
            common.config.or_else(|| env("CADSCOPE_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from));
        let file = path.map(ConfigFile::read).transpose()?;
        let sources = Sources { env: &env, file: file.as_ref() };
        let default = Variables::default();
        Ok(Self {
            log_format: sources.setting(common.log_format, "log_format", LogFormat::Text)?,
            attach: sources.setting(common.attach, "attach", Attach::Auto)?,
            proc: sources.setting(common.proc, "proc", PathBuf::from("/proc"))?,
            sys: sources.setting(common.sys, "sys", PathBuf::from("/sys"))?,
            variables: Variables {
                job_id: sources.setting(common.job_id_env, "job_id_env", default.job_id)?,
                request_id: sources.setting(common.request_id_env, "request_id_env", default.request_id)?,
                flow_type: sources.setting(common.flow_type_env, "flow_type_env", default.flow_type)?,
            },
            sources: sources.sources(common.source_threshold, common.source_samples)?,
            flow_rules: sources.flow_rules()?,
            catalog: sources.catalog(common.catalog)?,
            command: sources.command(command)?,
        })
    }
}

/// The configuration file: only known keys.
struct ConfigFile {
    path: PathBuf,
    table: Table,
}

impl ConfigFile {
    fn read(path: PathBuf) -> Result<Self, ConfigError> {
        let text = read_text(&path)?;
        let table: Table = match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => return Err(ConfigError::Syntax { path, message: error.to_string() }),
        };
        match unknown_key(&table, &FILE_KEYS) {
            Some(key) => Err(ConfigError::UnknownKey {
                suggestion: suggestion(key, &FILE_KEYS),
                key: key.to_owned(),
                path,
            }),
            None => Ok(Self { path, table }),
        }
    }

    fn place(&self, key: &str) -> String {
        format!("{}: {key}", self.path.display())
    }

    fn wrong(&self, key: &str, value: &Value, problem: &str) -> ConfigError {
        ConfigError::Value { place: self.place(key), value: value.to_string(), problem: problem.to_owned() }
    }

    fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Integer(number)) => Ok(Some(number.to_string())),
            Some(Value::Boolean(flag)) => Ok(Some(flag.to_string())),
            Some(other) => Err(self.wrong(
                key,
                other,
                "is neither a text in quotes nor a whole number nor true or false",
            )),
        }
    }

    fn list(&self, key: &str) -> Result<&[Value], ConfigError> {
        match self.table.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.wrong(key, other, "is no list")),
        }
    }

    /// Paths of a list, counted from the file's directory.
    fn paths(&self, key: &str) -> Result<Vec<PathBuf>, ConfigError> {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let list = self.list(key)?.iter();
        list.map(|value| match value.as_str() {
            Some(text) => Ok(directory.join(text)),
            None => Err(self.wrong(key, value, "is no path in quotes")),
        })
        .collect()
    }
}

/// Where settings come from below the flags.
struct Sources<'a, E> {
    env: &'a E,
    file: Option<&'a ConfigFile>,
}

impl<E: Fn(&str) -> Option<OsString>> Sources<'_, E> {
    fn variable(&self, key: &str) -> Option<(String, OsString)> {
        let name = format!("CADSCOPE_{}", key.to_ascii_uppercase());
        let value = (self.env)(&name).filter(|value| !value.is_empty())?;
        Some((name, value))
    }

    fn setting<T: FromStr<Err: Display>>(
        &self,
        flag: Option<T>,
        key: &str,
        default: T,
    ) -> Result<T, ConfigError> {
        if let Some(value) = flag {
            return Ok(value);
        }
        if let Some((name, value)) = self.variable(key) {
            return parse(name, &value.to_string_lossy());
        }
        match self.file {
            Some(file) => match file.text(key)? {
                Some(text) => parse(file.place(key), &text),
                None => Ok(default),
            },
            None => Ok(default),
        }
    }

    fn catalog(&self, flags: Vec<PathBuf>) -> Result<Catalog, ConfigError> {
        let paths = if !flags.is_empty() {
            flags
        } else if let Some((_, value)) = self.variable("catalog") {
            std::env::split_paths(&value).collect()
        } else {
            self.file.map(|file| file.paths("catalog")).transpose()?.unwrap_or_default()
        };
        let mut catalog = Catalog::builtin()?;
        if let Some(file) = self.file {
            catalog.add_tables(file.list("probe")?, &file.path.display().to_string())?;
        }
        for path in paths {
            catalog.add(&read_text(&path)?, &path.display().to_string())?;
        }
        Ok(catalog)
    }

    /// The standard variables stand below ours.
    fn otlp(
        &self,
        endpoint: Option<String>,
        protocol: Option<OtlpProtocol>,
    ) -> Result<Option<OtlpConfig>, ConfigError> {
        let standard = |name: &str| {
            let name = format!("OTEL_{name}");
            let value = (self.env)(&name).filter(|value| !value.is_empty())?;
            Some((name, value.to_string_lossy().into_owned()))
        };
        let own = self.setting(endpoint, "otlp_endpoint", String::new())?;
        let theirs = standard("EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| standard("EXPORTER_OTLP_ENDPOINT"));
        let theirs = theirs.map(|(_, endpoint)| endpoint);
        let theirs = theirs.filter(|_| standard("TRACES_EXPORTER").is_none_or(|(_, name)| name == "otlp"));
        let endpoint = Some(own).filter(|endpoint| !endpoint.is_empty());
        let Some(used) = endpoint.as_ref().or(theirs.as_ref()) else { return Ok(None) };
        let by_port = if used.trim_end_matches('/').ends_with(":4318") {
            OtlpProtocol::Http
        } else {
            OtlpProtocol::Grpc
        };
        let named = standard("EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| standard("EXPORTER_OTLP_PROTOCOL"));
        let default = named.map(|(name, protocol)| parse(name, &protocol)).transpose()?.unwrap_or(by_port);
        Ok(Some(OtlpConfig { endpoint, protocol: self.setting(protocol, "otlp_protocol", default)? }))
    }

    /// `None` unless calls are to be measured; the user's hosts are checked in any case.
    fn ai_providers(&self, measured: Option<bool>) -> Result<Option<Providers>, ConfigError> {
        let mut providers = Providers::default();
        if let Some(file) = self.file {
            for value in file.list("ai_provider")? {
                let table = value.as_table().ok_or("is no table; begin each with [[ai_provider]]".to_owned());
                let added = table.and_then(|table| {
                    if let Some(key) = unknown_key(table, &AI_PROVIDER_KEYS) {
                        return Err(format!(
                            "has an unknown key `{key}`; {}",
                            suggestion(key, &AI_PROVIDER_KEYS)
                        ));
                    }
                    let text = |key: &str| table.get(key).and_then(Value::as_str).unwrap_or_default();
                    providers.add(text("host"), text("provider"))
                });
                added.map_err(|problem| file.wrong("ai_provider", value, &problem))?;
            }
        }
        Ok(self.setting(measured, "ai_latency", false)?.then_some(providers))
    }

    fn progress_redis(&self, url: Option<String>) -> Result<Option<RedisUrl>, ConfigError> {
        let url = self.setting(url, "progress_redis", String::new())?;
        if url.is_empty() {
            return Ok(None);
        }
        // Not the value itself: it can hold a password.
        url.parse().map(Some).map_err(|problem: String| ConfigError::Value {
            place: "progress_redis".to_owned(),
            value: "its value".to_owned(),
            problem,
        })
    }

    fn sources(
        &self,
        threshold: Option<ShortTime>,
        per_second: Option<u32>,
    ) -> Result<SourceOptions, ConfigError> {
        let default = ShortTime(Duration::from_millis(250));
        let ShortTime(threshold) = self.setting(threshold, "source_threshold", default)?;
        Ok(SourceOptions { threshold, per_second: self.setting(per_second, "source_samples", 20)? })
    }

    fn flow_rules(&self) -> Result<Vec<Rule>, ConfigError> {
        let Some(file) = self.file else { return Ok(Vec::new()) };
        let rules = file.list("flow")?.iter().map(|value| {
            let table = value.as_table().ok_or("is no table; begin each rule with [[flow]]".to_owned());
            table.and_then(flow_type::rule).map_err(|problem| file.wrong("flow", value, &problem))
        });
        rules.collect()
    }

    fn validation(
        &self,
        wanted: Option<bool>,
        most_bytes: Option<u64>,
        state: Option<PathBuf>,
    ) -> Result<Option<ValidationConfig>, ConfigError> {
        let validation = ValidationConfig {
            most_bytes: self.setting(most_bytes, "export_bytes", 64 << 20)?,
            state: self.setting(state, "state", PathBuf::from("/var/lib/cadscope"))?,
        };
        let wanted = self.setting(wanted, "export_validation", true)?;
        Ok(wanted.then_some(validation))
    }

    /// A file, if one is named.
    fn path(&self, flag: Option<PathBuf>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let path = self.setting(flag, key, PathBuf::new())?;
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }

    fn guard(
        &self,
        token: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<GuardConfig, ConfigError> {
        let token = self.path(token, "token_file")?;
        let alone = |place: &str, other: &str, value: &Path| ConfigError::Value {
            place: place.to_owned(),
            value: value.display().to_string(),
            problem: format!("stands alone: {other} is needed as well"),
        };
        let tls = match (self.path(certificate, "tls_cert")?, self.path(key, "tls_key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(path), None) => return Err(alone("tls_cert", "tls_key", &path)),
            (None, Some(path)) => return Err(alone("tls_key", "tls_cert", &path)),
        };
        Ok(GuardConfig { token, tls })
    }

    fn command(&self, command: CommandArgs) -> Result<Command, ConfigError> {
        Ok(match command {
            CommandArgs::Agent {
                listen,
                token_file,
                tls_cert,
                tls_key,
                linger,
                otlp_endpoint,
                otlp_protocol,
                min_span_duration,
                min_duration,
                count_above,
                remove_above,
                trace_ratio,
                pod_labels,
                span_pod_labels,
                progress_redis,
                ai_latency,
                export_validation,
                export_bytes,
                give_way,
                state,
            } => {
                let Seconds(linger) = self.setting(linger, "linger", Seconds(60))?;
                let ShortTime(min_span_duration) = self.setting(
                    min_span_duration,
                    "min_span_duration",
                    ShortTime(Duration::from_millis(1)),
                )?;
                let ShortTime(min_duration) =
                    self.setting(min_duration, "min_duration", ShortTime(Duration::ZERO))?;
                let limits = Limits {
                    records: self.setting(count_above, "count_above", 50_000)?.into(),
                    calls: self.setting(remove_above, "remove_above", 500_000)?.into(),
                };
                let Ratio(trace_ratio) = self.setting(trace_ratio, "trace_ratio", Ratio(1.0))?;
                Command::Agent(Box::new(AgentConfig {
                    listen: self.setting(listen, "listen", LISTEN)?,
                    guard: self.guard(token_file, tls_cert, tls_key)?,
                    linger: Duration::from_secs(linger),
                    otlp: self.otlp(otlp_endpoint, otlp_protocol)?,
                    min_span_duration,
                    min_duration,
                    limits,
                    trace_ratio,
                    pod_labels: self.setting(pod_labels, "pod_labels", true)?,
                    span_pod_labels: self.setting(span_pod_labels, "span_pod_labels", false)?,
                    progress_redis: self.progress_redis(progress_redis)?,
                    ai_providers: self.ai_providers(ai_latency)?,
                    validation: self.validation(export_validation, export_bytes, state)?,
                    give_way: self.setting(give_way, "give_way", true)?,
                }))
            }
            CommandArgs::Trace { output, format, pid, run } => {
                let target = pid.map_or(Target::Program(run), Target::Process);
                Command::Trace(TraceConfig { output, format, target })
            }
            CommandArgs::Doctor { format } => Command::Doctor(format),
            CommandArgs::Top { connect, token_file, ca_cert, alone } => {
                let source = match connect {
                    Some(url) => TopSource::Agent(url),
                    None if alone => TopSource::Own,
                    None => {
                        let is_tls = self.path(None, "tls_cert")?.is_some();
                        TopSource::Any(AgentUrl::of(self.setting(None, "listen", LISTEN)?, is_tls))
                    }
                };
                let access = Access {
                    token: self.path(token_file, "token_file")?,
                    authorities: self.path(ca_cert, "ca_cert")?,
                };
                Command::Top(TopConfig { source, access })
            }
            CommandArgs::Completions { shell } => Command::Completions(shell),
            CommandArgs::Man { directory } => Command::Man(directory),
            CommandArgs::Probes { pid, files, format } => {
                Command::Probes(pid.map_or(Subject::Files(files), Subject::Process), format)
            }
        })
    }
}

fn parse<T: FromStr<Err: Display>>(place: String, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|problem: T::Err| ConfigError::Value {
        place,
        value: text.to_owned(),
        problem: problem.to_string(),
    })
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn load(line: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let args = Args::try_parse_from(std::iter::once(&"cadscope").chain(line)).unwrap();
        let env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Config::from_args(args, |name| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| OsString::from(value))
        })
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn listen(config: Config) -> String {
        match config.command {
            Command::Agent(agent) => agent.listen.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_local_and_safe() {
        let config = load(&["agent"], &[]).unwrap();
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!((config.proc.to_str(), config.sys.to_str()), (Some("/proc"), Some("/sys")));
        let agent = AgentConfig {
            listen: "127.0.0.1:9777".parse().unwrap(),
            guard: GuardConfig::default(),
            linger: Duration::from_secs(60),
            otlp: None,
            min_span_duration: Duration::from_millis(1),
            min_duration: Duration::ZERO,
            limits: Limits { records: 50_000.0, calls: 500_000.0 },
            trace_ratio: 1.0,
            pod_labels: true,
            span_pod_labels: false,
            progress_redis: None,
            ai_providers: None,
            validation: Some(ValidationConfig {
                most_bytes: 64 << 20,
                state: PathBuf::from("/var/lib/cadscope"),
            }),
            give_way: true,
        };
        assert_eq!(config.command, Command::Agent(Box::new(agent)));
        assert!(!config.catalog.probes.is_empty());
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let file = file("listen = \"127.0.0.1:3\"\nlinger = 5\n");
        let path = file.path().to_str().unwrap();
        let env = [("CADSCOPE_LISTEN", "127.0.0.1:2")];
        let with_flag = ["agent", "--config", path, "--listen", "127.0.0.1:1"];
        assert_eq!(listen(load(&with_flag, &env).unwrap()), "127.0.0.1:1");
        assert_eq!(listen(load(&["agent", "--config", path], &env).unwrap()), "127.0.0.1:2");
        assert_eq!(listen(load(&["agent"], &[("CADSCOPE_CONFIG", path)]).unwrap()), "127.0.0.1:3");
        assert_eq!(listen(load(&["agent"], &[("CADSCOPE_LISTEN", "")]).unwrap()), "127.0.0.1:9777");
        match load(&["--config", path, "agent"], &[]).unwrap().command {
            Command::Agent(agent) => assert_eq!(agent.linger, Duration::from_secs(5)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn spans_are_off_unless_there_is_an_endpoint() {
        let otlp = |line: &[&str], env: &[(&str, &str)]| match load(line, env).unwrap().command {
            Command::Agent(agent) => agent.otlp.map(|otlp| (otlp.endpoint, otlp.protocol)),
            other => panic!("{other:?}"),
        };
        let own = |url: &str| Some(url.to_owned());
        assert_eq!(otlp(&["agent"], &[]), None);
        let flag = ["agent", "--otlp-endpoint", "http://c:4317"];
        assert_eq!(otlp(&flag, &[]), Some((own("http://c:4317"), OtlpProtocol::Grpc)));
        let http = ["agent", "--otlp-endpoint", "http://c:4318/"];
        assert_eq!(otlp(&http, &[]), Some((own("http://c:4318/"), OtlpProtocol::Http)));
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")];
        assert_eq!(otlp(&["agent"], &env), Some((None, OtlpProtocol::Grpc)));
        let env = [env[0], ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
        assert_eq!(otlp(&["agent"], &env), Some((None, OtlpProtocol::Http)));
        let line = ["agent", "--otlp-protocol", "grpc"];
        assert_eq!(otlp(&line, &env), Some((None, OtlpProtocol::Grpc)));
        assert_eq!(otlp(&["agent"], &[env[0], ("OTEL_TRACES_EXPORTER", "none")]), None);
        let message = load(&["agent"], &[env[0], ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).unwrap_err();
        assert_eq!(message.to_string(), "OTEL_EXPORTER_OTLP_PROTOCOL: `http/json` is grpc or http/protobuf");
    }

    #[test]
    fn durations_have_a_unit_and_ratios_an_end() {
        for (text, ns) in [("0", 0), ("500us", 500_000), ("1.5ms", 1_500_000), ("2 s", 2_000_000_000)] {
            assert_eq!(text.parse::<ShortTime>(), Ok(ShortTime(Duration::from_nanos(ns))), "{text}");
        }
        for wrong in ["1", "-1ms", "nans", "2h", "3601s", "ms", "infs"] {
            assert!(wrong.parse::<ShortTime>().is_err(), "{wrong}");
        }
        assert!("1.1".parse::<Ratio>().is_err() && "NaN".parse::<Ratio>().is_err());
        assert_eq!("0.25".parse(), Ok(Ratio(0.25)));
    }

    #[test]
    fn an_unknown_key_is_told_the_file_and_the_nearest_one() {
        let file = file("lissten = \"127.0.0.1:1\"\n");
        let path = file.path().to_str().unwrap();
        let message = load(&["agent", "--config", path], &[]).unwrap_err().to_string();
        assert_eq!(message, format!("{path}: unknown key `lissten`; did you mean `listen`?"));
    }

    #[test]
    fn a_wrong_value_is_told_where_it_was_said() {
        let message = load(&["agent"], &[("CADSCOPE_LISTEN", "9777")]).unwrap_err().to_string();
        assert!(message.starts_with("CADSCOPE_LISTEN: `9777` "), "{message}");
        let file = file("log_format = \"xml\"\n");
        let path = file.path().to_str().unwrap();
        let message = load(&["agent", "--config", path], &[]).unwrap_err().to_string();
        assert_eq!(message, format!("{path}: log_format: `xml` is text or json"));
        let message = load(&["agent", "--config", "/nowhere.toml"], &[]).unwrap_err().to_string();
        assert!(message.starts_with("/nowhere.toml: No such file"), "{message}");
    }

    #[test]
    fn probes_of_the_user_come_from_the_file_and_from_catalogues() {
        let probe =
            |id: &str| format!("[[probe]]\nid = \"{id}\"\nfunction = \"f()\"\nsymbols = [\"_Z1fv\"]\n");
        let catalog = file(&probe("mine.two"));
        let name = catalog.path().file_name().unwrap().to_str().unwrap();
        let config = file(&format!("catalog = [\"{name}\"]\n{}", probe("mine.one")));
        let path = config.path().to_str().unwrap();
        let loaded = load(&["agent", "--config", path], &[]).unwrap().catalog;
        assert!(loaded.get("mine.one").is_some() && loaded.get("mine.two").is_some());
        let message = load(&["agent", "--catalog", path], &[]).unwrap_err().to_string();
        assert!(message.contains("unknown key `catalog`"), "{message}");
    }

    #[test]
    fn trace_takes_a_process_or_a_program() {
        let target = |line: &[&str]| match load(line, &[]).unwrap().command {
            Command::Trace(trace) => (trace.format, trace.target),
            other => panic!("{other:?}"),
        };
        assert_eq!(target(&["trace", "-p", "7"]), (TraceFormat::Tree, Target::Process(7)));
        let program = ["freecadcmd", "--help"].map(OsString::from).to_vec();
        assert_eq!(
            target(&["trace", "--format", "json", "--", "freecadcmd", "--help"]),
            (TraceFormat::Json, Target::Program(program))
        );
        for line in [&["trace"][..], &["trace", "-p", "7", "--", "x"], &["trace", "-p", "0"], &["probes"]] {
            assert!(Args::try_parse_from(std::iter::once(&"cadscope").chain(line)).is_err(), "{line:?}");
        }
    }

    #[test]
    fn top_looks_for_an_agent_unless_told() {
        let top = |line: &[&str], env: &[(&str, &str)]| match load(line, env).unwrap().command {
            Command::Top(top) => top,
            other => panic!("{other:?}"),
        };
        let source = |line: &[&str], env: &[(&str, &str)]| top(line, env).source;
        assert_eq!(source(&["top"], &[]), TopSource::Any(AgentUrl::of(LISTEN, false)));
        let listen = [("CADSCOPE_LISTEN", "127.0.0.1:1")];
        assert_eq!(source(&["top"], &listen), TopSource::Any("http://127.0.0.1:1".parse().unwrap()));
        // As the agent of this node is configured.
        let tls = [("CADSCOPE_TLS_CERT", "/c"), ("CADSCOPE_TOKEN_FILE", "/t"), ("CADSCOPE_CA_CERT", "/a")];
        let TopConfig { source: guarded, access } = top(&["top"], &tls);
        assert_eq!(guarded, TopSource::Any(AgentUrl::of(LISTEN, true)));
        assert_eq!(access, Access { token: Some("/t".into()), authorities: Some("/a".into()) });
        let line = ["top", "--connect", "https://a:1", "--token-file", "/x", "--ca-cert", "/y"];
        let TopConfig { source: named, access } = top(&line, &tls);
        assert_eq!(named, TopSource::Agent("https://a:1".parse().unwrap()));
        assert_eq!(access, Access { token: Some("/x".into()), authorities: Some("/y".into()) });
        assert_eq!(source(&["top", "--alone"], &[]), TopSource::Own);
        let url = ["top", "--connect", "http://node-7:9777"];
        assert_eq!(source(&url, &[]), TopSource::Agent("node-7:9777".parse().unwrap()));
        assert!(Args::try_parse_from(["cadscope", "top", "--connect", "https://a"]).is_err());
    }

    #[test]
    fn every_command_has_examples() {
        for command in Args::command().get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  cadscope "), "{}", command.get_name());
        }
    }

    #[test]
    fn hosts_of_ai_providers_are_the_users_and_a_password_is_not_repeated() {
        let providers = |text: &str, more: &[&str]| {
            let file = file(text);
            let arguments = [&["agent", "--config", file.path().to_str().unwrap()], more].concat();
            load(&arguments, &[]).map(|config| match config.command {
                Command::Agent(agent) => agent.ai_providers,
                other => panic!("{other:?}"),
            })
        };
        let table = "[[ai_provider]]\nhost = \"llm.internal\"\nprovider = \"ours\"\n";
        let mut expected = Providers::default();
        expected.add("llm.internal", "ours").unwrap();
        assert_eq!(providers(table, &[]).unwrap(), None);
        assert_eq!(providers(table, &["--ai-latency"]).unwrap(), Some(expected));
        assert_eq!(providers("ai_latency = true", &[]).unwrap(), Some(Providers::default()));
        for wrong in ["host = \"a b\"", "hosts = \"a\"", "host = \"a\""] {
            let error = providers(&format!("[[ai_provider]]\n{wrong}\n"), &[]).unwrap_err().to_string();
            assert!(error.contains("ai_provider"), "{error}");
        }
        let error = load(&["agent", "--progress-redis", "rediss://:s3cret@h"], &[]).unwrap_err().to_string();
        assert!(error.contains("redis://HOST") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn help_names_the_variable_of_every_setting() {
        let mut command = Args::command();
        let mut help = command.render_long_help().to_string();
        for sub in command.get_subcommands_mut() {
            help.push_str(&sub.render_long_help().to_string());
        }
        for key in FILE_KEYS.iter().filter(|key| !["ai_provider", "flow", "probe"].contains(key)) {
            let variable = format!("CADSCOPE_{}", key.to_ascii_uppercase());
            assert!(help.contains(&variable), "{variable}");
        }
    }

    /// The example in the help is a catalogue that loads.
    #[test]
    fn the_example_of_a_probe_is_right() {
        let begin = PROBES_EXAMPLES.find("  [[probe]]").unwrap();
        let cut = |line: &str| {
            line.split("    ").find(|part| !part.trim().is_empty()).unwrap_or("").trim().to_owned()
        };
        let text: Vec<String> = PROBES_EXAMPLES[begin..].lines().map(cut).collect();
        Catalog::builtin().unwrap().add(&text.join("\n"), "help").unwrap();
    }
}
