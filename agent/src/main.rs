//! The `cadscope` program: reads the command line, sets up the log, and runs one command.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cadscope::budget::Limits;
use cadscope::config::{Args, Attach, Command, Config, LogFormat};
use cadscope::discover::Mappings;
use cadscope::observe::ObserverOptions;
use cadscope::validation::Store;
use cadscope::{agent, coverage, manual, preflight, privileges, top, trace};
use clap::Parser;

/// Exit status for a mistake in what was asked for, as clap uses it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match Config::from_args(args, |name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cadscope: {error}");
            return ExitCode::from(USAGE);
        }
    };
    // A log would tear the picture of a terminal that both write to.
    if !matches!(config.command, Command::Top(_)) || !std::io::stderr().is_terminal() {
        set_up_log(config.log_format);
    }
    match run(config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cadscope: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<u8> {
    let node = preflight::Node { proc: config.proc.clone(), sys: config.sys.clone() };
    let mut options = ObserverOptions {
        catalog: Arc::new(config.catalog),
        proc: config.proc,
        sys: config.sys,
        variables: config.variables,
        sources: config.sources,
        flow_rules: config.flow_rules,
        linger: Duration::ZERO,
        only_targets: false,
        ai_providers: None,
        allow_multi: config.attach == Attach::Auto,
        min_duration: Duration::ZERO,
        limits: Limits::NONE,
        keep_files: false,
        give_way: true,
    };
    match config.command {
        Command::Agent(agent_config) => {
            preflight::require(&node, true)?;
            // Afterwards no folder can be made, no file locked for itself, and some kernels open no perf event.
            let store = agent_config.validation.as_ref().map(|validation| Store::open(&validation.state));
            let mappings = Mappings::open(&options.sys)?;
            privileges::give_up(!options.allow_multi || !preflight::has_uprobe_multi(&node))?;
            options.linger = agent_config.linger;
            options.ai_providers.clone_from(&agent_config.ai_providers);
            options.min_duration = agent_config.min_duration;
            options.limits = agent_config.limits;
            options.keep_files = agent_config.validation.is_some();
            options.give_way = agent_config.give_way;
            agent::run(&agent_config, options, store, mappings).map(|()| 0)
        }
        Command::Trace(trace_config) => {
            preflight::require(&node, false)?;
            options.linger = Duration::from_secs(3600);
            trace::run(&trace_config, options)
        }
        Command::Doctor(format) => Ok(u8::from(!preflight::report(&node, format)?)),
        Command::Top(top_config) => {
            options.linger = Duration::from_secs(60);
            top::run(&top_config, &node, options)
        }
        Command::Completions(shell) => manual::complete(shell).map(|()| 0),
        Command::Man(directory) => manual::write(&directory).map(|()| 0),
        Command::Probes(subject, format) => coverage::run(&subject, format, &options.catalog, &options.proc),
    }
}

fn set_up_log(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
