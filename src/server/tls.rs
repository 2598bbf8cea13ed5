//! TLS towards clients: which certificate for whom, the handshake, and what became of it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::ServerLimits;
use crate::config::tls::{Identity, ServerTls, provider};
use crate::metrics::Fault;

use super::Spoken;
use super::wire::{Transport, Wire};

/// Protocols by their names in the handshake (RFC 7301), the one that is liked better first.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The first byte of a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// What HTTP in plain text is told.
const PLAIN: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 46\r\nconnection: close\r\n\r\n\
    plain HTTP was sent to a port that speaks TLS\n";

/// What rustls needs; early data stays off, because whoever records it could send it again (RFC 8470).
pub(super) fn config(tls: &ServerTls) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has ciphers for every version");
    let builder = match &tls.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let roots = Arc::clone(&clients.authorities.0);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = if clients.is_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().expect("there is at least one authority"))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates::new(&tls.certificates)));
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    Arc::new(config)
}

/// Certificates by the name that a client asks for (RFC 6066 section 3).
struct Certificates {
    /// `*.example` stands as `.example`, which no client can ask for.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    fn new(identities: &[Identity]) -> Self {
        let mut by_name = HashMap::new();
        for identity in identities {
            for name in &identity.names {
                let name = name.strip_prefix('*').unwrap_or(name).to_owned();
                // Of two that fit, the one that is written first.
                by_name.entry(name).or_insert_with(|| Arc::clone(&identity.key));
            }
        }
        Self { by_name, default: identities.first().map(|identity| Arc::clone(&identity.key)) }
    }

    fn choose(&self, asked: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = asked.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| self.by_name.get(&name[name.find('.')?..]))
        });
        named.or(self.default.as_ref())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificates for {} names", self.by_name.len())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).cloned()
    }
}

/// Shakes hands with a client.
///
/// # Errors
/// Why not, and what is left of the connection.
pub(super) async fn accept(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (Fault, TcpStream)> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1..) if first[0] == HANDSHAKE => {}
        Ok(1..) if first[0].is_ascii_uppercase() => return Err((Fault::PlainHttp, stream)),
        Ok(1..) => return Err((Fault::Malformed, stream)),
        Ok(0) | Err(_) => return Err((Fault::Left, stream)),
    }
    let accepted = TlsAcceptor::from(Arc::clone(config)).accept(stream).into_fallible().await;
    accepted.map_err(|(error, stream)| {
        tracing::debug!(%error, "a TLS handshake failed");
        (fault(&error), stream)
    })
}

fn fault(error: &io::Error) -> Fault {
    use rustls::Error;
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        None => Fault::Left,
        Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => Fault::Certificate,
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => Fault::Incompatible,
        Some(Error::AlertReceived(_)) => Fault::Refused,
        Some(_) => Fault::Malformed,
    }
}

/// The protocol that the handshake settled on.
pub(super) fn spoken(stream: &TlsStream<TcpStream>) -> Spoken {
    if stream.get_ref().1.alpn_protocol() == Some(H2) { Spoken::Http2 } else { Spoken::Http1 }
}

/// Ends a connection whose handshake failed so that its client gets the alert that says why, or a word in plain text.
pub(super) async fn send_away(stream: TcpStream, fault: Fault, limits: ServerLimits) {
    let mut wire = Wire::new(stream, limits);
    if fault == Fault::PlainHttp {
        wire.output.buffer().extend_from_slice(PLAIN);
    }
    if fault != Fault::Left && wire.flush().await.is_ok() {
        wire.linger().await;
    }
}

impl Transport for TlsStream<TcpStream> {
    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }

    /// `close_notify`, without which a client must take what it has for cut short (RFC 8446 section 6.1).
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(self).poll_shutdown(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn identity(names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let Made { cert, signing_key } = generate_simple_self_signed(names.clone()).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let key = CertifiedKey::from_der(vec![cert.der().clone()], key, &provider()).unwrap();
        Identity { key: Arc::new(key), names }
    }

    #[test]
    fn the_name_chooses_the_certificate() {
        let all = [&["a.test"][..], &["*.b.test", "b.test"], &["x.b.test", "a.test"], &[]].map(identity);
        let certificates = Certificates::new(&all);
        for (asked, nth) in [
            (None, 0),
            (Some("a.test"), 0),
            (Some("A.Test"), 0),
            (Some("b.test"), 1),
            (Some("c.b.test"), 1),
            (Some("x.b.test"), 2),
            (Some("c.c.b.test"), 0),
            (Some("other.test"), 0),
            (Some("test"), 0),
        ] {
            let chosen = certificates.choose(asked).unwrap();
            assert!(Arc::ptr_eq(chosen, &all[nth].key), "{asked:?}");
        }
    }

    #[test]
    fn what_plain_http_is_told_has_the_length_that_it_says() {
        let text = std::str::from_utf8(PLAIN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
