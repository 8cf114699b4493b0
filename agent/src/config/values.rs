//! Turns a word of the user into a value: a choice, a time span, a share.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

/// How spans go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC.
    Grpc,
    /// Protobuf in HTTP/1.1.
    Http,
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
pub(super) struct Seconds(pub(super) u64);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().filter(|seconds| *seconds <= 86_400);
        seconds.map(Self).ok_or_else(|| "is a number of seconds, at most 86400".to_owned())
    }
}

/// A duration with its unit, at most an hour: `500us`, `1ms`, `0.25s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortTime(pub(super) Duration);

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
pub(super) struct Ratio(pub(super) f64);

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
