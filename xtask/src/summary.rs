//! Turns what `cargo test` prints into counts and the names of the tests that failed.

/// What the lines of one stage add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Names of the tests that failed.
    failures: Vec<String>,
}

impl Summary {
    /// Adds a line `test name ... FAILED` or `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line adds
    /// nothing.
    pub(crate) fn add(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split("; ") {
            let mut words = part.rsplit(' ');
            let (Some(what), Some(number)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)?;
        for name in &self.failures {
            write!(out, "\n{:14} {:>12}  failed: {name}", "", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_all_binaries_are_added_and_failures_are_named() {
        let mut summary = Summary::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test something ... ok",
            "test other ... FAILED",
            "test third ... FAILED",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            summary.add(line);
        }
        let text = summary.to_string();
        assert!(text.starts_with("7 passed, 2 failed, 1 ignored\n"), "{text}");
        assert!(text.contains("failed: other\n") && text.ends_with("failed: third"), "{text}");
    }
}
