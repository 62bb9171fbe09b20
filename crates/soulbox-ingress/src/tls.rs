//! TLS of the public listeners: rustls with the ring provider, HTTP/2 and HTTP/1.1 by ALPN.

use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read the TLS certificate chain")]
    Certificate(#[source] pem::Error),
    #[error("the TLS certificate file has no certificate")]
    NoCertificate,
    #[error("failed to read the TLS private key")]
    Key(#[source] pem::Error),
    #[error("the TLS certificate and key do not fit")]
    Config(#[source] rustls::Error),
}

/// Takes connections with this certificate chain and key, both PEM texts. Clients need no certificate.
///
/// # Errors
/// The PEM that is not readable, or the key that is of another certificate.
pub fn acceptor(certificates_pem: &str, key_pem: &str) -> Result<TlsAcceptor, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(certificates_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(TlsError::Certificate)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(TlsError::Key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    }

    #[test]
    fn mistakes_are_told_apart() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        assert!(acceptor(&certificate, &key).is_ok());
        assert!(matches!(acceptor("", &key), Err(TlsError::NoCertificate)));
        assert!(matches!(
            acceptor(&certificate, "no key"),
            Err(TlsError::Key(_))
        ));
        assert!(matches!(
            acceptor(&certificate, &other),
            Err(TlsError::Config(_))
        ));
    }
}
