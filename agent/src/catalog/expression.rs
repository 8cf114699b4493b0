//! Turns the text of a value (`i32[this + 0x100]`) into a tree.
//!
//! ```text
//! VALUE    = KIND [ ADDRESS ] | KIND [ ADDRESS ] : BYTES | INTEGER ( BASE )
//! KIND     = INTEGER | text | string | class
//! INTEGER  = u8 | u16 | u32 | i32 | u64
//! ADDRESS  = ( BASE | [ ADDRESS ] ) { (+ | -) NUMBER }
//! BASE     = this | arg0 … arg5 | ret
//! NUMBER   = decimal | 0x hexadecimal
//! ```
//!
//! `[ADDRESS]` inside an address is the pointer stored there. `text` is the C string at the address, `string` the text of
//! the `std::string` at the address, `class` the name of the C++ class (by RTTI) of the object at the address.
//! `: BYTES` is the room for a text (64 unless told; a longer text is cut). `i32(ret)` is the register itself.
//! `this` is `arg0`; `ret` exists only where the function ends.
//!
//! Refuses anything else, with the fix in the message; nesting and length are bounded, so hostile text is harmless.

/// What is read at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    U16,
    U32,
    I32,
    U64,
    Text,
    String,
    Class,
}

impl Kind {
    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "i32" => Self::I32,
            "u64" => Self::U64,
            "text" => Self::Text,
            "string" => Self::String,
            "class" => Self::Class,
            _ => return None,
        })
    }

    /// It ends in a text, not in a number.
    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::String | Self::Class)
    }
}

/// Where an address starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Base {
    /// Integer argument 0–5 as the call began.
    Argument(u8),
    /// What the function returned.
    Return,
}

/// An address in the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The register.
    Base(Base),
    /// The pointer stored at an address.
    Load(Box<Address>),
    /// So many bytes further.
    Offset(Box<Address>, i32),
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// The register itself, cut to its kind.
    Register(Kind, Base),
    /// What is stored at the address; for a text with the room for it, in bytes.
    Memory(Kind, Address, usize),
}

/// Longest text looked at.
const MAX_LENGTH: usize = 256;
/// Deepest nesting of brackets.
const MAX_NESTING: usize = 16;
/// Room for a text unless told.
const DEFAULT_TEXT_BYTES: usize = 64;

