//! Certificates of the test's own making, and both sides of TLS with them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::Connection;
use super::h2::H2;
use super::{Scratch, patiently};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One of its own.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {} of the tests", next());
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// A certificate for these DNS names and IP addresses.
    pub fn issue(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names).expect("names"))
    }

    /// Its own certificate, written down.
    pub fn put(&self, scratch: &Scratch) -> String {
        scratch.write("authority.crt", &self.0.pem()).display().to_string()
    }

    /// The same, of one that ended in 2020.
    pub fn issue_expired(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Issued {
        // Two without one would be the same, and a new one could not be told from an old one.
        params.serial_number = Some(next().into());
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        Issued { cert_pem: cert.pem() + &self.0.pem(), key_pem: key.serialize_pem(), cert: cert.der().clone(), key }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("an authority");
        Arc::new(roots)
    }
}

/// Numbers that are not used twice.
fn next() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A certificate and its key.
pub struct Issued {
    /// The certificate and its authority's.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
    /// The certificate alone.
    pub cert: CertificateDer<'static>,
    key: KeyPair,
}

impl Issued {
    /// Writes both down; says where.
    pub fn put(&self, scratch: &Scratch, name: &str) -> (String, String) {
        let cert = scratch.write(&format!("{name}.crt"), &self.cert_pem).display().to_string();
        (cert, scratch.write(&format!("{name}.key"), &self.key_pem).display().to_string())
    }

    /// A server with it that speaks `protocol`, and wants certificates of `clients`.
    pub fn server(&self, protocol: &str, clients: Option<&Authority>) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(authority.roots(), provider()).build().expect("a verifier"),
            ),
        };
        let mut config = builder.with_single_cert(vec![self.cert.clone()], self.key_der()).expect("a key that fits");
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }
}

/// A client that calls over TLS.
#[derive(Clone)]
pub struct Caller {
    config: ClientConfig,
    name: Option<String>,
    preamble: Vec<u8>,
}

impl Caller {
    /// One that believes `authority`, offers HTTP/1.1, and asks for no name.
    pub fn new(authority: &Authority) -> Self {
        Self::with_identity(authority, None)
    }

    /// The same, with a certificate of its own.
    pub fn with(authority: &Authority, own: &Issued) -> Self {
        Self::with_identity(authority, Some(own))
    }

    fn with_identity(authority: &Authority, own: Option<&Issued>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(authority.roots());
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(vec![own.cert.clone()], own.key_der()).expect("a key that fits"),
        };
        Self { config, name: None, preamble: Vec::new() }.offering(&["http/1.1"])
    }

    /// Offers these protocols.
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Asks for this server.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Sends these bytes before the handshake.
    pub fn after(mut self, preamble: &[u8]) -> Self {
        self.preamble = preamble.to_vec();
        self
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// One of the two fails.
    pub async fn try_open(&self, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&self.preamble).await?;
        let name = match &self.name {
            Some(name) => ServerName::try_from(name.clone()).expect("a name"),
            None => ServerName::from(to.ip()),
        };
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        patiently("a handshake", connector.connect(name, stream)).await
    }

    /// An HTTP/1.1 connection.
    pub async fn open(&self, to: SocketAddr) -> Connection<TlsStream<TcpStream>> {
        Connection::over(self.try_open(to).await.unwrap_or_else(|error| panic!("TLS with {to}: {error}")))
    }

    /// An HTTP/2 connection.
    pub async fn h2(&self, to: SocketAddr) -> H2 {
        let stream = self.clone().offering(&["h2"]).try_open(to).await;
        H2::over(stream.unwrap_or_else(|error| panic!("TLS with {to}: {error}"))).await
    }
}
