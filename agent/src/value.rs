//! What calls leave behind: how they went, and the values read from them.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

/// Values that an operation holds in itself; more of them take a block of memory.
const HELD: usize = 8;
/// Texts that are remembered; the memory starts anew beyond.
const MAX_TEXTS: usize = 4096;

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It returned and reported success, or nothing.
    Ok,
    /// It failed natively: return value, `IsDone()` false, a jump out of it.
    Error,
    /// A C++ exception left it.
    Exception,
    /// Its thread or process ended inside it.
    Killed,
}

impl Outcome {
    /// As labels and JSON have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Exception => "exception",
            Self::Killed => "killed",
        }
    }
}

/// A value read from a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An integer, already extended by its kind.
    Int(i64),
    /// A text, valid UTF-8 (invalid bytes replaced), class names demangled.
    Text(Arc<str>),
}

/// What was read from a call, by name, sorted. As a map, but no block of memory for the few that a call has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(SmallVec<[(Arc<str>, Value); HELD]>);

impl Values {
    /// The value of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        let at = self.place(name).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Adds a value, in place of one of the same name.
    pub fn insert(&mut self, name: Arc<str>, value: Value) {
        let at = self.place(&name).unwrap_or_else(|at| {
            self.0.insert(at, (name, Value::Int(0)));
            at
        });
        if let Some(held) = self.0.get_mut(at) {
            held.1 = value;
        }
    }

    /// Takes a value away.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.place(name).ok()?;
        Some(self.0.remove(at).1)
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(held, _)| (**held).cmp(name))
    }
}

impl<N: Into<Arc<str>>> Extend<(N, Value)> for Values {
    fn extend<I: IntoIterator<Item = (N, Value)>>(&mut self, values: I) {
        values.into_iter().for_each(|(name, value)| self.insert(name.into(), value));
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, Value)> for Values {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(values: I) -> Self {
        let mut all = Self::default();
        all.extend(values);
        all
    }
}

impl<N: Into<Arc<str>>, const COUNT: usize> From<[(N, Value); COUNT]> for Values {
    fn from(values: [(N, Value); COUNT]) -> Self {
        values.into_iter().collect()
    }
}

/// Texts that were read, each made readable and held once: a worker says the same class, file and object over and over.
#[derive(Debug, Default)]
pub struct Texts {
    plain: HashMap<Box<[u8]>, Arc<str>>,
    classes: HashMap<Box<[u8]>, Arc<str>>,
}

impl Texts {
    /// The text of these bytes, or the class that they name, made by `make` when they are new.
    pub fn get(&mut self, raw: &[u8], is_class: bool, make: impl FnOnce() -> Arc<str>) -> Arc<str> {
        let known = if is_class { &mut self.classes } else { &mut self.plain };
        if let Some(text) = known.get(raw) {
            return Arc::clone(text);
        }
        if known.len() >= MAX_TEXTS {
            known.clear();
        }
        let text = make();
        known.insert(raw.into(), Arc::clone(&text));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_are_a_map(steps in prop::collection::vec((0..12_u8, any::<Option<i64>>()), 0..60)) {
            let (mut values, mut map) = (Values::default(), BTreeMap::new());
            for (name, number) in steps {
                let name = format!("v{name}");
                match number {
                    Some(number) => {
                        values.insert(name.as_str().into(), Value::Int(number));
                        map.insert(name, Value::Int(number));
                    }
                    None => prop_assert_eq!(values.remove(&name), map.remove(&name)),
                }
                prop_assert!(values.iter().eq(map.iter().map(|(name, value)| (name.as_str(), value))));
            }
            prop_assert_eq!(values.is_empty(), map.is_empty());
            for name in (0..12).map(|name| format!("v{name}")) {
                prop_assert_eq!(values.get(&name), map.get(&name));
            }
        }
    }

    #[test]
    fn a_text_is_made_once_and_their_number_is_bounded() {
        let mut texts = Texts::default();
        let first = texts.get(b"a", false, || "A".into());
        assert!(Arc::ptr_eq(&first, &texts.get(b"a", false, || panic!("again"))));
        for number in 0..2 * MAX_TEXTS {
            texts.get(&number.to_ne_bytes(), true, || "x".into());
            assert!(texts.classes.len() <= MAX_TEXTS);
        }
    }
}
