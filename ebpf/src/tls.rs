//! Turns what a process writes to and reads from OpenSSL into exchanges: who was asked what, and when the answer came.
//!
//! Only HTTP/1.1 is understood. The plaintext is copied piece by piece into the connection's map value, parsed there
//! byte by byte, and wiped. Host, path without query, model and status are kept; every other byte (header values, keys,
//! bodies) only moves a parser from one state to the next. Loaded only where AI latency is asked for.
//!
//! What the parsers know lies in map memory, whose contents the verifier does not follow, and is read and written
//! volatile: kept in registers it would double the verifier's states with every byte.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use cadscope_common::{
    record::record_kind,
    settings::Counter,
    tls::{
        Connection, ConnectionKey, Exchange, HOST_BYTES, MODEL_BYTES, PATH_BYTES, PIECE_BYTES, Parser,
        Reading, function,
    },
};

use crate::{
    emit,
    hit::{cookie_of, ids, now_ns, slot_of},
    machine::{argument, returned},
    maps::{CONNECTIONS, READINGS, ZERO_CONNECTION, count},
    stack, task, user,
};

/// Pieces of one write that are looked at: 64 KiB.
const WRITE_PIECES: usize = 256;
/// Pieces and chunks of one read.
const READ_PIECES: usize = 512;

/// Parts of a request.
mod request {
    /// Nothing of it is of interest any more.
    pub(super) const DONE: u32 = 0;
    pub(super) const PATH: u32 = 1;
    pub(super) const QUERY: u32 = 2;
    /// The rest of a line.
    pub(super) const LINE: u32 = 3;
    /// The name of a header.
    pub(super) const NAME: u32 = 4;
    pub(super) const HOST: u32 = 5;
    /// Before the body's first byte.
    pub(super) const BODY: u32 = 6;
    /// Inside the body's object, outside of texts.
    pub(super) const JSON: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ESCAPE: u32 = 9;
    pub(super) const MODEL: u32 = 10;
}

/// Parts of a response.
mod response {
    /// Up to the status.
    pub(super) const VERSION: u32 = 0;
    pub(super) const STATUS: u32 = 1;
    /// The rest of a line.
    pub(super) const LINE: u32 = 2;
    /// The name of a header.
    pub(super) const NAME: u32 = 3;
    pub(super) const LENGTH: u32 = 4;
    pub(super) const ENCODING: u32 = 5;
    /// The size of a chunk.
    pub(super) const SIZE: u32 = 6;
    /// What may follow the size.
    pub(super) const EXTENSION: u32 = 7;
    /// Behind the last chunk.
    pub(super) const TRAILER: u32 = 8;
    /// From here on bytes are counted, not parsed: the body as a whole, a chunk, all up to the end of the connection.
    pub(super) const WHOLE: u32 = 16;
    pub(super) const CHUNK: u32 = 17;
    pub(super) const OPEN: u32 = 18;
    pub(super) const COMPLETE: u32 = 19;
}

/// Bits of [`Parser::before`] in a response.
const HAS_LENGTH: u32 = 1;
const CHUNKED: u32 = 2;
/// Values of [`Parser::before`] in JSON: the text before was `model`, and a colon followed.
const KEY: u32 = 1;
const COLON: u32 = 2;

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

const fn mix(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

const fn hash_of(name: &[u8]) -> u64 {
    let (mut hash, mut index) = (SEED, 0);
    while index < name.len() {
        hash = mix(hash, name[index]);
        index += 1;
    }
    hash
}

const HOST: u64 = hash_of(b"host");
const CONTENT_LENGTH: u64 = hash_of(b"content-length");
const TRANSFER_ENCODING: u64 = hash_of(b"transfer-encoding");
const MODEL: u64 = hash_of(b"model");

/// A field of a map value, read volatile.
macro_rules! get {
    ($($place:tt)+) => {
        // SAFETY: a live map value of this process.
        unsafe { core::ptr::read_volatile(&raw const $($place)+) }
    };
}

/// The same, written.
macro_rules! set {
    ($place:expr, $value:expr) => {{
        let value = $value;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut $place, value) }
    }};
}

#[uprobe]
pub fn tls_write(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    write(&ctx);
    0
}

