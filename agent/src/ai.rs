//! Turns an exchange seen at TLS into a call of an AI provider: which provider, model and operation, how it went.
//!
//! The host decides whether it is one at all: what goes elsewhere is forgotten here. Labels stay few: operations are
//! those of a table, and a model that is no plain word is `other`. Pure.

use std::time::Duration;

use cadscope_common::tls::Exchange;

/// Longest name of a model.
const MODEL_CHARACTERS: usize = 63;
/// Providers that the user can name.
const MOST_PROVIDERS: usize = 256;

/// Hosts of providers, which are called as OpenTelemetry does (`gen_ai.provider.name`). `*.` stands for any number of
/// names, `*` inside for the rest of one.
const PROVIDERS: &[(&str, &str)] = &[
    ("api.openai.com", "openai"),
    ("*.api.openai.com", "openai"),
    ("*.openai.azure.com", "azure.ai.openai"),
    ("*.services.ai.azure.com", "azure.ai.inference"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("*-aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("bedrock-runtime.*.amazonaws.com", "aws.bedrock"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.cohere.com", "cohere"),
    ("api.cohere.ai", "cohere"),
    ("api.groq.com", "groq"),
    ("api.deepseek.com", "deepseek"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
    ("openrouter.ai", "openrouter"),
    ("api.together.xyz", "together"),
    ("api.fireworks.ai", "fireworks"),
];

/// Ends of paths, the longer first, and what is asked there.
const OPERATIONS: &[(&str, &str)] = &[
    ("/chat/completions", "chat"),
    ("/messages", "chat"),
    ("/chat", "chat"),
    ("/converse", "chat"),
    ("/converse-stream", "chat"),
    ("/responses", "responses"),
    ("/completions", "text_completion"),
    ("/embeddings", "embeddings"),
    ("/embed", "embeddings"),
    (":embedContent", "embeddings"),
    (":batchEmbedContents", "embeddings"),
    (":generateContent", "generate_content"),
    (":streamGenerateContent", "generate_content"),
    (":rawPredict", "generate_content"),
    (":streamRawPredict", "generate_content"),
    ("/invoke", "invoke_model"),
    ("/invoke-with-response-stream", "invoke_model"),
    ("/images/generations", "image_generation"),
    ("/images/edits", "image_generation"),
    ("/audio/transcriptions", "transcription"),
    ("/audio/speech", "speech"),
    ("/moderations", "moderation"),
    ("/models", "list_models"),
];

/// What stands before the model in a path.
const MODEL_PLACES: [&str; 3] = ["/models/", "/deployments/", "/model/"];

/// A call of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `openai`.
    pub provider: String,
    /// `gpt-4o`; `unknown` if the request does not say, `other` if it is no plain word.
    pub model: String,
    /// `chat`; `other` if it is none of the table.
    pub operation: &'static str,
    /// Status of the response; `None` if there was none.
    pub status: Option<u32>,
    /// From the request's first byte to the response's first.
    pub first_byte: Option<Duration>,
    /// From the request's first byte to the response's last.
    pub whole: Duration,
}

impl Call {
    /// `ok` or `error`.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.status {
            Some(100..400) => "ok",
            _ => "error",
        }
    }
}

/// Which hosts are providers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Providers {
    /// The user's, looked at first.
    own: Vec<(String, String)>,
}

impl Providers {
    /// Adds a host of the user's.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn add(&mut self, host: &str, provider: &str) -> Result<(), String> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.*:".contains(&b));
        if host.is_empty() || !plain(host) || host.matches('*').count() > 1 {
            return Err(
                "has a `host` that is no name of a host, such as llm.example.com or *.example.com".to_owned()
            );
        }
        if provider.is_empty() || !plain(provider) {
            return Err("has a `provider` that is no plain word".to_owned());
        }
        if self.own.len() >= MOST_PROVIDERS {
            return Err(format!("is one of more than {MOST_PROVIDERS}"));
        }
        self.own.push((host.to_ascii_lowercase(), provider.to_owned()));
        Ok(())
    }

    fn of(&self, host: &str) -> Option<&str> {
        let name = without_port(host);
        let own = self.own.iter().map(|(pattern, provider)| (pattern.as_str(), provider.as_str()));
        let mut all = own.chain(PROVIDERS.iter().copied());
        all.find(|(pattern, _)| matches(pattern, name) || *pattern == host).map(|(_, provider)| provider)
    }

    /// The call that an exchange is, if its host is a provider's.
    #[must_use]
    pub fn call(&self, exchange: &Exchange) -> Option<Call> {
        let provider = self.of(&text(&exchange.host))?;
        let path = text(&exchange.path);
        let until = |at: u64| Duration::from_nanos(at.saturating_sub(exchange.start_ns));
        Some(Call {
            provider: provider.to_owned(),
            model: model(&text(&exchange.model), &path),
            operation: operation(&path),
            status: (exchange.status != 0).then_some(exchange.status),
            first_byte: (exchange.first_ns != 0).then(|| until(exchange.first_ns)),
            whole: until(exchange.end_ns),
        })
    }
}

/// Up to the NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a name is of a pattern with at most one `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            name.len() > before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
    }
}

