//! Stands for the methods that the catalogue brings to [`Probe`]; deleted when they arrive.

use std::collections::BTreeMap;

use crate::catalog::{Label, Probe};
use crate::operation::{Outcome, Value};

impl Probe {
    /// Label names and values of a call.
    #[must_use]
    pub fn label_values(&self, values: &BTreeMap<String, Value>, outcome: Outcome) -> Vec<(String, String)> {
        let text = |name: &String| match values.get(name) {
            Some(Value::Int(number)) => number.to_string(),
            Some(Value::Text(text)) => text.to_string(),
            None => String::new(),
        };
        let label = |label: &Label| match label {
            Label::Constant(value) => value.clone(),
            Label::Status => outcome.as_str().to_owned(),
            Label::Map(value, names) => match values.get(value) {
                Some(Value::Int(number)) => names.get(number).cloned().unwrap_or_else(|| "other".to_owned()),
                _ => "other".to_owned(),
            },
            Label::Range(value) | Label::Workbench(value) | Label::Text(value) | Label::Extension(value) => {
                text(value)
            }
        };
        self.labels.iter().map(|(name, made)| (name.clone(), label(made))).collect()
    }

    /// Whether the call counts.
    #[must_use]
    pub fn counts(&self, values: &BTreeMap<String, Value>) -> bool {
        self.count_when.iter().all(|(name, number)| values.get(name) == Some(&Value::Int(*number)))
    }

    /// The title of a call.
    #[must_use]
    pub fn title(&self, values: &BTreeMap<String, Value>) -> String {
        let mut title = self.title.clone();
        for (name, value) in values {
            let text = match value {
                Value::Int(number) => number.to_string(),
                Value::Text(text) => text.to_string(),
            };
            title = title.replace(&format!("{{{name}}}"), &text);
        }
        title
    }
}
