//! Turns the address of an agent into the stream of its snapshots: over TCP or TLS, with the agent's token.
//!
//! The token's file is read for each connection, as the agent takes a renewed one; the authorities are read once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Error as TlsError, StreamOwned};

use crate::config::{Access, AgentUrl};
use crate::trust;

/// Bytes of an answer's head, and of a token's file.
const MAX_HEAD: u64 = 64 << 10;
/// Begins an alert of TLS, which is the answer to a plain request where TLS is spoken.
const ALERT: u8 = 0x15;

/// An agent, and how it is asked.
#[derive(Clone, Debug)]
pub(super) struct Way {
    url: AgentUrl,
    token: Option<PathBuf>,
    tls: Option<Arc<ClientConfig>>,
}

/// What an agent answers by.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        };
        socket.set_read_timeout(Some(patience))
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Way {
    /// Reads whom to trust.
    pub(super) fn open(url: AgentUrl, access: &Access) -> anyhow::Result<Self> {
        let tls = url.is_tls().then(|| trust::client(access.authorities.as_deref())).transpose()?;
        Ok(Self { url, token: access.token.clone(), tls: tls.map(Arc::new) })
    }

    pub(super) const fn url(&self) -> &AgentUrl {
        &self.url
    }

    /// Asks for the stream and reads the head of the answer.
    pub(super) fn connect(&self, patience: Duration) -> anyhow::Result<BufReader<Stream>> {
        let url = &self.url;
        let failed =
            || format!("no agent answers at {url}; is one running there, and is its --listen this address?");
        let socket = reach(url, patience).with_context(failed)?;
        socket.set_read_timeout(Some(patience))?;
        let mut stream = match &self.tls {
            Some(tls) => Stream::Tls(Box::new(self.shake_hands(tls, socket)?)),
            None => Stream::Plain(socket),
        };
        // HTTP/1.0: the body is not chunked. One write: TLS makes a record of each.
        let mut request = format!(
            "GET {}live HTTP/1.0\r\nHost: {}\r\nAccept: text/event-stream\r\n",
            url.path(),
            url.authority()
        );
        if let Some(path) = &self.token {
            request.push_str(&format!("Authorization: Bearer {}\r\n", read_token(path)?));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).with_context(failed)?;
        let mut stream = BufReader::new(stream);
        let head = read_head(&mut stream).with_context(failed)?;
        self.judge(&head)?;
        Ok(stream)
    }

    fn shake_hands(
        &self,
        tls: &Arc<ClientConfig>,
        mut socket: TcpStream,
    ) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
        let url = &self.url;
        let name = ServerName::try_from(url.host().to_owned())
            .with_context(|| format!("{} is no name that a certificate can be for", url.host()))?;
        let mut connection = ClientConnection::new(Arc::clone(tls), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).map_err(|error| explain(url, &error))?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    fn judge(&self, head: &[u8]) -> anyhow::Result<()> {
        let url = &self.url;
        if self.tls.is_none() && (head.is_empty() || head.first() == Some(&ALERT)) {
            bail!("what answers at {url} speaks no plain HTTP; is it https://{}?", url.authority());
        }
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        match (head.split_whitespace().nth(1).unwrap_or_default(), &self.token) {
            ("401", None) => {
                bail!("the agent at {url} wants its token: name the file that holds it by --token-file")
            }
            ("401", Some(path)) => bail!("the agent at {url} does not take the token of {}", path.display()),
            ("200", _) if head.contains("text/event-stream") => Ok(()),
            (status, _) => bail!(
                "what answers at {url} is no cadscope agent with /live, or too many look already (HTTP {status})"
            ),
        }
    }
}

fn reach(url: &AgentUrl, patience: Duration) -> anyhow::Result<TcpStream> {
    let mut last = anyhow!("{} has no address", url.host());
    for address in url.authority().to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// What went wrong with TLS, and what to do.
fn explain(url: &AgentUrl, error: &io::Error) -> anyhow::Error {
    let fix = match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        // As `openssl req -x509` makes one unless told otherwise.
        Some(TlsError::InvalidCertificate(_)) if error.to_string().contains("CaUsedAsEndEntity") => {
            "; the agent's certificate is that of an authority: make one with basicConstraints=CA:FALSE"
        }
        Some(TlsError::InvalidCertificate(_)) => {
            "; name the file with the authority that vouches for it by --ca-cert, and the agent as the certificate does"
        }
        Some(TlsError::InvalidMessage(_)) => "; what answers there speaks no TLS: is it http://?",
        _ => "",
    };
    anyhow!("no TLS with {url}: {error}{fix}")
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_HEAD).read_to_string(&mut text))
        .with_context(|| format!("cannot read the token in {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{} holds no token: one line without blanks is expected", path.display());
    }
    Ok(token.to_owned())
}

fn read_head(stream: &mut BufReader<Stream>) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut rest = stream.by_ref().take(MAX_HEAD);
    while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&ALERT) {
        if rest.read_until(b'\n', &mut head)? == 0 {
            break;
        }
    }
    Ok(head)
}
