//! Turns what `cargo test` prints into counts and the names of the tests that failed.

/// What the lines of one stage add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Names of the tests that failed.
    failures: Vec<String>,
    /// Names of those that passed when they were run again.
    second: Vec<String>,
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

    /// The tests that failed, if they are so few that each may be run again; none if a program crashed, or if more
    /// failed than a busy machine explains.
    pub(crate) fn worth_another_run(&self) -> Vec<String> {
        let few = self.failures.len() <= 2 && self.failed as usize == self.failures.len();
        if few { self.failures.clone() } else { Vec::new() }
    }

    /// True if exactly one test ran and passed.
    pub(crate) fn one_passed(&self) -> bool {
        (self.passed, self.failed) == (1, 0)
    }

    /// Notes that a test passed when it was run again.
    pub(crate) fn passed_again(&mut self, name: String) {
        self.second.push(name);
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)?;
        for name in &self.second {
            write!(out, "\n{:14} {:>12}  passed only when run again: {name}", "", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Summary {
        let mut summary = Summary::default();
        lines.iter().for_each(|line| summary.add(line));
        summary
    }

    const PASSED: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";

    #[test]
    fn summaries_of_all_binaries_are_added() {
        let summary = read(&[
            PASSED,
            "test something ... ok",
            "test other ... FAILED",
            "test third ... FAILED",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(summary.to_string(), "7 passed, 2 failed, 1 ignored");
        assert_eq!(summary.worth_another_run(), ["other", "third"]);
    }

    #[test]
    fn a_crash_and_many_failures_are_not_run_again() {
        assert!(read(&[PASSED]).worth_another_run().is_empty());
        let failed = |name: &str| format!("test {name} ... FAILED");
        let lines = [failed("a"), failed("b"), failed("c")];
        let mut summary = Summary::default();
        lines.iter().for_each(|line| summary.add(line));
        summary.add("test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        assert!(summary.worth_another_run().is_empty());
    }

    #[test]
    fn a_test_that_passed_only_when_run_again_stays_visible() {
        let mut summary =
            read(&["test slow ... FAILED", "test result: FAILED. 1 passed; 1 failed; 0 ignored"]);
        assert!(!summary.one_passed());
        summary.passed_again("slow".to_owned());
        assert!(summary.to_string().contains("passed only when run again: slow"));
    }
}
