//! Turns a configuration file into its keys, all of them known.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::ConfigError;
use crate::catalog::keys::{suggestion, unknown_key};

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

/// The configuration file: only known keys.
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    table: Table,
}

impl ConfigFile {
    pub(super) fn read(path: PathBuf) -> Result<Self, ConfigError> {
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

    pub(super) fn place(&self, key: &str) -> String {
        format!("{}: {key}", self.path.display())
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, problem: &str) -> ConfigError {
        ConfigError::Value { place: self.place(key), value: value.to_string(), problem: problem.to_owned() }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
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

    pub(super) fn list(&self, key: &str) -> Result<&[Value], ConfigError> {
        match self.table.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.wrong(key, other, "is no list")),
        }
    }

    /// Paths of a list, counted from the file's directory.
    pub(super) fn paths(&self, key: &str) -> Result<Vec<PathBuf>, ConfigError> {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let list = self.list(key)?.iter();
        list.map(|value| match value.as_str() {
            Some(text) => Ok(directory.join(text)),
            None => Err(self.wrong(key, value, "is no path in quotes")),
        })
        .collect()
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}
