//! Turns what the user typed into what they meant: [`Args`] → [`Config`].
//!
//! A setting comes from its flag, else from its `CADSCOPE_…` variable, else from the configuration file, else from its
//! default. Flag `--log-format`, variable `CADSCOPE_LOG_FORMAT` and key `log_format` are one setting with one name.
//!
//! Refuses unknown keys, naming the nearest known one, and values that cannot be meant, naming where they were said.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::Shell;

use self::file::ConfigFile;
use self::settings::Sources;
use crate::ai::Providers;
use crate::broker::RedisUrl;
use crate::budget::Limits;
use crate::catalog::{Catalog, CatalogError};
use crate::flow_type::Rule;
use crate::job::Variables;

pub use self::agent_url::AgentUrl;
pub use self::command_line::Args;
pub use self::file::FILE_KEYS;
pub use self::values::{Attach, LogFormat, OtlpProtocol, ReportFormat, TableFormat, TraceFormat};

mod agent_url;
mod command_line;
mod file;
mod settings;
mod values;

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

#[cfg(test)]
mod tests;
