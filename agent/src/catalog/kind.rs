//! Turns an operation's title into the name of its kind: the title without the values that tell two of a kind apart.

use super::{Label, Probe};
use crate::value::{Outcome, Values};

impl Probe {
    /// What operations of one sort are called together. Values that are labels stay, because they are few:
    /// `recompute {object} ({class})` is `recompute (Part::Box)`.
    #[must_use]
    pub fn kind(&self, values: &Values, outcome: Outcome) -> String {
        let labels = self.label_values(values, outcome);
        self.fill(|name| {
            // A place may name a label, or a value that a label shows as it is.
            let made =
                self.labels.iter().find(|(label, made)| *label == name || shown(made) == Some(name))?.0;
            labels.iter().find(|(label, _)| label == made).map(|(_, value)| value.as_ref())
        })
    }

    /// What the titles of all its operations have in common.
    #[must_use]
    pub fn common_title(&self) -> String {
        self.fill(|_| None)
    }

    /// The title with these values in its places, and nothing where there is none.
    fn fill<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> String {
        let mut out = String::new();
        let mut rest = self.title.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else { break };
            out.push_str(before);
            out.push_str(value(name).unwrap_or_default());
            rest = after;
        }
        out.push_str(rest);
        out.replace("()", "").split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn shown(label: &Label) -> Option<&str> {
    matches!(label, Label::Map(..) | Label::Text(_)).then(|| label.value()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn a_kind_keeps_the_labels_of_a_title() {
        let mut probe = samples::probe("obj.recompute", "recompute {object} ({type}) in {document}");
        probe.labels.insert("class".to_owned(), Label::Text("type".to_owned()));
        assert_eq!(probe.kind(&Values::default(), Outcome::Ok), "recompute (unknown) in");
        let values = [samples::text("object", "Box"), samples::text("type", "Part::Box")].into();
        assert_eq!(probe.kind(&values, Outcome::Ok), "recompute (Part::Box) in");
        assert_eq!(probe.common_title(), "recompute in");
    }
}