#[inline(always)]
fn write(ctx: &ProbeContext) -> Option<()> {
    let now = now_ns();
    let (pid, _) = ids();
    let (ssl, buffer) = (argument::<0>(ctx), argument::<1>(ctx));
    let size = size_of_buffer(ctx, function::WRITE)?;
    let key = ConnectionKey { pid, padding: 0, ssl };
    let mut offset = 0;
    let begins = method(buffer, size);
    if begins > 0 {
        if let Some(connection) = CONNECTIONS.get_ptr_mut(&key) {
            finish(connection);
        }
        let zero = ZERO_CONNECTION.get_ptr(0)?;
        // SAFETY: a map value that is never written.
        CONNECTIONS.insert(&key, unsafe { &*zero }, 0).ok()?;
        let connection = CONNECTIONS.get_ptr_mut(&key)?;
        let process = task::current(pid);
        set!((*connection).exchange.kind, record_kind::EXCHANGE);
        set!((*connection).exchange.process, process);
        set!((*connection).exchange.start_ns, now);
        set!((*connection).request.state, request::PATH);
        offset = begins;
    }
    let connection = CONNECTIONS.get_ptr_mut(&key)?;
    set!((*connection).offset, offset);
    for _ in 0..WRITE_PIECES {
        if request_piece(pid, ssl, buffer, size) == 0 {
            break;
        }
    }
    wipe(connection);
    Some(())
}

/// How many bytes a function is given, by its cookie; nothing if none.
#[inline(always)]
fn size_of_buffer(ctx: &ProbeContext, with_int: u16) -> Option<u64> {
    let size = argument::<2>(ctx);
    let size =
        if cookie_of(ctx).probe() == u32::from(with_int) { size as u32 as i32 as i64 as u64 } else { size };
    if size == 0 || size > i64::MAX as u64 { None } else { Some(size) }
}

/// Bytes of the method with which a request begins, of those that providers are asked with; 0 if none does.
#[inline(always)]
fn method(buffer: u64, size: u64) -> u64 {
    let mut head = [0_u8; 8];
    // SAFETY: eight writable bytes.
    if size < 16 || !unsafe { user::read((&raw mut head).cast(), 8, buffer) } {
        return 0;
    }
    let head = u64::from_le_bytes(head);
    const POST: u64 = u64::from_le_bytes(*b"POST /\0\0");
    const GET: u64 = u64::from_le_bytes(*b"GET /\0\0\0");
    if head & 0xffff_ffff_ffff == POST {
        5
    } else if head & 0xff_ffff_ffff == GET {
        4
    } else {
        0
    }
}

/// Copies a piece of the process's buffer.
#[inline(always)]
fn copy(connection: *mut Connection, address: u64, length: u64) -> bool {
    // Else the compiler, which knows the bound, leaves the check out, and the verifier does not know.
    let length = core::hint::black_box(length);
    if length > PIECE_BYTES as u64 {
        return false;
    }
    // SAFETY: the piece has room.
    unsafe { user::read((&raw mut (*connection).piece).cast(), length as u32, address) }
}

/// Leaves nothing of the plaintext.
#[inline(always)]
fn wipe(connection: *mut Connection) {
    for index in 0..PIECE_BYTES / 8 {
        // SAFETY: inside the piece, which is aligned to eight bytes.
        unsafe { core::ptr::write_volatile((&raw mut (*connection).piece).cast::<u64>().add(index), 0) };
    }
}

#[inline(always)]
fn byte_at(connection: *mut Connection, index: usize) -> u8 {
    // SAFETY: the mask keeps the index inside the piece.
    unsafe {
        core::ptr::read_volatile((&raw const (*connection).piece).cast::<u8>().add(index & (PIECE_BYTES - 1)))
    }
}

#[inline(always)]
const fn lower(byte: u8) -> u8 {
    if byte.is_ascii_uppercase() { byte | 0x20 } else { byte }
}

/// Keeps a byte of a field, the last place of which stays zero.
#[inline(always)]
fn keep(parser: *mut Parser, field: *mut u8, bytes: usize, byte: u8) {
    let kept = get!((*parser).kept);
    if kept < bytes as u32 - 1 {
        // See `copy`.
        let place = core::hint::black_box(kept) as usize & (bytes - 1);
        // SAFETY: the mask keeps the place inside the field.
        unsafe { core::ptr::write_volatile(field.add(place), byte) };
        set!((*parser).kept, kept + 1);
    }
}

