//! Turns what was typed into settings: each from its flag, else its variable, else the configuration file, else its default.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::Value;

use super::command_line::CommandArgs;
use super::file::{ConfigFile, read_text};
use super::values::{OtlpProtocol, Ratio, Seconds, ShortTime};
use super::{
    Access, AgentConfig, AgentUrl, Command, ConfigError, GuardConfig, OtlpConfig, SourceOptions, Subject,
    Target, TopConfig, TopSource, TraceConfig, ValidationConfig,
};
use crate::ai::Providers;
use crate::broker::RedisUrl;
use crate::budget::Limits;
use crate::catalog::Catalog;
use crate::catalog::keys::{suggestion, unknown_key};
use crate::flow_type::{self, Rule};

/// Where an agent listens unless told.
pub(super) const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9777);

/// Keys of an `[[ai_provider]]` table.
const AI_PROVIDER_KEYS: [&str; 2] = ["host", "provider"];

/// Where settings come from below the flags.
pub(super) struct Sources<'a, E> {
    pub(super) env: &'a E,
    pub(super) file: Option<&'a ConfigFile>,
}

impl<E: Fn(&str) -> Option<OsString>> Sources<'_, E> {
    fn variable(&self, key: &str) -> Option<(String, OsString)> {
        let name = format!("CADSCOPE_{}", key.to_ascii_uppercase());
        let value = (self.env)(&name).filter(|value| !value.is_empty())?;
        Some((name, value))
    }

    pub(super) fn setting<T: FromStr<Err: Display>>(
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

    pub(super) fn catalog(&self, flags: Vec<PathBuf>) -> Result<Catalog, ConfigError> {
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

    pub(super) fn sources(
        &self,
        threshold: Option<ShortTime>,
        per_second: Option<u32>,
    ) -> Result<SourceOptions, ConfigError> {
        let default = ShortTime(Duration::from_millis(250));
        let ShortTime(threshold) = self.setting(threshold, "source_threshold", default)?;
        Ok(SourceOptions { threshold, per_second: self.setting(per_second, "source_samples", 20)? })
    }

    pub(super) fn flow_rules(&self) -> Result<Vec<Rule>, ConfigError> {
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

    pub(super) fn command(&self, command: CommandArgs) -> Result<Command, ConfigError> {
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
