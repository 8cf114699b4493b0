//! What the programs at TLS functions keep of a connection, and the record of an exchange over it.
//!
//! Plaintext is parsed in the kernel, in [`Connection::piece`], and wiped; only the fields of [`Exchange`] leave it.

use crate::record::ProcessKey;

/// What a site's cookie names where a TLS program runs.
pub mod function {
    /// `SSL_write(ssl, buffer, int)`.
    pub const WRITE: u16 = 0;
    /// `SSL_write_ex(ssl, buffer, size, …)`.
    pub const WRITE_EX: u16 = 1;
    /// `SSL_read(ssl, buffer, int)`, which returns the number of bytes.
    pub const READ: u16 = 2;
    /// `SSL_read_ex(ssl, buffer, size, &read)`, which returns 1 if it has read.
    pub const READ_EX: u16 = 3;
    /// `SSL_free(ssl)`.
    pub const FREE: u16 = 4;
}

/// Bytes of a host's name kept, NUL included.
pub const HOST_BYTES: usize = 64;
/// Bytes of a path kept, NUL included.
pub const PATH_BYTES: usize = 128;
/// Bytes of a model's name kept, NUL included.
pub const MODEL_BYTES: usize = 64;
/// Bytes that are parsed at once.
pub const PIECE_BYTES: usize = 256;

/// One request and its response. All that is ever taken from a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exchange {
    /// [`record_kind::EXCHANGE`](crate::record::record_kind::EXCHANGE).
    pub kind: u32,
    /// Status of the response, 0 = there was none.
    pub status: u32,
    /// The process.
    pub process: ProcessKey,
    /// When the first byte of the request was written.
    pub start_ns: u64,
    /// When the first bytes of the response had been read, 0 = never.
    pub first_ns: u64,
    /// When the last bytes of the response had been read, as far as seen.
    pub end_ns: u64,
    /// `Host` of the request in lower case, NUL-terminated.
    pub host: [u8; HOST_BYTES],
    /// Path of the request without its query, NUL-terminated.
    pub path: [u8; PATH_BYTES],
    /// The text of `"model"` in the JSON object that is the request's body, NUL-terminated.
    pub model: [u8; MODEL_BYTES],
}

/// Names a connection: a process and its `SSL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectionKey {
    /// The process.
    pub pid: u32,
    /// Zero.
    pub padding: u32,
    /// Address of the `SSL`.
    pub ssl: u64,
}

/// Where a parser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Parser {
    /// Which part it is in; the numbers are the kernel side's.
    pub state: u32,
    /// Bytes kept of the field that it is in.
    pub kept: u32,
    /// Hash of the name or key that it is in.
    pub hash: u64,
    /// Objects and lists around it, in JSON.
    pub depth: u32,
    /// What the text before says of the next, in JSON; flags of the headers, in a response.
    pub before: u32,
}

/// A connection over which a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// What is known of the exchange.
    pub exchange: Exchange,
    /// In the request.
    pub request: Parser,
    /// In the response.
    pub response: Parser,
    /// Bytes of the body, or of its chunk, that are to come.
    pub remaining: u64,
    /// 1 = the exchange has been sent.
    pub sent: u64,
    /// Bytes of the buffer at hand that have been looked at.
    pub offset: u64,
    /// What is being parsed; all zero between two calls.
    pub piece: [u8; PIECE_BYTES],
}

/// A read that has been entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Reading {
    /// Address of the `SSL`.
    pub ssl: u64,
    /// Where it reads to.
    pub buffer: u64,
    /// Where it says how much; 0 for `SSL_read`.
    pub count: u64,
    /// Address of its return address.
    pub slot: u64,
}

const _: () = assert!(size_of::<Exchange>() == 48 + HOST_BYTES + PATH_BYTES + MODEL_BYTES);
const _: () = assert!(size_of::<Connection>() == size_of::<Exchange>() + 2 * 24 + 24 + PIECE_BYTES);
const _: () = assert!(size_of::<ConnectionKey>() == 16);
