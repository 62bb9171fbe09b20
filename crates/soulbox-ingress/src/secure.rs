//! TLS towards programs in a sandbox that asked for it by `httpsPorts`.
//!
//! Certificates are not verified: programs inside sign their own, and the way to them is the host's own socket, which nobody else is on. What TLS
//! is for here is that a program which only speaks it can be reached.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::upstream::{Protocol, UpstreamError};

/// How long a program may take for its part of the handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

static HTTP1: LazyLock<Option<TlsConnector>> = LazyLock::new(|| connector(b"http/1.1"));
static HTTP2: LazyLock<Option<TlsConnector>> = LazyLock::new(|| connector(b"h2"));

/// Speaks TLS on a connected socket.
///
/// # Errors
/// [`UpstreamError::Tls`]: the program speaks something else, or no version or cipher that we have, or is too slow.
pub(crate) async fn secure(
    socket: TcpStream,
    protocol: Protocol,
) -> Result<TlsStream<TcpStream>, UpstreamError> {
    let connector = match protocol {
        Protocol::Http1 => &*HTTP1,
        Protocol::Http2 => &*HTTP2,
    };
    let connector = connector.as_ref().ok_or_else(|| {
        UpstreamError::Tls(std::io::Error::other("the TLS provider has no versions"))
    })?;
    // An address is not sent as SNI, and so no program finds that it is another's.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
    match tokio::time::timeout(HANDSHAKE_WITHIN, connector.connect(name, socket)).await {
        Ok(secured) => secured.map_err(UpstreamError::Tls),
        Err(_) => Err(UpstreamError::Tls(std::io::ErrorKind::TimedOut.into())),
    }
}

fn connector(protocol: &[u8]) -> Option<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Some(TlsConnector::from(Arc::new(config)))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
