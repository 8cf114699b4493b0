//! Turns what a worker was started with into the kind of its job: label `flow_type`.
//!
//! A variable of its environment says it, else the first rule of the configuration whose pattern its command line has,
//! else it is `unknown`. The value comes from a worker: what is no short plain word is `invalid`.

use regex::Regex;
use toml::{Table, Value};

/// What is said where nothing says.
pub const UNKNOWN: &str = "unknown";
const INVALID: &str = "invalid";
const MAX_BYTES: usize = 64;
/// Bytes of a command line that patterns are tried on.
const COMMAND_BYTES: usize = 4096;

/// A rule: workers whose command line has the pattern do jobs of this kind.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Regex,
    flow_type: String,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.flow_type == other.flow_type
    }
}

impl Eq for Rule {}

/// Reads one `[[flow]]` table: `command = "gear.*\\.py"`, `type = "gear"`.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn rule(table: &Table) -> Result<Rule, String> {
    if let Some(key) = table.keys().find(|key| !["command", "type"].contains(&key.as_str())) {
        return Err(format!("has the key `{key}`; a rule has `command` and `type`"));
    }
    let text = |key: &str| {
        table.get(key).and_then(Value::as_str).ok_or_else(|| format!("needs `{key}`, a text in quotes"))
    };
    let flow_type = text("type")?.to_owned();
    if !is_plain(&flow_type) {
        return Err(format!(
            "has the type `{flow_type}`: use at most {MAX_BYTES} letters, digits and `_.:-`"
        ));
    }
    let pattern =
        Regex::new(text("command")?).map_err(|error| format!("has no regular expression: {error}"))?;
    Ok(Rule { pattern, flow_type })
}

/// The kind of a worker's job, from what its environment says (`""` for nothing) and its command line.
#[must_use]
pub fn flow_type(said: &str, command: &[String], rules: &[Rule]) -> String {
    if !said.is_empty() {
        return if is_plain(said) { said.to_owned() } else { INVALID.to_owned() };
    }
    let mut line = command.join(" ");
    line.truncate(line.floor_char_boundary(COMMAND_BYTES));
    let found = rules.iter().find(|rule| rule.pattern.is_match(&line));
    found.map_or_else(|| UNKNOWN.to_owned(), |rule| rule.flow_type.clone())
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-');
    !text.is_empty() && text.len() <= MAX_BYTES && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<Rule>, String> {
        let table: Table = text.parse().unwrap();
        table["flow"].as_array().unwrap().iter().map(|flow| rule(flow.as_table().unwrap())).collect()
    }

    #[test]
    fn the_environment_wins_over_the_rules_and_the_first_rule_over_the_next() {
        let rules = rules(
            "[[flow]]\ncommand = \"gear.*py$\"\ntype = \"gear\"\n[[flow]]\ncommand = \"py\"\ntype = \"script\"",
        )
        .unwrap();
        let command = ["freecadcmd".to_owned(), "/jobs/gear_7.py".to_owned()];
        assert_eq!(flow_type("plate", &command, &rules), "plate");
        assert_eq!(flow_type("", &command, &rules), "gear");
        assert_eq!(flow_type("", &["python3".to_owned()], &rules), "script");
        assert_eq!(flow_type("", &["bash".to_owned()], &rules), "unknown");
        assert_eq!(flow_type("a b", &[], &rules), "invalid");
        assert_eq!(flow_type(&"x".repeat(65), &[], &rules), "invalid");
    }

    #[test]
    fn a_wrong_rule_is_told_what_is_wrong() {
        for (text, wanted) in [
            ("[[flow]]\ncommand = \"(\"\ntype = \"x\"", "no regular expression"),
            ("[[flow]]\ntype = \"x\"", "needs `command`"),
            ("[[flow]]\ncommand = \"x\"\ntype = \"a b\"", "has the type `a b`"),
            ("[[flow]]\ncommand = \"x\"\ntype = \"x\"\nkind = 1", "has the key `kind`"),
        ] {
            let error = rules(text).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