fn operation(path: &str) -> &'static str {
    let path = path.trim_end_matches('/');
    OPERATIONS.iter().find(|(end, _)| path.ends_with(end)).map_or("other", |(_, operation)| operation)
}

fn model(of_body: &str, path: &str) -> String {
    let of_path = || {
        let rest = MODEL_PLACES.iter().find_map(|place| path.split_once(place))?.1;
        rest.split(['/', ':']).next().filter(|name| !name.is_empty())
    };
    let name = Some(of_body).filter(|name| !name.is_empty()).or_else(of_path);
    match name {
        None => "unknown".to_owned(),
        Some(name) if is_plain(name) => name.to_owned(),
        Some(_) => "other".to_owned(),
    }
}

fn is_plain(name: &str) -> bool {
    name.len() <= MODEL_CHARACTERS
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/@+".contains(&b))
}

#[cfg(test)]
mod tests {
    use cadscope_common::record::{ProcessKey, record_kind};
    use cadscope_common::tls::{HOST_BYTES, MODEL_BYTES, PATH_BYTES};
    use proptest::prelude::*;

    use super::*;

    fn field<const N: usize>(text: &str) -> [u8; N] {
        let mut field = [0; N];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    }

    fn exchange(host: &str, path: &str, model: &str) -> Exchange {
        Exchange {
            kind: record_kind::EXCHANGE,
            status: 200,
            process: ProcessKey { pid: 7, padding: 0, start_boottime_ns: 0 },
            start_ns: 1_000_000,
            first_ns: 3_000_000,
            end_ns: 9_000_000,
            host: field::<HOST_BYTES>(host),
            path: field::<PATH_BYTES>(path),
            model: field::<MODEL_BYTES>(model),
        }
    }

    #[test]
    fn a_call_is_told_by_host_path_and_body() {
        let call =
            Providers::default().call(&exchange("api.openai.com", "/v1/chat/completions", "gpt-4o")).unwrap();
        assert_eq!(
            (call.provider.as_str(), call.model.as_str(), call.operation),
            ("openai", "gpt-4o", "chat")
        );
        assert_eq!(call.first_byte, Some(Duration::from_millis(2)));
        assert_eq!((call.whole, call.outcome()), (Duration::from_millis(8), "ok"));
        for (host, path, body, provider, model, operation) in [
            (
                "me.openai.azure.com:443",
                "/openai/deployments/d4/embeddings",
                "",
                "azure.ai.openai",
                "d4",
                "embeddings",
            ),
            (
                "generativelanguage.googleapis.com",
                "/v1beta/models/gemini-2:generateContent",
                "",
                "gcp.gemini",
                "gemini-2",
                "generate_content",
            ),
            (
                "bedrock-runtime.eu-west-1.amazonaws.com",
                "/model/m.1/converse",
                "",
                "aws.bedrock",
                "m.1",
                "chat",
            ),
            ("api.anthropic.com", "/v1/messages", "claude x", "anthropic", "other", "chat"),
            ("api.openai.com", "/v1/threads/t_1", "", "openai", "unknown", "other"),
        ] {
            let call = Providers::default().call(&exchange(host, path, body)).unwrap();
            assert_eq!(
                (call.provider.as_str(), call.model.as_str(), call.operation),
                (provider, model, operation),
                "{host}{path}"
            );
        }
    }

    #[test]
    fn other_hosts_are_none_of_our_business() {
        for host in
            ["example.com", "api.openai.com.evil.example", "notapi.openai.comx", "openai.azure.com", ""]
        {
            assert_eq!(
                Providers::default().call(&exchange(host, "/v1/chat/completions", "m")),
                None,
                "{host}"
            );
        }
    }

    #[test]
    fn a_user_names_hosts() {
        let mut providers = Providers::default();
        providers.add("LLM.internal", "ours").unwrap();
        providers.add("*.gpu.internal", "gpu").unwrap();
        assert_eq!(providers.of("llm.internal:8443"), Some("ours"));
        assert_eq!(providers.of("a.b.gpu.internal"), Some("gpu"));
        assert_eq!(providers.of("api.openai.com"), Some("openai"));
        for (host, provider) in [("", "x"), ("a b", "x"), ("*.*.x", "x"), ("h", ""), ("h", "a b")] {
            assert!(providers.add(host, provider).is_err(), "{host} {provider}");
        }
    }

    #[test]
    fn what_is_not_answered_well_is_an_error() {
        for (status, outcome) in [(0, "error"), (200, "ok"), (302, "ok"), (429, "error"), (500, "error")] {
            let exchange = Exchange { status, ..exchange("api.openai.com", "/", "") };
            assert_eq!(Providers::default().call(&exchange).unwrap().outcome(), outcome, "{status}");
        }
    }

    proptest! {
        #[test]
        fn labels_are_printable_whatever_was_sent(
            path in proptest::collection::vec(any::<u8>(), PATH_BYTES),
            model in proptest::collection::vec(any::<u8>(), MODEL_BYTES),
        ) {
            let exchange = Exchange {
                path: path.try_into().unwrap(),
                model: model.try_into().unwrap(),
                ..exchange("api.openai.com", "", "")
            };
            let call = Providers::default().call(&exchange).unwrap();
            prop_assert!(call.model.bytes().all(|byte| byte.is_ascii_graphic()) && !call.model.is_empty());
        }
    }
}
