//! Turns the bytes of a CAD file into a digest that is the same wherever what it describes is the same.
//!
//! Writers put the time, the file's own name and who wrote it into their files. These volatile fields are left out, format
//! by format; everything else counts. Pure: bytes in, a [`Digest`] out. Files come from workers: what does not look like
//! its format is digested as it is, memory is bounded whatever the file's size, nothing makes it panic.
//!
//! | format | left out |
//! |---|---|
//! | STEP | `FILE_NAME`; dates, times, persons and organisations; comments and white space between words |
//! | IGES | file name, both dates, author, organisation; how many lines the global section has |
//! | STL | the 80 bytes of a binary header; the names of solids |
//! | glTF, GLB | `generator` and `copyright`; the names of files with buffers and images |
//! | OBJ, OFF, VRML | comments; the name of the file with materials |
//! | PLY | `comment` and `obj_info` of the header |
//! | 3MF, AMF, FCStd | where they are ZIP: dates and order of the entries (their checksums count) |
//! | BREP, others | nothing |

mod gltf;
mod iges;
mod lines;
mod step;
mod zip;

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use ring::digest::{Context, SHA256};

/// What is left out belongs to a digest: one by other rules is never compared with it.
pub const RULES: u32 = 1;

/// Bytes of a digest; of SHA-256, the first.
pub const DIGEST_BYTES: usize = 16;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Names contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

/// What a file is said to be; what it is decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ISO 10303-21.
    Step,
    /// IGES.
    Iges,
    /// Text or binary.
    Stl,
    /// glTF in one binary file.
    Glb,
    /// glTF as JSON.
    Gltf,
    /// Lines, with comments after `#`.
    Lines,
    /// Text or binary behind a text header.
    Ply,
    /// Possibly a ZIP archive.
    Zip,
    /// Anything.
    Raw,
}

impl Format {
    /// By the extension of a file name, or the name of a format as labels have it.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "step" | "stp" => Self::Step,
            "iges" | "igs" => Self::Iges,
            "stl" | "ast" => Self::Stl,
            "glb" => Self::Glb,
            "gltf" => Self::Gltf,
            "obj" | "off" | "vrml" | "wrl" => Self::Lines,
            "ply" => Self::Ply,
            "3mf" | "amf" | "fcstd" | "fcstd1" => Self::Zip,
            _ => Self::Raw,
        }
    }
}

/// Takes the bytes that count.
pub(crate) struct Sink(Context);

impl Sink {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// A part whose end is told from what follows.
    fn part(&mut self, bytes: &[u8]) {
        self.put(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        self.put(bytes);
    }

    fn rest(&mut self, reader: &mut impl BufRead) -> io::Result<()> {
        loop {
            let bytes = reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.put(bytes);
            let taken = bytes.len();
            reader.consume(taken);
        }
    }

    fn finish(self) -> Digest {
        let mut digest = [0; DIGEST_BYTES];
        let whole = self.0.finish();
        digest.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
        Digest(digest)
    }
}

/// The digest of a file.
///
/// # Errors
/// It cannot be read.
pub fn of_file(source: impl Read + Seek, format: Format) -> io::Result<Digest> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, source);
    let size = reader.seek(SeekFrom::End(0))?;
    reader.rewind()?;
    let mut sink = Sink::new();
    match format {
        Format::Step => step::read(&mut reader, &mut sink)?,
        Format::Iges => iges::read(&mut reader, &mut sink)?,
        Format::Stl => lines::stl(&mut reader, size, &mut sink)?,
        Format::Glb => gltf::binary(&mut reader, &mut sink)?,
        Format::Gltf => gltf::json(&mut reader, size, &mut sink)?,
        Format::Lines => lines::commented(&mut reader, &mut sink)?,
        Format::Ply => lines::ply(&mut reader, &mut sink)?,
        Format::Zip => zip::read(&mut reader, size, &mut sink)?,
        Format::Raw => sink.rest(&mut reader)?,
    }
    Ok(sink.finish())
}

/// The digest of several things in their order.
#[must_use]
pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut sink = Sink::new();
    parts.into_iter().for_each(|part| sink.part(part));
    sink.finish()
}

/// Reads until `bytes` is full or nothing is left; says how many there are.
fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match reader.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
