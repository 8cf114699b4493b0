//! Turns a URL into a connection to Redis that publishes messages.
//!
//! Only `AUTH`, `SELECT` and `PUBLISH` are spoken: that is a few lines, where a client library brings a dozen crates.
//! Whoever calls waits, a few seconds at most. Refused: TLS (`rediss://`).

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// How long the broker may take to answer or to accept.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const ANSWER: u64 = 4096;

/// Where a Redis is: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    host: String,
    port: u16,
    user: Option<String>,
    password: Option<String>,
    database: u32,
}

/// Without the password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "redis://{}:{}/{}", self.host, self.port, self.database)
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "is a URL such as redis://HOST:6379/0; TLS is not spoken";
        let rest = text.strip_prefix("redis://").ok_or(FORM)?;
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let (address, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| FORM)?),
            _ => (address, 6379),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || database.contains(['?', '/']) {
            return Err(FORM.to_owned());
        }
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or(("", login))) {
            Some((user, password)) => (decoded(user).filter(|user| !user.is_empty()), decoded(password)),
            None => (None, None),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            user,
            password,
            database: if database.is_empty() { 0 } else { database.parse().map_err(|_| FORM)? },
        })
    }
}

/// `%40` → `@`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A connection that has logged in.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// It is not there, or refuses.
    pub fn open(url: &RedisUrl) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (url.host.as_str(), url.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Self::log_in(stream, url),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn log_in(stream: TcpStream, url: &RedisUrl) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let answers = BufReader::new(stream.try_clone()?);
        let mut connection = Self { stream, answers };
        match (&url.user, &url.password) {
            (Some(user), Some(password)) => connection.ask(&["AUTH", user, password])?,
            (None, Some(password)) => connection.ask(&["AUTH", password])?,
            _ => {}
        }
        if url.database != 0 {
            connection.ask(&["SELECT", &url.database.to_string()])?;
        }
        Ok(connection)
    }

    /// Publishes a message.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn publish(&mut self, channel: &str, message: &str) -> io::Result<()> {
        self.ask(&["PUBLISH", channel, message])
    }

    /// Sends a command as an array of texts; its answer is one line, an error or not.
    fn ask(&mut self, command: &[&str]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            request.extend(format!("${}\r\n{part}\r\n", part.len()).into_bytes());
        }
        self.stream.write_all(&request)?;
        let mut answer = String::new();
        io::Read::take(&mut self.answers, ANSWER).read_line(&mut answer)?;
        match answer.chars().next() {
            Some('+' | ':') => Ok(()),
            // Redis repeats no password in its errors.
            Some('-') => Err(io::Error::other(answer.trim_end().to_owned())),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_as_whom() {
        let url: RedisUrl = "redis://me:p%40ss:w@broker:6380/3".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.database), ("broker", 6380, 3));
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("p@ss:w")));
        let url: RedisUrl = "redis://:secret@[::1]".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.user), ("::1", 6379, None));
        assert!(!format!("{:?}", "redis://:secret@h".parse::<RedisUrl>().unwrap()).contains("secret"));
        for wrong in
            ["", "broker", "rediss://h", "redis://", "redis://h:port", "redis://h/x", "redis://h/0?a=1"]
        {
            assert!(wrong.parse::<RedisUrl>().is_err(), "{wrong}");
        }
    }
}
