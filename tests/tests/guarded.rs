//! Promise: with a certificate and a token the pages are for those who have both, over TLS alone; both can be renewed
//! while the agent runs, and a client that says nothing keeps nobody out. `cadscope top` is such a client.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::node::{cadscope, require_root, scratch, tool};
use cadscope_tests::run::{run, until};
use cadscope_tests::terminal::Terminal;

const LIMIT: Duration = Duration::from_secs(60);
const TOKEN: &str = "4f1c0a77a8e04e0f9d1be07c36dd0b1e";
const OTHER: &str = "another-token-of-some-length";

/// A certificate that vouches for itself, for 127.0.0.1, as docs/security.md makes one, in `NAME.pem`, its key in `NAME.key`.
fn certificate(folder: &Path, name: &str) -> Result<()> {
    let mut openssl = Command::new(tool("openssl", "openssl")?);
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-days", "2", "-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-out").arg(folder.join(format!("{name}.pem")));
    let ended = run(openssl.arg("-keyout").arg(folder.join(format!("{name}.key"))), LIMIT)?;
    ensure!(ended.code == 0, "{ended:?}");
    Ok(())
}

/// What an answer's status is, or curl's own number of what went wrong.
fn status(agent: &Agent, path: &str, more: &[&str]) -> Result<String> {
    let mut curl = Command::new(tool("curl", "curl")?);
    curl.args(["--silent", "--show-error", "--max-time", "20", "--output", "/dev/null"]);
    curl.args(["--write-out", "%{http_code}"]).args(more);
    let ended = run(curl.arg(format!("https://127.0.0.1:{}{path}", agent.port())), LIMIT)?;
    Ok(if ended.code == 0 { ended.stdout } else { format!("curl {}: {}", ended.code, ended.stderr) })
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

#[test]
fn who_has_token_and_certificate_sees_the_pages_and_nobody_else_also_after_both_were_renewed() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let at = |name: &str| folder.path().join(name);
    certificate(folder.path(), "first")?;
    certificate(folder.path(), "second")?;
    for (from, to) in [("first.pem", "cert"), ("first.key", "key")] {
        fs::copy(at(from), at(to))?;
    }
    fs::write(at("token"), format!("{TOKEN}\n"))?;
    let files = [("--tls-cert", "cert"), ("--tls-key", "key"), ("--token-file", "token")];
    let arguments: Vec<_> = files.iter().flat_map(|(flag, name)| [(*flag).into(), at(name)]).collect();
    let agent = Agent::launch(&arguments)?;
    let (first, second) = (at("first.pem"), at("second.pem"));
    let (first, second) =
        (first.to_str().context("path is not UTF-8")?, second.to_str().context("path is not UTF-8")?);
    let ask = |path: &str, authority: &str, token: Option<&str>| {
        let header = token.map(bearer);
        let mut more = vec!["--cacert", authority];
        if let Some(header) = &header {
            more.extend(["--header", header.as_str()]);
        }
        status(&agent, path, &more)
    };
    until("readiness over TLS", LIMIT, || ask("/readyz", first, None).ok().filter(|status| status == "200"))
        .with_context(|| agent.log())?;

    for path in ["/metrics", "/status", "/live", "/progress", "/"] {
        for token in [None, Some(OTHER), Some(""), Some(&TOKEN[1..])] {
            let answer = ask(path, first, token)?;
            ensure!(answer == "401", "{path} with {token:?}: {answer}");
        }
    }
    ensure!(ask("/metrics", first, Some(TOKEN))? == "200", "{}", agent.log());
    let as_password = format!("cadscope:{TOKEN}");
    let answer = status(&agent, "/metrics", &["--cacert", first, "--user", &as_password])?;
    ensure!(answer == "200", "as a password: {answer}");
    let stranger = ask("/metrics", second, Some(TOKEN))?;
    ensure!(stranger.starts_with("curl 60"), "with another authority: {stranger}");
    ensure!(!agent.get("/livez").is_ok_and(|(status, _)| status == 200), "plain HTTP is answered");
    let old = status(&agent, "/livez", &["--cacert", first, "--tls-max", "1.1", "--tlsv1.0"])?;
    ensure!(old.starts_with("curl "), "TLS 1.1 is spoken: {old}");

    // Clients that open a connection and say nothing, or no TLS.
    let silent: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(("127.0.0.1", agent.port()))).collect::<Result<_, _>>()?;
    let answer = ask("/metrics", first, Some(TOKEN))?;
    ensure!(answer == "200", "beside silent clients: {answer}");
    drop(silent);

    // Renewed while it runs: written anew in place, as secrets that are mounted are.
    for (from, to) in [("second.pem", "cert"), ("second.key", "key")] {
        fs::copy(at(from), at(to))?;
    }
    fs::write(at("token"), OTHER)?;
    until("the new certificate and token", LIMIT, || {
        ask("/metrics", second, Some(OTHER)).ok().filter(|status| status == "200")
    })
    .with_context(|| agent.log())?;
    ensure!(ask("/metrics", second, Some(TOKEN))? == "401", "the old token is taken");
    // Or put in the place of the old, as other tools do.
    for (from, to) in [("first.pem", "cert"), ("first.key", "key")] {
        fs::copy(at(from), at("new"))?;
        fs::rename(at("new"), at(to))?;
    }
    until("a certificate in the place of the old", LIMIT, || {
        ask("/metrics", first, Some(OTHER)).ok().filter(|status| status == "200")
    })
    .with_context(|| agent.log())?;
    // And what cannot be used leaves what was.
    fs::write(at("token"), "short")?;
    fs::write(at("cert"), "no certificate")?;
    ensure!(ask("/metrics", first, Some(OTHER))? == "200", "{}", agent.log());
    ensure!(!agent.log().contains(TOKEN) && !agent.log().contains(OTHER), "the log holds a token");
    ensure!(agent.log().contains("stays in use"), "{}", agent.log());
    Ok(())
}

