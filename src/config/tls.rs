//! Certificates, keys and authorities: read, fitting together, and never shown.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

/// `[server.tls]`.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// At least one; the first is for clients that name no server, or one that no certificate names.
    pub certificates: Vec<Identity>,
    /// Whose clients are known by certificate; none is asked for one without.
    pub clients: Option<ClientAuth>,
}

/// `server.tls.client_ca` and `client_auth`.
#[derive(Debug, Clone)]
pub struct ClientAuth {
    /// Who signs clients' certificates.
    pub authorities: Authorities,
    /// Whether a client without one is refused; one with a wrong certificate always is.
    pub is_required: bool,
}

/// `[upstream.tls]`, and what an `https` URL stands for without it.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Who signs the upstream's certificate.
    pub authorities: Authorities,
    /// What Weir shows when it is asked who it is.
    pub identity: Option<Identity>,
    /// Name that the upstream's certificate must have.
    pub server_name: ServerName<'static>,
}

/// `[redis.tls]`, and what `rediss://` stands for without it.
#[derive(Debug, Clone)]
pub struct RedisTls {
    /// Who signs Redis' certificate.
    pub authorities: Authorities,
    /// What Weir shows when it is asked who it is.
    pub identity: Option<Identity>,
    /// Name that the certificate must have; none: the host that is connected to.
    pub server_name: Option<ServerName<'static>>,
}

/// A certificate with its chain, the key that belongs to it, and the DNS names that it is for.
#[derive(Clone)]
pub struct Identity {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// Names in the certificate, lower case; `*.` in front stands for one label.
    pub names: Vec<String>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Certificates that are trusted to sign others; at least one.
#[derive(Clone)]
pub struct Authorities(pub Arc<RootCertStore>);

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.0.len())
    }
}

/// What a client of TLS needs: whom it believes, and who it says that it is.
pub fn client(authorities: &Authorities, identity: Option<&Identity>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has ciphers for every version");
    let builder = builder.with_root_certificates(Arc::clone(&authorities.0));
    match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let own: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key)));
            builder.with_client_cert_resolver(own)
        }
    }
}

/// The cryptography that all of Weir's TLS uses.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}
