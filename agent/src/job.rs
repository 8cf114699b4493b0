//! Turns the environment of a worker into its job: what it works on, for whom, and in which trace.
//!
//! The environment is what the program was started with (`/proc/PID/environ`); what it sets later is not seen. Pure:
//! bytes in, a [`Job`] out. Nothing in the environment is trusted: values are cut, made valid and printable; a trace
//! context that is not valid is none. The first assignment of a name counts, as in `getenv`.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use opentelemetry::baggage::BaggageExt;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

/// Bytes of an environment that are looked at; what a process is started with is at most 2 MiB.
pub const ENVIRON_BYTES: u64 = 2 << 20;
/// Bytes of an id or a flow type that are kept.
const VALUE_BYTES: usize = 128;
/// Bytes of a variable that carries context; longer ones are none. W3C: a baggage is at most 8,192 bytes.
const CARRIER_BYTES: usize = 8192;
/// Variables of one setting.
const NAMES: usize = 8;

/// Names of environment variables or baggage members, the preferred one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let wrong = |name: &String| {
            name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) || name.contains('=')
        };
        if names.len() > NAMES || names.iter().any(wrong) {
            return Err(format!("is a list of at most {NAMES} names of variables, separated by commas"));
        }
        Ok(Self(names))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.join(","))
    }
}

/// Which variables say what a worker works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variables {
    /// The job's id.
    pub job_id: Names,
    /// The id of the request that led to the job.
    pub request_id: Names,
    /// What kind of job it is.
    pub flow_type: Names,
}

impl Default for Variables {
    fn default() -> Self {
        let name = |name: &str| Names(vec![name.to_owned()]);
        Self { job_id: name("JOB_ID"), request_id: name("REQUEST_ID"), flow_type: name("FLOW_TYPE") }
    }
}

/// What a worker works on. Texts are printable, at most 128 bytes, `""` where the environment does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The job's id.
    pub id: String,
    /// The id of the request that led to it.
    pub request_id: String,
    /// What kind of job it is: chosen by whoever starts workers, so few in honest use, but not bounded by itself.
    pub flow_type: String,
    /// The span that started the worker; invalid (all zero) where there is none.
    pub parent: SpanContext,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            id: String::new(),
            request_id: String::new(),
            flow_type: String::new(),
            parent: SpanContext::NONE,
        }
    }
}

impl Job {
    /// Reads `NAME=value` texts that end with NUL. Where no variable of a name is set, the member of that name of
    /// `BAGGAGE` counts.
    #[must_use]
    pub fn from_environ(environ: &[u8], variables: &Variables) -> Self {
        let environ = Environ::new(environ, variables);
        let context = TraceContextPropagator::new().extract(&environ);
        let baggage = BaggagePropagator::new().extract(&environ);
        let value = |names: &Names| {
            let set = names.0.iter().find_map(|name| environ.0.get(name.as_str()).copied());
            let carried = || names.0.iter().find_map(|name| Some(baggage.baggage().get(name)?.as_str()));
            set.or_else(carried).map(tidy).unwrap_or_default()
        };
        Self {
            id: value(&variables.job_id),
            request_id: value(&variables.request_id),
            flow_type: value(&variables.flow_type),
            parent: context.span().span_context().clone(),
        }
    }
}

/// The variables of an environment that matter, those with a value that is UTF-8 and not empty.
struct Environ<'a>(HashMap<&'a str, &'a str>);

impl<'a> Environ<'a> {
    fn new(environ: &'a [u8], variables: &Variables) -> Self {
        let Variables { job_id, request_id, flow_type } = variables;
        let named = [job_id, request_id, flow_type];
        let mut found = HashMap::new();
        for assignment in environ.split(|byte| *byte == 0) {
            let mut parts = assignment.splitn(2, |byte| *byte == b'=');
            let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
            let Ok(name) = std::str::from_utf8(name) else { continue };
            let carrier = ["TRACEPARENT", "TRACESTATE", "BAGGAGE"].contains(&name);
            if !carrier && !named.iter().any(|names| names.0.iter().any(|known| known == name)) {
                continue;
            }
            let fits = value.len() <= CARRIER_BYTES && !value.is_empty();
            if let (true, Ok(value)) = (fits, std::str::from_utf8(value)) {
                found.entry(name).or_insert(value);
            }
        }
        Self(found)
    }
}

