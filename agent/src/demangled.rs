//! Turns mangled names of C++ into those that people write, of bounded length.
//!
//! A mangled name can refer back to its own parts: each further ten bytes can double what it stands for, so that 256 bytes
//! from a worker's memory stand for gigabytes. What is longer than [`LONGEST`] stays mangled. And where the parser can read
//! a part in several ways it tries one after the other, so that each level of a wrong name can double the time: what is
//! nested deeper than [`DEEPEST`] stays mangled, too.

use cpp_demangle::{DemangleOptions, DemangleWrite, ParseOptions, Symbol};

/// Longest name that is written, in bytes.
pub const LONGEST: usize = 16 << 10;

/// Levels of the parser, two to five a template. Of 237,787 names of FreeCAD 1.0, 1.1, their OCCT and a wheel 4,527 need
/// more (boost's expressions, iterators of iterators). With 40 the worst 256 bytes that a search of a minute finds take
/// 2 ms, with 48 18 ms; with the parser's own 96 66 bytes take more than a second.
const DEEPEST: u32 = 40;

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

/// What a mangled name stands for; `None` if it is none, or too long or too deep.
#[must_use]
pub fn demangled(name: &str, options: &DemangleOptions) -> Option<String> {
    let mut text = Bounded(String::new());
    let parse = ParseOptions::default().recursion_limit(DEEPEST);
    Symbol::new_with_options(name, &parse).ok()?.structured_demangle(&mut text, options).ok()?;
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

    #[test]
    fn a_name_that_is_nested_deeper_than_real_ones_stays_mangled() {
        let nested = |levels| format!("_ZTS{}i{}", "SaI".repeat(levels), "E".repeat(levels));
        let text = |levels| demangled(&nested(levels), &DemangleOptions::new());
        assert!(text(4).unwrap().starts_with("typeinfo name for std::allocator<std::allocator<"));
        let thrown = "_ZTSN5boost10wrapexceptINS_16exception_detail19error_info_injectorINS_15program_options22error_with_option_nameEEEEE";
        assert!(demangled(thrown, &DemangleOptions::new()).is_some());
        // The parser itself would take it.
        let levels = (4..30).find(|levels| text(*levels).is_none()).unwrap();
        assert!(Symbol::new(nested(levels)).is_ok());
    }
}
