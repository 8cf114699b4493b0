//! Turns an IGES file into the bytes of it that count: lines of 80 columns, of which those of the global section hold
//! fields that say when, who and where.

use std::io::{self, BufRead};

use super::Sink;
use super::lines::each_line;

/// Columns that hold text; then come the section's letter and the line's number.
const COLUMNS: usize = 72;
/// Longer global sections are taken as they are.
const GLOBAL_BYTES: usize = 64 << 10;
/// Fields of the global section, counted from 0: file name, date of the file, author, organisation, date of the model.
const VOLATILE: [usize; 5] = [3, 17, 20, 21, 24];

pub(super) fn read(reader: &mut impl BufRead, sink: &mut Sink) -> io::Result<()> {
    let mut global = Vec::new();
    each_line(reader, |line, is_whole| {
        let line = line.trim_ascii_end();
        let text = line.get(..COLUMNS);
        match (line.get(COLUMNS), text) {
            (Some(b'G'), Some(text)) if is_whole && global.len() < GLOBAL_BYTES => {
                global.extend_from_slice(text);
            }
            // `S      1G      4D    194P     98`: the global section is as long as its names are.
            (Some(b'T'), Some(text)) => {
                put_global(&mut global, sink);
                let (sections, rest) = text.split_at_checked(8).unwrap_or((text, &[]));
                sink.part(sections);
                sink.part(rest.get(8..).unwrap_or_default());
            }
            _ => {
                put_global(&mut global, sink);
                sink.part(line);
            }
        }
    })?;
    put_global(&mut global, sink);
    Ok(())
}

fn put_global(global: &mut Vec<u8>, sink: &mut Sink) {
    for (index, field) in fields(global).into_iter().enumerate() {
        if !VOLATILE.contains(&index) {
            sink.part(field);
        }
    }
    global.clear();
}

/// Fields lie between delimiters that the first two may define; a text is preceded by its length and `H`, and may hold
/// delimiters.
fn fields(global: &[u8]) -> Vec<&[u8]> {
    let (mut between, mut last) = (b',', b';');
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < global.len() {
        let rest = global.get(at..).unwrap_or_default();
        let text = text_length(rest);
        let length = text.unwrap_or(0).min(rest.len());
        let tail = rest.get(length..).unwrap_or_default();
        let end = tail.iter().position(|byte| *byte == between || *byte == last);
        let field = rest.get(..length + end.unwrap_or(tail.len())).unwrap_or_default();
        let defined = field.strip_prefix(b"1H").and_then(|field| field.first()).copied();
        match (fields.len(), defined) {
            (0, Some(byte)) => between = byte,
            (1, Some(byte)) => last = byte,
            _ => {}
        }
        fields.push(field.trim_ascii());
        at += field.len() + 1;
    }
    fields
}

/// Bytes of `4Habcd`, its head included.
fn text_length(field: &[u8]) -> Option<usize> {
    let digits = field.iter().take(5).take_while(|byte| byte.is_ascii_digit()).count();
    let length: usize = std::str::from_utf8(field.get(..digits)?).ok()?.parse().ok()?;
    (field.get(digits) == Some(&b'H')).then_some(digits + 1 + length)
}
