//! Turns a ZIP archive into the bytes of it that count: names, sizes and checksums of its entries, in the order of their
//! names. Nothing is unpacked.

use std::io::{self, BufRead, Seek, SeekFrom};

use super::{Sink, fill};

/// The last record, and the longest comment behind it.
const END_BYTES: u64 = 22;
const COMMENT_BYTES: u64 = u16::MAX as u64;
const END: &[u8] = b"PK\x05\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
/// Bytes of an entry before its name.
const ENTRY_BYTES: usize = 46;
/// A longer directory is not read: the archive is taken as it is.
const DIRECTORY_BYTES: u64 = 4 << 20;

pub(super) fn read(reader: &mut (impl BufRead + Seek), size: u64, sink: &mut Sink) -> io::Result<()> {
    match entries(reader, size)? {
        Some(mut entries) => {
            entries.sort_unstable();
            for (name, crc_and_size) in &entries {
                sink.part(name);
                sink.put(crc_and_size);
            }
            Ok(())
        }
        None => {
            reader.rewind()?;
            sink.rest(reader)
        }
    }
}

type Entry = (Vec<u8>, [u8; 8]);

fn entries(reader: &mut (impl BufRead + Seek), size: u64) -> io::Result<Option<Vec<Entry>>> {
    let tail = read_at(reader, size.saturating_sub(END_BYTES + COMMENT_BYTES), END_BYTES + COMMENT_BYTES)?;
    let Some(at) = tail.windows(END.len()).rposition(|bytes| bytes == END) else { return Ok(None) };
    let end = tail.get(at..).unwrap_or_default();
    let (Some(length), Some(begin)) = (u32_at(end, 12), u32_at(end, 16)) else { return Ok(None) };
    if u64::from(length) > DIRECTORY_BYTES {
        return Ok(None);
    }
    let directory = read_at(reader, u64::from(begin), u64::from(length).min(size))?;
    let (mut entries, mut rest) = (Vec::new(), directory.as_slice());
    while rest.starts_with(ENTRY) {
        let Some((name, crc_and_size, length)) = entry(rest) else { return Ok(None) };
        entries.push((name.to_vec(), crc_and_size));
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(Some(entries).filter(|entries| !entries.is_empty()))
}

fn entry(bytes: &[u8]) -> Option<(&[u8], [u8; 8], usize)> {
    let length = |at| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes).map(usize::from);
    let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
    let [a, b, c, d] = u32_at(bytes, 16)?.to_le_bytes();
    let [e, f, g, h] = u32_at(bytes, 24)?.to_le_bytes();
    let text = bytes.get(ENTRY_BYTES..ENTRY_BYTES + name)?;
    Some((text, [a, b, c, d, e, f, g, h], ENTRY_BYTES + name + extra + comment))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn read_at(reader: &mut (impl BufRead + Seek), at: u64, length: u64) -> io::Result<Vec<u8>> {
    reader.seek(SeekFrom::Start(at))?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let filled = fill(reader, &mut bytes)?;
    bytes.truncate(filled);
    Ok(bytes)
}
