//! Turns the rules as Prometheus reads them into the same rules as an object of Kubernetes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::places::repository;

const SOURCE: &str = "alerts/cadscope.rules.yml";
const OBJECT: &str = "alerts/cadscope.prometheusrule.yaml";

const HEAD: &str = "# Made from cadscope.rules.yml by `cargo xtask dashboards`; a test compares it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cadscope
  labels:
    app.kubernetes.io/name: cadscope
spec:
";

/// Writes the PrometheusRule.
pub(crate) fn write() -> Result<()> {
    let root = repository()?;
    let file = root.join(OBJECT);
    fs::write(&file, object(&root)?).with_context(|| file.display().to_string())?;
    println!("{}", file.display());
    Ok(())
}

/// The rules' `groups`, moved below `spec`; comments stay with what they belong to.
fn object(root: &Path) -> Result<String> {
    let file = root.join(SOURCE);
    let rules = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let groups = rules.find("\ngroups:").context("no groups in the rules")? + 1;
    let mut text = HEAD.to_owned();
    for line in rules.get(groups..).unwrap_or_default().lines() {
        match line {
            "" => text.push('\n'),
            line => writeln!(text, "  {line}")?,
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_has_the_rules() {
        let root = repository().unwrap();
        let found = fs::read_to_string(root.join(OBJECT)).unwrap_or_default();
        assert!(found == object(&root).unwrap(), "{OBJECT} differs: run `cargo xtask dashboards`");
    }
}