/// Parses the next piece of a buffer as part of a request; 0 = there is nothing more to parse.
///
/// A global function, which the verifier looks at once and not once a piece.
#[unsafe(no_mangle)]
pub extern "C" fn request_piece(pid: u32, ssl: u64, buffer: u64, size: u64) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&ConnectionKey { pid, padding: 0, ssl }) else { return 0 };
    let offset = get!((*connection).offset);
    if offset >= size || get!((*connection).request.state) == request::DONE {
        return 0;
    }
    let length = (size - offset).min(PIECE_BYTES as u64);
    if !copy(connection, buffer.wrapping_add(offset), length) {
        count(Counter::Unread);
        return 0;
    }
    for index in 0..PIECE_BYTES {
        if index as u64 >= length {
            break;
        }
        request_byte(connection, byte_at(connection, index));
    }
    set!((*connection).offset, offset.wrapping_add(length));
    1
}

#[inline(always)]
fn request_byte(connection: *mut Connection, byte: u8) {
    // SAFETY: a live map value.
    let parser = unsafe { &raw mut (*connection).request };
    match get!((*parser).state) {
        request::PATH => match byte {
            b' ' => set!((*parser).state, request::LINE),
            b'?' | b'#' => set!((*parser).state, request::QUERY),
            b'\r' | b'\n' => set!((*parser).state, request::DONE),
            // SAFETY: a live map value.
            _ => keep(parser, unsafe { (&raw mut (*connection).exchange.path).cast() }, PATH_BYTES, byte),
        },
        request::QUERY => {
            if byte == b' ' {
                set!((*parser).state, request::LINE);
            }
        }
        request::LINE => {
            if byte == b'\n' {
                set!((*parser).state, request::NAME);
                set!((*parser).hash, SEED);
            }
        }
        request::NAME => {
            let hash = get!((*parser).hash);
            match byte {
                b':' if hash == HOST => {
                    set!((*parser).state, request::HOST);
                    set!((*parser).kept, 0);
                }
                b':' => set!((*parser).state, request::LINE),
                b'\n' if hash == SEED => set!((*parser).state, request::BODY),
                b'\n' => set!((*parser).hash, SEED),
                b'\r' => {}
                _ => set!((*parser).hash, mix(hash, lower(byte))),
            }
        }
        request::HOST => match byte {
            b' ' => {}
            b'\r' => set!((*parser).state, request::LINE),
            // SAFETY: a live map value.
            _ => keep(
                parser,
                unsafe { (&raw mut (*connection).exchange.host).cast() },
                HOST_BYTES,
                lower(byte),
            ),
        },
        request::BODY => match byte {
            b'{' => {
                set!((*parser).state, request::JSON);
                set!((*parser).depth, 1);
            }
            b' ' | b'\r' | b'\n' | b'\t' => {}
            _ => set!((*parser).state, request::DONE),
        },
        request::JSON => json_byte(parser, byte),
        request::TEXT => match byte {
            b'"' => {
                let is_key = get!((*parser).hash) == MODEL && get!((*parser).depth) == 1;
                set!((*parser).before, if is_key { KEY } else { 0 });
                set!((*parser).state, request::JSON);
            }
            b'\\' => set!((*parser).state, request::ESCAPE),
            _ => set!((*parser).hash, mix(get!((*parser).hash), byte)),
        },
        request::ESCAPE => {
            set!((*parser).hash, 0);
            set!((*parser).state, request::TEXT);
        }
        request::MODEL => match byte {
            b'"' | b'\\' => set!((*parser).state, request::DONE),
            // SAFETY: a live map value.
            _ => keep(parser, unsafe { (&raw mut (*connection).exchange.model).cast() }, MODEL_BYTES, byte),
        },
        _ => {}
    }
}

/// A byte of JSON outside of texts.
#[inline(always)]
fn json_byte(parser: *mut Parser, byte: u8) {
    let before = get!((*parser).before);
    match byte {
        b'"' if before == COLON => {
            set!((*parser).state, request::MODEL);
            set!((*parser).kept, 0);
        }
        b'"' => {
            set!((*parser).state, request::TEXT);
            set!((*parser).hash, SEED);
        }
        b':' => set!((*parser).before, if before == KEY { COLON } else { 0 }),
        b' ' | b'\r' | b'\n' | b'\t' => {}
        b'{' | b'[' => {
            set!((*parser).depth, get!((*parser).depth) + 1);
            set!((*parser).before, 0);
        }
        b'}' | b']' => {
            let depth = get!((*parser).depth).wrapping_sub(1);
            set!((*parser).depth, depth);
            set!((*parser).before, 0);
            if depth == 0 {
                set!((*parser).state, request::DONE);
            }
        }
        _ => set!((*parser).before, 0),
    }
}

#[uprobe]
pub fn tls_read(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    read(&ctx);
    0
}

