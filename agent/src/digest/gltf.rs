//! Turns glTF, as JSON or in its binary container, into the bytes of it that count.

use std::io::{self, BufRead, Read};

use serde_json::Value;

use super::{Sink, fill};

/// Larger scenes are taken as they are: parsed, they would need ten times their size.
const JSON_BYTES: usize = 1 << 20;
/// `glTF`, version, length; then the length and the type of the first chunk.
const HEAD_BYTES: usize = 20;

pub(super) fn binary(reader: &mut impl BufRead, sink: &mut Sink) -> io::Result<()> {
    let mut head = [0; HEAD_BYTES];
    let filled = fill(reader, &mut head)?;
    let head = head.get(..filled).unwrap_or_default();
    let length = head.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let length =
        length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= JSON_BYTES);
    match length {
        Some(length) if head.starts_with(b"glTF") && head.ends_with(b"JSON") => {
            // What the lengths say follows from what they are the lengths of.
            sink.put(head.get(..8).unwrap_or_default());
            let mut text = vec![0; length];
            let filled = fill(reader, &mut text)?;
            text.truncate(filled);
            put_scene(&text, sink);
        }
        _ => sink.put(head),
    }
    sink.rest(reader)
}

pub(super) fn json(reader: &mut impl BufRead, size: u64, sink: &mut Sink) -> io::Result<()> {
    if usize::try_from(size).is_ok_and(|size| size <= JSON_BYTES) {
        let mut text = Vec::new();
        reader.by_ref().take(size).read_to_end(&mut text)?;
        put_scene(&text, sink);
    }
    sink.rest(reader)
}

fn put_scene(text: &[u8], sink: &mut Sink) {
    let Ok(mut scene) = serde_json::from_slice::<Value>(text) else {
        sink.part(text);
        return;
    };
    if let Some(asset) = scene.get_mut("asset").and_then(Value::as_object_mut) {
        asset.remove("generator");
        asset.remove("copyright");
    }
    for list in ["buffers", "images"] {
        let entries = scene.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for entry in entries.filter_map(Value::as_object_mut) {
            if entry.get("uri").and_then(Value::as_str).is_some_and(|uri| !uri.starts_with("data:")) {
                entry.remove("uri");
            }
        }
    }
    sink.part(scene.to_string().as_bytes());
}
