//! Stands for the methods that the catalogue brings to [`Probe`]; deleted when they arrive.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::catalog::{Label, Probe};
use crate::operation::{Outcome, Value};

impl Probe {
    /// Label names and values of a call.
    #[must_use]
    pub fn label_values<'a>(
        &'a self,
        values: &'a BTreeMap<String, Value>,
        outcome: Outcome,
    ) -> Vec<(&'a str, Cow<'a, str>)> {
        self.labels.iter().map(|(name, label)| (name.as_str(), label.text(values, outcome))).collect()
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

impl Label {
    /// The value that the label is made from.
    pub(crate) fn value(&self) -> Option<&str> {
        match self {
            Self::Constant(_) | Self::Status => None,
            Self::Map(value, _)
            | Self::Range(value)
            | Self::Workbench(value)
            | Self::Text(value)
            | Self::Extension(value) => Some(value),
        }
    }

    fn text<'a>(&'a self, values: &'a BTreeMap<String, Value>, outcome: Outcome) -> Cow<'a, str> {
        match (self, self.value().and_then(|name| values.get(name))) {
            (Self::Constant(text), _) => Cow::Borrowed(text),
            (Self::Status, _) => Cow::Borrowed(outcome.as_str()),
            (_, None) => Cow::Borrowed("unknown"),
            (Self::Map(_, names), Some(Value::Int(number))) => {
                Cow::Borrowed(names.get(number).map_or("other", String::as_str))
            }
            (_, Some(Value::Int(number))) => Cow::Owned(number.to_string()),
            (_, Some(Value::Text(text))) => Cow::Borrowed(text),
        }
    }
}