/// `top` with these arguments in a terminal that is wide enough for what it says.
fn top(arguments: &str) -> Result<Terminal> {
    let program = cadscope()?;
    let line =
        format!("LANG=C.UTF-8 LC_ALL= {} top {arguments}; echo ended with $?; sleep 600", program.display());
    Terminal::start(200, 24, &line)
}

#[test]
fn top_shows_a_guarded_agent_to_who_has_its_token_and_trusts_its_certificate() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let at = |name: &str| folder.path().join(name);
    certificate(folder.path(), "first")?;
    certificate(folder.path(), "second")?;
    fs::write(at("token"), format!("{TOKEN}\n"))?;
    fs::write(at("other"), OTHER)?;
    let files = [("--tls-cert", "first.pem"), ("--tls-key", "first.key"), ("--token-file", "token")];
    let arguments: Vec<_> = files.iter().flat_map(|(flag, name)| [(*flag).into(), at(name)]).collect();
    let agent = Agent::launch(&arguments)?;
    let url = format!("https://127.0.0.1:{}", agent.port());
    let authority = at("first.pem").display().to_string();
    until("readiness over TLS", LIMIT, || {
        status(&agent, "/readyz", &["--cacert", &authority]).ok().filter(|status| status == "200")
    })
    .with_context(|| agent.log())?;
    let (token, other) = (at("token").display().to_string(), at("other").display().to_string());
    let stranger = at("second.pem").display().to_string();

    for (arguments, said) in [
        (format!("--connect {url} --ca-cert {authority}"), "wants its token"),
        (format!("--connect {url} --ca-cert {authority} --token-file {other}"), "does not take the token"),
        (format!("--connect {url} --ca-cert {stranger} --token-file {token}"), "no TLS with"),
        (format!("--connect {url} --token-file {token}"), "--ca-cert"),
        (format!("--connect {url} --ca-cert {token} --token-file {token}"), "holds no certificate"),
        (format!("--connect http://127.0.0.1:{} --token-file {token}", agent.port()), "is it https://"),
    ] {
        let screen = top(&arguments)?.wait_for(&arguments, |screen| screen.contains("ended with"))?;
        let text = screen.replace('\n', "");
        ensure!(text.contains(said) && text.contains("ended with 1"), "{arguments}: {screen}");
        ensure!(!text.contains(TOKEN) && !text.contains(OTHER), "{arguments} tells a token: {screen}");
    }
    let arguments = format!("--connect {url} --ca-cert {authority} --token-file {token}");
    let terminal = top(&arguments)?;
    let screen = terminal.wait_for("a picture", |screen| screen.contains("Workers"))?;
    ensure!(screen.contains(&format!("agent {url}")), "{screen}");
    terminal.press(&["q"])?;
    terminal.wait_for("its end", |screen| screen.contains("ended with 0"))?;

    // As the agent of this node is configured, nothing needs to be said.
    let own = format!(
        "listen = \"127.0.0.1:{}\"\ntoken_file = {token:?}\ntls_cert = {authority:?}\nca_cert = {authority:?}\n",
        agent.port()
    );
    fs::write(at("cadscope.toml"), own)?;
    let terminal = top(&format!("--config {}", at("cadscope.toml").display()))?;
    let screen = terminal.wait_for("a picture", |screen| screen.contains("Workers"))?;
    ensure!(screen.contains(&format!("agent {url}")), "{screen}");
    Ok(())
}