#[inline(always)]
fn read(ctx: &ProbeContext) -> Option<()> {
    let (pid, tid) = ids();
    let ssl = argument::<0>(ctx);
    let connection = CONNECTIONS.get_ptr_mut(&ConnectionKey { pid, padding: 0, ssl })?;
    if get!((*connection).sent) == 1 {
        return None;
    }
    let cookie = cookie_of(ctx);
    let says = argument::<3>(ctx);
    let count = if cookie.probe() == u32::from(function::READ_EX) { says } else { 0 };
    let reading = Reading { ssl, buffer: argument::<1>(ctx), count, slot: slot_of(ctx, cookie) };
    READINGS.insert(&tid, &reading, 0).ok()
}

#[uprobe]
pub fn tls_read_end(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    read_end(&ctx);
    0
}

#[inline(always)]
fn read_end(ctx: &ProbeContext) -> Option<()> {
    let now = now_ns();
    let (pid, tid) = ids();
    let reading = READINGS.get_ptr_mut(&tid)?;
    let cookie = cookie_of(ctx);
    if get!((*reading).slot) != slot_of(ctx, cookie) {
        return None;
    }
    let (ssl, buffer, says) = (get!((*reading).ssl), get!((*reading).buffer), get!((*reading).count));
    let _ = READINGS.remove(&tid);
    let returned = returned(ctx, u32::from(cookie.return_register())) as u32 as i32;
    if returned <= 0 {
        return None;
    }
    let size = if says == 0 { returned as u64 } else { user::read_u64(says)? };
    let connection = CONNECTIONS.get_ptr_mut(&ConnectionKey { pid, padding: 0, ssl })?;
    if get!((*connection).exchange.first_ns) == 0 {
        set!((*connection).exchange.first_ns, now);
    }
    set!((*connection).exchange.end_ns, now);
    set!((*connection).offset, 0);
    for _ in 0..READ_PIECES {
        if response_piece(pid, ssl, buffer, size) == 0 {
            break;
        }
    }
    wipe(connection);
    if get!((*connection).offset) < size && get!((*connection).response.state) < response::OPEN {
        // More chunks than are looked at, or not readable: where the next begins is not known.
        set!((*connection).response.state, response::OPEN);
    }
    if get!((*connection).response.state) == response::COMPLETE {
        finish(connection);
    }
    Some(())
}

/// Passes over what is to come of a body or a chunk, or parses the next piece of a buffer as part of a response up to
/// there; 0 = there is nothing more to look at.
#[unsafe(no_mangle)]
pub extern "C" fn response_piece(pid: u32, ssl: u64, buffer: u64, size: u64) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&ConnectionKey { pid, padding: 0, ssl }) else { return 0 };
    let (offset, state) = (get!((*connection).offset), get!((*connection).response.state));
    if offset >= size || state >= response::OPEN {
        return 0;
    }
    if state >= response::WHOLE {
        let remaining = get!((*connection).remaining);
        let passed = remaining.min(size - offset);
        set!((*connection).offset, offset.wrapping_add(passed));
        set!((*connection).remaining, remaining.wrapping_sub(passed));
        if remaining == passed {
            let next = if state == response::WHOLE { response::COMPLETE } else { response::SIZE };
            set!((*connection).response.state, next);
        }
        return 1;
    }
    let length = (size - offset).min(PIECE_BYTES as u64);
    if !copy(connection, buffer.wrapping_add(offset), length) {
        count(Counter::Unread);
        return 0;
    }
    for index in 0..PIECE_BYTES {
        if index as u64 >= length || get!((*connection).response.state) >= response::WHOLE {
            break;
        }
        response_byte(connection, byte_at(connection, index));
        set!((*connection).offset, get!((*connection).offset).wrapping_add(1));
    }
    1
}

