//! Turns mangled names of C++ into those that people write, of bounded length.
//!
//! A mangled name can refer back to its own parts: each further ten bytes can double what it stands for, so that 256 bytes
//! from a worker's memory stand for gigabytes. What is longer than [`LONGEST`] stays mangled.

use cpp_demangle::{DemangleOptions, DemangleWrite, Symbol};

/// Longest name that is written, in bytes.
pub const LONGEST: usize = 16 << 10;

/// Takes text up to [`LONGEST`] bytes, and refuses the rest.
struct Bounded(String);

impl DemangleWrite for Bounded {
    fn write_string(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len().saturating_add(text.len()) > LONGEST {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// What a mangled name stands for; `None` if it is none, or too long.
#[must_use]
pub fn demangled(name: &str, options: &DemangleOptions) -> Option<String> {
    let mut text = Bounded(String::new());
    Symbol::new(name).ok()?.structured_demangle(&mut text, options).ok()?;
    Some(text.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_doubles_itself_stays_mangled() {
        // pair<pair<pair<…>, pair<…>>, …>: each parameter names the one before twice.
        let steps = |count: u32| {
            (0..count).fold("_Z1fSt4pairIiiE".to_owned(), |name, step| {
                let last = char::from_digit(2 * step, 36).unwrap().to_ascii_uppercase();
                format!("{name}St4pairIS{last}_S{last}_E")
            })
        };
        let text = |count| demangled(&steps(count), &DemangleOptions::new());
        let lengths: Vec<usize> = (0..8).map(|count| text(count).unwrap().len()).collect();
        assert!(lengths.windows(2).all(|pair| pair[1] > pair[0] * 3 / 2), "{lengths:?}");
        assert!(steps(17).len() < 300 && text(17).is_none());
        assert_eq!(
            demangled("_ZTSN4Part3BoxE", &DemangleOptions::new()).unwrap(),
            "typeinfo name for Part::Box"
        );
        assert_eq!(demangled("main", &DemangleOptions::new()), None);
    }
}
