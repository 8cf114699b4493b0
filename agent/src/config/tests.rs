//! Command lines, variables and files, and what they mean together.

use clap::{CommandFactory, Parser};

use super::settings::LISTEN;
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
    let probe = |id: &str| format!("[[probe]]\nid = \"{id}\"\nfunction = \"f()\"\nsymbols = [\"_Z1fv\"]\n");
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
