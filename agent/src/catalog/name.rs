//! Turns an operation into the short name that families over all sorts of operations have as label `operation`.

use std::borrow::Cow;

use super::Probe;
use crate::value::{Outcome, Values};

impl Probe {
    /// What its own family calls it (`cut`, `fillet`), else its group (`export`), else the last part of its id.
    #[must_use]
    pub fn operation_name(&self, values: &Values) -> Cow<'_, str> {
        for wanted in ["operation", "feature"] {
            if self.labels.contains_key(wanted) {
                let labels = self.label_values(values, Outcome::Ok);
                if let Some((_, name)) = labels.into_iter().find(|(label, _)| *label == wanted) {
                    return Cow::Owned(name.into_owned());
                }
            }
        }
        let id = self.id.rsplit('.').next().unwrap_or_default();
        Cow::Borrowed(self.group.as_deref().unwrap_or(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn an_operation_is_called_as_its_family_does() {
        let values = Values::from([samples::int("operation", 2)]);
        assert_eq!(samples::boolean().operation_name(&values), "cut");
        assert_eq!(samples::probe("fc.doc_recompute", "").operation_name(&values), "doc_recompute");
        let export = Probe { group: Some("export".to_owned()), ..samples::probe("io.stl", "") };
        assert_eq!(export.operation_name(&values), "export");
    }
}