#[inline(always)]
fn response_byte(connection: *mut Connection, byte: u8) {
    // SAFETY: a live map value.
    let parser = unsafe { &raw mut (*connection).response };
    match get!((*parser).state) {
        response::VERSION => {
            if byte == b' ' {
                set!((*parser).state, response::STATUS);
            }
        }
        response::STATUS => {
            if byte.is_ascii_digit() {
                let status = get!((*connection).exchange.status);
                set!((*connection).exchange.status, (status * 10 + u32::from(byte - b'0')) & 0xffff);
            } else {
                set!((*parser).state, response::LINE);
            }
        }
        response::LINE => {
            if byte == b'\n' {
                new_line(parser);
            }
        }
        response::NAME => {
            let hash = get!((*parser).hash);
            match byte {
                b':' if hash == CONTENT_LENGTH => {
                    set!((*parser).state, response::LENGTH);
                    set!((*connection).remaining, 0);
                    set!((*parser).before, get!((*parser).before) | HAS_LENGTH);
                }
                b':' if hash == TRANSFER_ENCODING => set!((*parser).state, response::ENCODING),
                b':' => set!((*parser).state, response::LINE),
                b'\n' if hash == SEED => headers_end(connection, parser),
                b'\n' => new_line(parser),
                b'\r' => {}
                _ => set!((*parser).hash, mix(hash, lower(byte))),
            }
        }
        response::LENGTH => {
            if byte.is_ascii_digit() {
                let remaining = get!((*connection).remaining);
                set!(
                    (*connection).remaining,
                    remaining.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'))
                );
            } else if byte == b'\n' {
                new_line(parser);
            }
        }
        response::ENCODING => {
            // Of all encodings only the name of `chunked` has a k.
            if lower(byte) == b'k' {
                set!((*parser).before, get!((*parser).before) | CHUNKED);
            } else if byte == b'\n' {
                new_line(parser);
            }
        }
        response::SIZE => chunk_size(connection, parser, byte),
        response::EXTENSION => {
            if byte == b'\n' {
                chunk_begins(connection, parser);
            }
        }
        response::TRAILER => match byte {
            b'\n' if get!((*parser).hash) == SEED => set!((*parser).state, response::COMPLETE),
            b'\n' => set!((*parser).hash, SEED),
            b'\r' => {}
            _ => set!((*parser).hash, 0),
        },
        _ => {}
    }
}

#[inline(always)]
fn new_line(parser: *mut Parser) {
    set!((*parser).state, response::NAME);
    set!((*parser).hash, SEED);
}

#[inline(always)]
fn chunk_size(connection: *mut Connection, parser: *mut Parser, byte: u8) {
    let digit = match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        b'\n' => return chunk_begins(connection, parser),
        b'\r' => return,
        _ => return set!((*parser).state, response::EXTENSION),
    };
    let remaining = get!((*connection).remaining);
    set!((*connection).remaining, remaining.wrapping_mul(16).wrapping_add(u64::from(digit)));
}

/// A chunk's data and its line end follow; behind the last, which is empty, headers.
#[inline(always)]
fn chunk_begins(connection: *mut Connection, parser: *mut Parser) {
    let remaining = get!((*connection).remaining);
    if remaining == 0 {
        set!((*parser).state, response::TRAILER);
        set!((*parser).hash, SEED);
    } else {
        set!((*connection).remaining, remaining.wrapping_add(2));
        set!((*parser).state, response::CHUNK);
    }
}

/// What follows the headers depends on them.
#[inline(always)]
fn headers_end(connection: *mut Connection, parser: *mut Parser) {
    let status = get!((*connection).exchange.status);
    let before = get!((*parser).before);
    let next = if status >= 100 && status < 200 {
        // Not the response yet.
        set!((*connection).exchange.status, 0);
        set!((*connection).exchange.first_ns, 0);
        response::VERSION
    } else if status == 204 || status == 304 {
        response::COMPLETE
    } else if before & CHUNKED != 0 {
        set!((*connection).remaining, 0);
        response::SIZE
    } else if before & HAS_LENGTH != 0 {
        if get!((*connection).remaining) == 0 { response::COMPLETE } else { response::WHOLE }
    } else {
        response::OPEN
    };
    set!((*parser).before, 0);
    set!((*parser).state, next);
}

#[uprobe]
pub fn tls_free(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    free(&ctx);
    0
}

#[inline(always)]
fn free(ctx: &ProbeContext) -> Option<()> {
    let (pid, _) = ids();
    let key = ConnectionKey { pid, padding: 0, ssl: argument::<0>(ctx) };
    let connection = CONNECTIONS.get_ptr_mut(&key)?;
    if get!((*connection).exchange.end_ns) == 0 {
        // Never answered.
        set!((*connection).exchange.end_ns, now_ns());
    }
    finish(connection);
    CONNECTIONS.remove(&key).ok()
}

/// Sends the exchange once, if it has come to anything: a request that another follows without an answer is a write
/// that was tried again.
#[inline(always)]
fn finish(connection: *mut Connection) {
    if get!((*connection).sent) == 0 && get!((*connection).exchange.end_ns) != 0 {
        set!((*connection).sent, 1);
        // SAFETY: a live map value.
        emit::quiet::<Exchange>(unsafe { &(*connection).exchange });
    }
}
