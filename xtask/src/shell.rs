//! Turns commands into progress that can be read: what runs is printed before it runs, what failed is named.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Runs to success with the terminal's output and no input.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = written(command);
    println!("$ {line}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{line} did not start"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Runs to success and passes its standard output on line by line, to `seen` as well.
pub(crate) fn run_watched(command: &mut Command, mut seen: impl FnMut(&str)) -> Result<()> {
    follow(command, |line| {
        println!("{line}");
        seen(line);
    })
}

/// Runs to success and gives its standard output line by line.
pub(crate) fn follow(command: &mut Command, mut seen: impl FnMut(&str)) -> Result<()> {
    let line = written(command);
    println!("$ {line}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{line} did not start"))?;
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).split(b'\n') {
            let text = text?;
            let text = String::from_utf8_lossy(&text);
            seen(&text);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// The first line that a program prints, if it succeeds.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let answer = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_owned();
    answer.status.success().then_some(text)
}

/// Cargo of the toolchain that runs us, in the repository.
pub(crate) fn cargo() -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::places::repository()?);
    Ok(cargo)
}

/// A headline between steps.
pub(crate) fn headline(text: &str) {
    println!("\n== {text}");
}

/// `4 s`, `2 min 05 s`.
pub(crate) fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{:.1} s", time.as_secs_f64()),
        1..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// As one would type it.
fn written(command: &Command) -> String {
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy())));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    set.chain(words.map(String::from)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named() {
        let error = run(Command::new("false").arg("x")).unwrap_err();
        assert!(error.to_string().starts_with("false x: "), "{error}");
    }

    #[test]
    fn watched_output_arrives_line_by_line() {
        let mut lines = Vec::new();
        run_watched(Command::new("printf").arg("a\\nb\\n"), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["a", "b"]);
    }
}
