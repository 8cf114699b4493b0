//! Turns the files that `--token-file`, `--tls-cert` and `--tls-key` name into who may see the pages, and over what.
//!
//! A file that has been written anew is read anew: certificates are renewed every few months, and the agent runs on. If
//! it cannot be used then, what was read before stays.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error as TlsError, ServerConfig};

use crate::config::GuardConfig;

/// Shortest token that is taken, in bytes: it stands against whoever can reach the port.
const SHORTEST_TOKEN: usize = 16;
/// Largest file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Why the pages cannot be guarded as asked, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no token that is worth one.
    #[error(
        "{}: the token has {bytes} bytes; {SHORTEST_TOKEN} at least: openssl rand -hex 32 > FILE", path.display()
    )]
    ShortToken {
        /// The file.
        path: PathBuf,
        /// Bytes of it.
        bytes: usize,
    },
    /// It holds no certificate, or no key.
    #[error("{}: {reason}; a PEM file is expected", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key do not belong together.
    #[error("{} and {} cannot be used: {reason}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Who may see the pages, and over what; by default everybody, over HTTP.
#[derive(Debug, Default)]
pub struct Guard {
    token: Option<Kept<Digest>>,
    tls: Option<Kept<Acceptor>>,
}

type Digest = [u8; 32];

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Acceptor")
    }
}

/// What was read from files, and of which state of theirs.
#[derive(Debug)]
struct Kept<T> {
    files: Vec<PathBuf>,
    now: Mutex<(Vec<Stamp>, T)>,
}

type Stamp = (u64, u64, i64, i64);

impl Guard {
    /// Reads the files.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn open(config: &GuardConfig) -> Result<Self, GuardError> {
        let token = config.token.as_ref().map(|path| Kept::open(vec![path.clone()], read_token));
        let tls = config
            .tls
            .as_ref()
            .map(|(certificate, key)| Kept::open(vec![certificate.clone(), key.clone()], read_pair));
        Ok(Self { token: token.transpose()?, tls: tls.transpose()? })
    }

    /// Whether a request may be answered.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let wanted = token.now(read_token);
        // Of the digests: how long it takes says nothing about the token.
        presented(headers).is_some_and(|token| sha256(&token) == wanted)
    }

    /// What connections are to be accepted by; `None`: as they are.
    pub(super) fn tls(&self) -> Option<TlsAcceptor> {
        Some(self.tls.as_ref()?.now(read_pair).0)
    }

    /// `https` or `http`.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl<T: Clone> Kept<T> {
    fn open(files: Vec<PathBuf>, read: fn(&[PathBuf]) -> Result<T, GuardError>) -> Result<Self, GuardError> {
        let stamps = stamps(&files);
        let value = read(&files)?;
        Ok(Self { files, now: Mutex::new((stamps, value)) })
    }

    fn now(&self, read: fn(&[PathBuf]) -> Result<T, GuardError>) -> T {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.files);
        if stamps != now.0 {
            match read(&self.files) {
                Ok(value) => *now = (stamps, value),
                Err(error) => {
                    now.0 = stamps;
                    tracing::warn!(%error, "what was read before stays in use");
                }
            }
        }
        now.1.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let of = |file: Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
    files.iter().map(|file| fs::metadata(file).map(of).unwrap_or_default()).collect()
}

fn read_file(path: &Path) -> Result<Vec<u8>, GuardError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|source| GuardError::Read { path: path.to_owned(), source })
}

fn read_token(files: &[PathBuf]) -> Result<Digest, GuardError> {
    let path = files.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
    let bytes = read_file(path)?;
    let token = bytes.trim_ascii();
    if token.len() < SHORTEST_TOKEN {
        return Err(GuardError::ShortToken { path: path.to_owned(), bytes: token.len() });
    }
    Ok(sha256(token))
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut sum = Digest::default();
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// The token of a request: `Bearer`, or what a browser asks its user for as a password.
fn presented(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().as_bytes().to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(value.trim()).ok())??;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    pair.get(colon + 1..).map(<[u8]>::to_vec)
}

fn read_pair(files: &[PathBuf]) -> Result<Acceptor, GuardError> {
    let [certificate, key] = files else { return Err(wrong(Path::new(""), "two files are needed")) };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read_file(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(certificate, &error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "holds no certificate"));
    }
    let private =
        PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(|error| wrong(key, &error.to_string()))?;
    let pair = |error: TlsError| GuardError::Pair {
        certificate: certificate.clone(),
        key: key.clone(),
        reason: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
}

fn wrong(path: &Path, reason: &str) -> GuardError {
    GuardError::Pem { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_the_token_is_let_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
        let guard = Guard::open(&GuardConfig { token: Some(file.path().to_owned()), tls: None }).unwrap();
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for value in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}"), basic(&format!("me:{TOKEN}"))] {
            assert!(guard.admits(&with(&value)), "{value}");
        }
        for value in
            ["Bearer", "Bearer ", "Bearer 0123456789abcdee", TOKEN, "Basic x", "Digest 0123456789abcdef"]
        {
            assert!(!guard.admits(&with(value)), "{value}");
        }
        assert!(!guard.admits(&with(&basic(TOKEN))));
        assert!(!guard.admits(&HeaderMap::new()));
        assert!(Guard::open(&GuardConfig::default()).unwrap().admits(&HeaderMap::new()));
    }

    #[test]
    fn a_new_token_is_taken_and_a_bad_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, TOKEN).unwrap();
        let guard = Guard::open(&GuardConfig { token: Some(path.clone()), tls: None }).unwrap();
        let new = "another-token-of-some-length";
        fs::write(&path, new).unwrap();
        assert!(
            guard.admits(&with(&format!("Bearer {new}"))) && !guard.admits(&with(&format!("Bearer {TOKEN}")))
        );
        for bad in ["short", ""] {
            fs::write(&path, bad).unwrap();
            assert!(guard.admits(&with(&format!("Bearer {new}"))));
        }
        fs::remove_file(&path).unwrap();
        assert!(guard.admits(&with(&format!("Bearer {new}"))));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let [token, empty] = ["token", "empty"].map(|name| folder.path().join(name));
        fs::write(&token, "abc").unwrap();
        fs::write(&empty, "").unwrap();
        let said = |token: Option<&PathBuf>, tls: Option<(&PathBuf, &PathBuf)>| {
            let tls = tls.map(|(certificate, key)| (certificate.clone(), key.clone()));
            Guard::open(&GuardConfig { token: token.cloned(), tls }).unwrap_err().to_string()
        };
        assert!(said(Some(&token), None).contains("has 3 bytes; 16 at least"));
        assert!(said(Some(&folder.path().join("none")), None).contains("cannot read"));
        assert!(said(None, Some((&empty, &empty))).contains("holds no certificate"));
    }
}
