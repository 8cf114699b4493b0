//! Turns a STEP file (ISO 10303-21) into the bytes of it that count: its statements without white space, of those that
//! say when and who only their kind.

use std::io::{self, BufRead};

use super::Sink;

/// Longer statements are taken as they are.
const STATEMENT_BYTES: usize = 64 << 10;

/// Say when, who and where, never what.
const VOLATILE: [&[u8]; 8] = [
    b"FILE_NAME",
    b"CALENDAR_DATE",
    b"LOCAL_TIME",
    b"COORDINATED_UNIVERSAL_TIME_OFFSET",
    b"DATE_AND_TIME",
    b"PERSON",
    b"ORGANIZATION",
    b"PERSON_AND_ORGANIZATION",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Words,
    Text,
    /// A `/` that may begin a comment.
    Slash,
    Comment,
    /// A `*` that may end one.
    Star,
}

pub(super) fn read(reader: &mut impl BufRead, sink: &mut Sink) -> io::Result<()> {
    let (mut place, mut statement) = (Place::Words, Statement::default());
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        for byte in bytes.iter().copied() {
            place = match (place, byte) {
                (Place::Comment, b'*') | (Place::Star, b'*') => Place::Star,
                (Place::Star, b'/') => Place::Words,
                (Place::Comment | Place::Star, _) => Place::Comment,
                (Place::Slash, b'*') => Place::Comment,
                (Place::Text, b'\'') => {
                    statement.push(byte, sink);
                    Place::Words
                }
                (Place::Text, _) => {
                    statement.push(byte, sink);
                    Place::Text
                }
                (Place::Words | Place::Slash, _) => {
                    if place == Place::Slash {
                        statement.push(b'/', sink);
                    }
                    match byte {
                        b'/' => Place::Slash,
                        b'\'' => {
                            statement.push(byte, sink);
                            Place::Text
                        }
                        b';' => {
                            statement.end(sink);
                            Place::Words
                        }
                        byte if byte.is_ascii_whitespace() => Place::Words,
                        byte => {
                            statement.push(byte, sink);
                            Place::Words
                        }
                    }
                }
            };
        }
        let taken = bytes.len();
        reader.consume(taken);
    }
    if place == Place::Slash {
        statement.push(b'/', sink);
    }
    sink.put(&statement.text);
    Ok(())
}

#[derive(Default)]
struct Statement {
    text: Vec<u8>,
    /// Its begin has been put already.
    is_long: bool,
}

impl Statement {
    fn push(&mut self, byte: u8, sink: &mut Sink) {
        self.text.push(byte);
        if self.text.len() >= STATEMENT_BYTES {
            sink.put(&self.text);
            self.text.clear();
            self.is_long = true;
        }
    }

    fn end(&mut self, sink: &mut Sink) {
        let kind = keyword(&self.text);
        if !self.is_long && VOLATILE.contains(&kind) {
            sink.put(kind);
        } else {
            sink.put(&self.text);
        }
        sink.put(b";");
        self.text.clear();
        self.is_long = false;
    }
}

/// `PERSON` of `#12=PERSON('x')`.
fn keyword(statement: &[u8]) -> &[u8] {
    let begin = match statement.first() {
        Some(b'#') => statement.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1),
        _ => 0,
    };
    let rest = statement.get(begin..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'(').unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}