impl Extractor for Environ<'_> {
    /// Propagators ask for `traceparent`; environments have `TRACEPARENT`.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key.to_ascii_uppercase().as_str()).copied()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().copied().collect()
    }
}

/// Cut at a character, without control characters.
fn tidy(value: &str) -> String {
    let mut tidy = String::new();
    for character in value.trim().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }) {
        if tidy.len() + character.len_utf8() > VALUE_BYTES {
            break;
        }
        tidy.push(character);
    }
    tidy
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceId};
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn job(variables: &[&str]) -> Job {
        Job::from_environ(variables.join("\0").as_bytes(), &Variables::default())
    }

    #[test]
    fn a_job_is_what_the_environment_says() {
        let parent = format!("TRACEPARENT={PARENT}");
        let job =
            job(&["PATH=/bin", "JOB_ID=j-1", "REQUEST_ID=r=2", "FLOW_TYPE=gear", &parent, "TRACESTATE=a=b"]);
        assert_eq!(
            (job.id.as_str(), job.request_id.as_str(), job.flow_type.as_str()),
            ("j-1", "r=2", "gear")
        );
        assert_eq!(job.parent.trace_id(), TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap());
        assert_eq!(job.parent.span_id(), SpanId::from_hex("b7ad6b7169203331").unwrap());
        assert!(job.parent.is_sampled() && job.parent.is_remote());
        assert_eq!(job.parent.trace_state().header(), "a=b");
    }

    #[test]
    fn a_parent_that_is_not_sampled_is_still_the_parent() {
        let job = job(&["TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"]);
        assert!(job.parent.is_valid() && !job.parent.is_sampled());
    }

    #[test]
    fn an_environment_without_context_is_no_job() {
        assert_eq!(job(&[]), Job::default());
        assert_eq!(job(&["JOB_ID=", "PATH=/bin", "no assignment", "=x"]), Job::default());
        assert!(!job(&[]).parent.is_valid());
    }

    #[test]
    fn names_are_the_users_and_baggage_stands_in_for_variables() {
        let variables = Variables {
            job_id: "CELERY_TASK_ID, JOB_ID".parse().unwrap(),
            request_id: "request.id".parse().unwrap(),
            ..Variables::default()
        };
        let environ =
            b"JOB_ID=second\0CELERY_TASK_ID=first\0BAGGAGE=request.id=r%201,FLOW_TYPE=gear;prop=1,other=x";
        let job = Job::from_environ(environ, &variables);
        assert_eq!(
            (job.id.as_str(), job.request_id.as_str(), job.flow_type.as_str()),
            ("first", "r 1", "gear")
        );
        for wrong in ["", "A,,B", "A=B", "A B", "A,B,C,D,E,F,G,H,I"] {
            assert!(wrong.parse::<Names>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_assignment_of_a_name_counts() {
        assert_eq!(job(&["JOB_ID=one", "JOB_ID=two"]).id, "one");
    }

    #[test]
    fn a_wrong_context_is_none() {
        for wrong in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "garbage",
            "-",
        ] {
            assert!(!job(&[&format!("TRACEPARENT={wrong}")]).parent.is_valid(), "{wrong}");
        }
        let long = format!("JOB_ID={}", "x".repeat(CARRIER_BYTES + 1));
        assert_eq!(job(&[&long]).id, "");
    }

    #[test]
    fn values_are_cut_at_a_character_and_printable() {
        let job = job(&[&format!("JOB_ID= {}\u{1b}[2Jé", "é".repeat(70)), "FLOW_TYPE=a\nb\u{1b}"]);
        assert_eq!(job.id, "é".repeat(64));
        assert_eq!(job.flow_type, "a\u{fffd}b\u{fffd}");
    }

    proptest! {
        #[test]
        fn no_environment_makes_it_panic_or_grow(
            environ in proptest::collection::vec(any::<u8>(), 0..2000),
            parent in ".{0,80}",
            baggage in "[ -~]{0,200}",
        ) {
            let mut bytes = format!("TRACEPARENT={parent}\0BAGGAGE={baggage}\0").into_bytes();
            bytes.extend(environ);
            let job = Job::from_environ(&bytes, &Variables::default());
            for value in [&job.id, &job.request_id, &job.flow_type] {
                prop_assert!(value.len() <= VALUE_BYTES && !value.chars().any(char::is_control));
            }
        }
    }
}
