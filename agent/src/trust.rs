//! Turns a file with certificates, or what the system has, into whom a TLS client trusts.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be used.
    #[error("{}: {problem}; a PEM file with certificates is expected", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The system has no authorities.
    #[error(
        "this system has no list of trusted authorities: {0}; Debian has one in ca-certificates, --ca-cert names a file"
    )]
    System(io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A client that trusts the authorities of this file and no other, or without a file those of the system.
///
/// # Errors
/// The file holds no certificate; the system has none.
pub fn client(authorities: Option<&Path>) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let trusting = match authorities {
        Some(path) => builder.with_root_certificates(roots(path)?),
        None => builder.with_native_roots().map_err(TrustError::System)?,
    };
    Ok(trusting.with_no_client_auth())
}

fn roots(path: &Path) -> Result<RootCertStore, TrustError> {
    let wrong = |problem: String| TrustError::File { path: path.to_owned(), problem };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Why a request failed, down to its first cause; what is refused of a server's certificate, in plain words.
#[must_use]
pub fn why(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
        cause = inner.source();
    }
    // As the checks of certificates name it.
    if said.contains("CaUsedAsEndEntity") {
        return format!(
            "the server's certificate is itself a CA: it needs one of its own, signed by that CA and with CA:FALSE ({said})"
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let said = || client(Some(&file)).unwrap_err().to_string();
        assert!(said().contains("ca.pem"), "{}", said());
        std::fs::write(&file, "no certificate").unwrap();
        assert!(said().contains("holds no certificate"), "{}", said());
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(said().contains("a PEM file with certificates is expected"), "{}", said());
    }
}
