//! TLS towards the upstream: whom to believe, whom to say that Weir is, and the handshake.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Protocol;
use crate::config::tls::{self, UpstreamTls};

/// What a handshake with the upstream needs; its sessions are resumed.
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    /// Whether the last handshake failed, so that the log has one line for the beginning of it and one for the end.
    is_failing: AtomicBool,
}

impl Tls {
    /// For an upstream that is spoken to in `protocol`.
    pub fn new(upstream: &UpstreamTls, protocol: Protocol) -> Self {
        let mut config = tls::client(&upstream.authorities, upstream.identity.as_ref());
        config.alpn_protocols = vec![name(protocol).to_vec()];
        Self { config: Arc::new(config), server_name: upstream.server_name.clone(), is_failing: AtomicBool::new(false) }
    }

    /// Shakes hands over `stream`. Why it failed is for the log: who asked is not told of names and authorities.
    ///
    /// # Errors
    /// The certificate is not to be believed, the upstream refuses, or it does not speak the protocol that was asked for.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        let shaken = self.shake_hands(stream).await;
        if self.is_failing.load(Ordering::Relaxed) != shaken.is_err() {
            self.is_failing.store(shaken.is_err(), Ordering::Relaxed);
            match &shaken {
                Err(error) => tracing::warn!(name = ?self.server_name, %error, "there is no TLS with the upstream"),
                Ok(_) => tracing::info!("there is TLS with the upstream again"),
            }
        }
        shaken.map_err(|error| io::Error::new(error.kind(), "the TLS handshake failed"))
    }

    async fn shake_hands(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.server_name.clone(), stream).await?;
        let wanted = self.config.alpn_protocols.first().map(Vec::as_slice);
        match stream.get_ref().1.alpn_protocol() {
            // Who agrees to nothing speaks HTTP/1.1 (RFC 9113 section 3.2).
            None if wanted == Some(name(Protocol::Http1)) => Ok(Box::new(stream)),
            agreed if agreed == wanted => Ok(Box::new(stream)),
            _ => Err(io::Error::other("it does not agree to the protocol that `upstream.protocol` names")),
        }
    }
}

/// A protocol's name in the handshake (RFC 7301).
fn name(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Http1 => b"http/1.1",
        Protocol::Http2 => b"h2",
    }
}
