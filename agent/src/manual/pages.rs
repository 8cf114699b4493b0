//! Turns the command line into two pages of the documentation: the commands, and the settings.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use crate::config::{Args, FILE_KEYS};

const BY: &str = "<!-- Made from the program by `cargo xtask docs`; do not edit. -->\n";

/// `docs/commands.md`: the help of each command.
#[must_use]
pub fn commands() -> String {
    let mut whole = Args::command().term_width(100).disable_help_subcommand(true);
    whole.build();
    let mut page = format!(
        "{BY}# Commands\n\nWhat `cadscope --help` and `cadscope COMMAND --help` say. `cadscope man DIR` writes the \
         same as manual pages, `cadscope completions SHELL` prints completions.\n"
    );
    for command in std::iter::once(&whole).chain(whole.get_subcommands()) {
        let name =
            if command.get_name() == "cadscope" { String::new() } else { format!(" {}", command.get_name()) };
        let help = command.clone().render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(page, "\n## cadscope{name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    }
    page
}

/// `docs/configuration.md`: every setting by its three names.
#[must_use]
pub fn configuration() -> String {
    let command = Args::command();
    let mut page = format!("{BY}{}", include_str!("configuration.md"));
    page.push_str("\n## Settings\n\n| key in the file | flag | variable | default | what it is |\n|---|---|---|---|---|\n");
    for key in FILE_KEYS {
        let _ = writeln!(page, "{}", row(&command, key));
    }
    page
}

/// One row of the table.
fn row(command: &Command, key: &str) -> String {
    let flag = key.replace('_', "-");
    let own = command.get_subcommands().flat_map(|sub| sub.get_arguments().map(move |arg| (Some(sub), arg)));
    let all = command.get_arguments().map(|arg| (None, arg));
    let found: Vec<_> = all.chain(own).filter(|(_, arg)| arg.get_long() == Some(&flag)).collect();
    let Some((_, arg)) = found.first() else {
        return format!("| `[[{key}]]` | | | none | a table; see above |");
    };
    let (help, default) = told(arg);
    let of: Vec<String> =
        found.iter().filter_map(|(sub, _)| Some(format!("`{}`", sub.as_ref()?.get_name()))).collect();
    let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
    let value = arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
    let variable = format!("CADSCOPE_{}", key.to_ascii_uppercase());
    format!("| `{key}` | `--{flag} {value}`{of} | `{variable}` | {default} | {help} |")
}

/// What a setting is, and its default, from its help.
fn told(arg: &Arg) -> (String, String) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let begin = help.find("[env:").unwrap_or(help.len());
    let default = help.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("none");
    let default = if default == "none" { default.to_owned() } else { format!("`{default}`") };
    let text = help.get(..begin).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    (text.replace('|', "\\|"), default)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::config::Config;

    /// With `CADSCOPE_WRITE=1` it is written instead.
    fn compare(name: &str, page: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        if std::env::var_os("CADSCOPE_WRITE").is_some() {
            std::fs::write(&path, page).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == page,
            "docs/{name} is not what the program says; CADSCOPE_WRITE=1 cargo test -p cadscope --lib manual::pages writes it"
        );
    }

    #[test]
    fn the_page_of_commands_is_what_the_program_says() {
        compare("commands.md", &commands());
    }

    #[test]
    fn the_page_of_settings_is_what_the_program_says() {
        compare("configuration.md", &configuration());
    }

    #[test]
    fn the_example_of_a_configuration_is_right() {
        let page = configuration();
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), example).unwrap();
        let line = ["cadscope", "--config", file.path().to_str().unwrap(), "agent"];
        let config = Config::from_args(Args::try_parse_from(line).unwrap(), |_| None).unwrap();
        assert!(config.catalog.get("mine.gear").is_some() && config.flow_rules.len() == 1);
    }

    #[test]
    fn every_setting_has_its_row() {
        let page = configuration();
        assert!(
            page.contains(
                "| `listen` | `--listen ADDRESS` (`agent`) | `CADSCOPE_LISTEN` | `127.0.0.1:9777` |"
            ),
            "{page}"
        );
        for key in FILE_KEYS {
            assert!(
                page.contains(&format!("| `{key}` |")) || page.contains(&format!("| `[[{key}]]` |")),
                "{key}"
            );
        }
        assert!(!page.contains("[env:"), "{page}");
    }
}
