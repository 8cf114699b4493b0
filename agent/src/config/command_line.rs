//! Turns the words of a command line into a command and its flags as typed, [`Args`]; holds the help of every command.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::AgentUrl;
use super::values::{
    Attach, LogFormat, OtlpProtocol, Ratio, ReportFormat, Seconds, ShortTime, TableFormat, TraceFormat,
};
use crate::job::Names;

/// The command line, as typed.
#[derive(Clone, Debug, Parser)]
#[command(name = "cadscope", version, about, max_term_width = 100, after_help = MAIN_EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    #[command(subcommand)]
    pub(super) command: CommandArgs,
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
pub(super) struct CommonArgs {
    /// Configuration file (TOML); unknown keys are errors [env: CADSCOPE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// How log lines are written to stderr [env: CADSCOPE_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
    /// How probes are placed: auto takes uprobe_multi where the kernel has it (6.6) [env: CADSCOPE_ATTACH] [default: auto]
    #[arg(long, global = true, value_name = "HOW")]
    pub(super) attach: Option<Attach>,
    /// Adds the probes of a catalogue file; may be repeated [env: CADSCOPE_CATALOG, paths separated by `:`]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) catalog: Vec<PathBuf>,
    /// Where the node's procfs is mounted [env: CADSCOPE_PROC] [default: /proc]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) proc: Option<PathBuf>,
    /// Where the node's sysfs is mounted [env: CADSCOPE_SYS] [default: /sys]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) sys: Option<PathBuf>,
    /// Worker's variables (or baggage members) that hold the job's id [env: CADSCOPE_JOB_ID_ENV] [default: JOB_ID]
    #[arg(long, global = true, value_name = "NAMES")]
    pub(super) job_id_env: Option<Names>,
    /// The same for the request's id [env: CADSCOPE_REQUEST_ID_ENV] [default: REQUEST_ID]
    #[arg(long, global = true, value_name = "NAMES")]
    pub(super) request_id_env: Option<Names>,
    /// The same for the kind of job [env: CADSCOPE_FLOW_TYPE_ENV] [default: FLOW_TYPE]
    #[arg(long, global = true, value_name = "NAMES")]
    pub(super) flow_type_env: Option<Names>,
    /// Operations of at least this length say which line of the job called them
    /// [env: CADSCOPE_SOURCE_THRESHOLD] [default: 250ms]
    #[arg(long, global = true, value_name = "DURATION")]
    pub(super) source_threshold: Option<ShortTime>,
    /// So many Python stacks are read a second, at most; 0 for none [env: CADSCOPE_SOURCE_SAMPLES] [default: 20]
    #[arg(long, global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(super) source_samples: Option<u32>,
}

#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once")]
pub(super) enum CommandArgs {
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::FILE_KEYS;
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn every_command_has_examples() {
        for command in Args::command().get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  cadscope "), "{}", command.get_name());
        }
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
