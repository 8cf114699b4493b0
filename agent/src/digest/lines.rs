//! Turns formats made of lines (OBJ, OFF, VRML, text STL, the header of PLY) into the bytes of them that count.

use std::io::{self, BufRead, Read};

use super::{Sink, fill};

/// Longer lines come in pieces.
const LINE_BYTES: u64 = 64 << 10;
/// The header of a binary STL, and its number of triangles.
const STL_HEAD: usize = 84;
const STL_TRIANGLE: u64 = 50;
/// Lines of a PLY header; behind more of them none is looked for.
const PLY_LINES: usize = 4096;

/// Gives each line with its end, and whether it is whole.
pub(super) fn each_line(reader: &mut impl BufRead, mut give: impl FnMut(&[u8], bool)) -> io::Result<()> {
    let (mut line, mut is_begin) = (Vec::new(), true);
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let has_end = line.last() == Some(&b'\n');
        give(&line, is_begin && (has_end || u64::try_from(line.len()).is_ok_and(|len| len < LINE_BYTES)));
        is_begin = has_end;
    }
}

/// Comments begin with `#`; that in the first line of VRML is its name and version, that of others says who wrote it.
pub(super) fn commented(reader: &mut impl BufRead, sink: &mut Sink) -> io::Result<()> {
    each_line(reader, |line, is_whole| {
        let is_volatile =
            line.starts_with(b"mtllib ") || line.starts_with(b"#") && !line.starts_with(b"#VRML");
        if !(is_whole && is_volatile) {
            sink.put(line);
        }
    })
}

/// A file of the length that its triangles need is binary, whatever its first word says.
pub(super) fn stl(reader: &mut impl BufRead, size: u64, sink: &mut Sink) -> io::Result<()> {
    let mut head = [0; STL_HEAD];
    let filled = fill(reader, &mut head)?;
    if let [.., a, b, c, d] = head
        && filled == STL_HEAD
        && u64::from(u32::from_le_bytes([a, b, c, d])) * STL_TRIANGLE + 84 == size
    {
        sink.put(&[a, b, c, d]);
        return sink.rest(reader);
    }
    let mut whole = head.get(..filled).unwrap_or_default().chain(reader);
    each_line(&mut whole, |line, is_whole| {
        let word = line.trim_ascii_start();
        let named = [&b"solid"[..], b"endsolid"].into_iter().find(|name| word.starts_with(name));
        match named {
            Some(name) if is_whole => sink.put(name),
            _ => sink.put(line),
        }
    })
}

pub(super) fn ply(reader: &mut impl BufRead, sink: &mut Sink) -> io::Result<()> {
    let mut line = Vec::new();
    for _ in 0..PLY_LINES {
        line.clear();
        if reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if !line.starts_with(b"comment") && !line.starts_with(b"obj_info") {
            sink.put(&line);
        }
        if line.starts_with(b"end_header") {
            break;
        }
    }
    sink.rest(reader)
}