/// Parses one value.
///
/// # Errors
/// What is wrong, and what to write instead.
pub(super) fn parse(text: &str) -> Result<Expression, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("is longer than {MAX_LENGTH} characters"));
    }
    let mut cursor = Cursor { rest: text };
    let word = cursor.word();
    let Some(kind) = Kind::from_word(word) else {
        return Err(format!(
            "`{text}` must begin with u8, u16, u32, i32, u64, text, string or class: `i32[this + 0x10]`"
        ));
    };
    let expression = if cursor.eat('[') {
        let address = cursor.address(0)?;
        cursor.expect(']')?;
        Expression::Memory(kind, address, cursor.text_bytes(kind)?)
    } else if cursor.eat('(') {
        if kind.is_text() {
            return Err(format!("`{word}(…)`: a register holds no text; write `{word}[arg1]`"));
        }
        let base = cursor.base()?;
        cursor.expect(')')?;
        Expression::Register(kind, base)
    } else {
        return Err(format!("after `{word}` write [ADDRESS] or (REGISTER): `i32[this + 0x10]`, `u8(ret)`"));
    };
    cursor.skip_spaces();
    if cursor.rest.is_empty() {
        Ok(expression)
    } else {
        Err(format!("`{}` after the end of the value", cursor.rest))
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, wanted: char) -> bool {
        self.skip_spaces();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.eat(wanted) {
            return Ok(());
        }
        let found = if self.rest.is_empty() { "the end" } else { self.rest };
        Err(format!("`{wanted}` expected before `{found}`"))
    }

    fn word(&mut self) -> &'a str {
        self.skip_spaces();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        word
    }

    fn base(&mut self) -> Result<Base, String> {
        Ok(match self.word() {
            "this" | "arg0" => Base::Argument(0),
            "arg1" => Base::Argument(1),
            "arg2" => Base::Argument(2),
            "arg3" => Base::Argument(3),
            "arg4" => Base::Argument(4),
            "arg5" => Base::Argument(5),
            "ret" => Base::Return,
            other => return Err(format!("`{other}` is no register: this, arg0 … arg5 or ret")),
        })
    }

    fn address(&mut self, nesting: usize) -> Result<Address, String> {
        if nesting > MAX_NESTING {
            return Err(format!("has more than {MAX_NESTING} nested brackets"));
        }
        let mut address = if self.eat('[') {
            let inner = self.address(nesting + 1)?;
            self.expect(']')?;
            Address::Load(Box::new(inner))
        } else {
            Address::Base(self.base()?)
        };
        loop {
            let sign: i64 = if self.eat('+') {
                1
            } else if self.eat('-') {
                -1
            } else {
                return Ok(address);
            };
            let offset =
                i32::try_from(sign * self.number()?).map_err(|_| "an offset is below 2^31".to_owned())?;
            address = Address::Offset(Box::new(address), offset);
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word();
        let parsed = match word.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => word.parse(),
        };
        parsed.map(i64::from).map_err(|_| format!("`{word}` is no offset: decimal, or hexadecimal after 0x"))
    }

    fn text_bytes(&mut self, kind: Kind) -> Result<usize, String> {
        if !self.eat(':') {
            return Ok(DEFAULT_TEXT_BYTES);
        }
        if !kind.is_text() {
            return Err("only text, string and class have a size after `:`".to_owned());
        }
        let bytes = self.number()?;
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| (1..=cadscope_common::probe::TEXT_BYTES).contains(bytes))
            .ok_or_else(|| format!("a text has 1 to {} bytes", cadscope_common::probe::TEXT_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_of_the_grammar_parses() {
        let this = Address::Base(Base::Argument(0));
        let at = |offset| Address::Offset(Box::new(this.clone()), offset);
        assert_eq!(parse("i32[this + 0x100]"), Ok(Expression::Memory(Kind::I32, at(0x100), 64)));
        assert_eq!(parse(" u8[this+8] "), Ok(Expression::Memory(Kind::U8, at(8), 64)));
        assert_eq!(parse("u64(arg0)"), Ok(Expression::Register(Kind::U64, Base::Argument(0))));
        assert_eq!(parse("u8(ret)"), Ok(Expression::Register(Kind::U8, Base::Return)));
        let loaded = Address::Load(Box::new(Address::Base(Base::Argument(1))));
        let expected = Address::Offset(Box::new(loaded), -8);
        assert_eq!(parse("text[[arg1]-8]:200"), Ok(Expression::Memory(Kind::Text, expected, 200)));
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_fix() {
        for (text, wanted) in [
            ("f64[this]", "must begin with"),
            ("", "must begin with"),
            ("i32", "[ADDRESS]"),
            ("text(arg1)", "text[arg1]"),
            ("i32[rdi]", "this, arg0"),
            ("i32[arg6]", "this, arg0"),
            ("i32[this + x]", "decimal"),
            ("i32[this + 0x1ffffffff]", "decimal"),
            ("i32[this + 0x80000000]", "2^31"),
            ("i32[this", "expected"),
            ("i32[this] + 4", "after the end"),
            ("i32[this]:64", "only text"),
            ("text[arg1]:257", "256"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(wanted), "{text}: {message}");
        }
        assert!(parse(&format!("i32{}this{}", "[".repeat(60), "]".repeat(60))).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_near_miss_makes_the_parser_panic(text in "(u8|i32|text|class)?[\\[\\]() +\\-:0-9xthisarge]{0,40}") {
            let _ = parse(&text);
        }
    }
}
