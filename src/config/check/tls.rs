//! `[server.tls]`, `[upstream.tls]` and `[redis.tls]`: the files are read here, and what does not fit together is told with their names.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};

use super::Check;
use crate::config::raw::{self, At, CertificateFiles, ClientAuthMode, Maybe};
use crate::config::report::Span;
use crate::config::tls::{Authorities, ClientAuth, Identity, RedisTls, ServerTls, UpstreamTls, provider};
use crate::config::{Address, Target};

/// Largest file with certificates, in bytes: several times the bundle of all public authorities.
const PEM_BYTES: usize = 1024 * 1024;

const NAME_THE_FILE: &str = "name a file that this process may read";

impl Check<'_, '_> {
    pub(super) fn server_tls(&mut self, raw: &At<raw::Tls>) -> Option<ServerTls> {
        let raw = &raw.value;
        // What is missing has been told by its shape.
        let first = raw.cert.as_ref().zip(raw.key.as_ref()).map(|(cert, key)| self.chain_and_key(cert, key));
        let mut certificates = vec![first?];
        for At { value: CertificateFiles { cert, key }, .. } in raw.certificates.iter().flatten() {
            let (Some(cert), Some(key)) = (cert, key) else { continue };
            let identity = self.chain_and_key(cert, key);
            if identity.as_ref().is_some_and(|identity| identity.names.is_empty()) {
                let text = format!("the certificate in {} has no DNS name", self.directory.join(&cert.value).display());
                self.warn(&cert.span(), text, "clients ask for certificates by name: add a subjectAltName to it");
            }
            certificates.push(identity);
        }
        let clients = self.client_auth(&raw.client_ca, &raw.client_auth);
        Some(ServerTls { certificates: certificates.into_iter().collect::<Option<_>>()?, clients: clients? })
    }

    /// `None` where something is wrong.
    fn client_auth(&mut self, file: &Maybe<String>, auth: &Maybe<ClientAuthMode>) -> Option<Option<ClientAuth>> {
        let Some(file) = file else {
            let Some(auth) = auth else { return Some(None) };
            let text = "`server.tls.client_auth` says how clients prove who they are, and nobody says to whom";
            self.error(&auth.span(), text, "write `client_ca` with the authority that signs their certificates");
            return None;
        };
        let is_required = auth.as_ref().is_none_or(|auth| auth.value == ClientAuthMode::Require);
        let authorities = self.authorities(file)?;
        Some(Some(ClientAuth { authorities, is_required }))
    }

    /// How an `https` upstream is spoken to; `url` is where a problem without a better place is shown.
    pub(super) fn upstream_tls(
        &mut self,
        raw: Option<&raw::UpstreamTls>,
        target: &Target,
        url: &At<String>,
    ) -> Option<UpstreamTls> {
        let absent = raw::UpstreamTls::default();
        let raw = raw.unwrap_or(&absent);
        let authorities = self.authorities_or_systems("upstream", &raw.ca_file, &url.span());
        let identity = self.own_identity("upstream", &raw.cert, &raw.key);
        let (name, place) = match (&raw.server_name, target) {
            (Some(name), _) => (name.value.as_str(), name),
            (None, Target::Tcp { host, .. }) => (host.as_str(), url),
            (None, Target::Unix(_)) => return None,
        };
        let server_name = self.server_name("upstream", name, &place.span());
        Some(UpstreamTls { authorities: authorities?, identity: identity?, server_name: server_name? })
    }

    /// How Redis is spoken to over TLS; `span` is where a problem without a better place is shown.
    pub(super) fn redis_tls(
        &mut self,
        raw: Option<&raw::RedisTls>,
        addresses: &[Address],
        span: &Span,
    ) -> Option<RedisTls> {
        let absent = raw::RedisTls::default();
        let raw = raw.unwrap_or(&absent);
        let authorities = self.authorities_or_systems("redis", &raw.ca_file, span);
        let identity = self.own_identity("redis", &raw.cert, &raw.key);
        let server_name = match &raw.server_name {
            Some(name) => Some(self.server_name("redis", &name.value, &name.span())?),
            None => {
                for address in addresses {
                    if let Address::Tcp { host, .. } = address {
                        self.server_name("redis", host, span)?;
                    }
                }
                None
            }
        };
        Some(RedisTls { authorities: authorities?, identity: identity?, server_name })
    }

    fn authorities_or_systems(&mut self, table: &str, file: &Maybe<String>, span: &Span) -> Option<Authorities> {
        match file {
            Some(file) => self.authorities(file),
            None => self.system_authorities(table, span),
        }
    }

    /// Who Weir says that it is; `None` where something is wrong.
    fn own_identity(&mut self, table: &str, cert: &Maybe<String>, key: &Maybe<String>) -> Option<Option<Identity>> {
        match (cert, key) {
            (Some(cert), Some(key)) => self.chain_and_key(cert, key).map(Some),
            (None, None) => Some(None),
            (Some(one), None) | (None, Some(one)) => {
                let text = format!("`{table}.tls.cert` and `{table}.tls.key` belong together, and one is missing");
                self.error(&one.span(), text, "write both, or leave both out");
                None
            }
        }
    }

    fn server_name(&mut self, table: &str, name: &str, span: &Span) -> Option<ServerName<'static>> {
        let server_name = ServerName::try_from(name.to_owned()).ok();
        if server_name.is_none() {
            let text = format!("\"{}\" is no name that a certificate can have", name.escape_debug());
            self.error(span, text, format!("write `{table}.tls.server_name` with a DNS name or an IP address"));
        }
        server_name
    }

    fn chain_and_key(&mut self, cert: &At<String>, key: &At<String>) -> Option<Identity> {
        let (chain, key_der) = (self.certificates(cert), self.private_key(key));
        let (chain, key_der) = (chain?, key_der?);
        let (cert_path, key_path) = (self.directory.join(&cert.value), self.directory.join(&key.value));
        let (cert_shown, key_shown) = (cert_path.display(), key_path.display());
        let names = match webpki::EndEntityCert::try_from(&chain[0]) {
            Ok(parsed) => parsed.valid_dns_names().map(str::to_ascii_lowercase).collect(),
            Err(_) => {
                let text = format!("the first certificate in {cert_shown} cannot be read");
                self.file_error(
                    &cert.span(),
                    text,
                    "write the server's own certificate first, then those that lead to its authority",
                );
                return None;
            }
        };
        // What is told never quotes the file.
        match CertifiedKey::from_der(chain, key_der, &provider()) {
            Ok(key) => Some(Identity { key: Arc::new(key), names }),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let text = format!("the key in {key_shown} does not belong to the certificate in {cert_shown}");
                self.file_error(&key.span(), text, "name the key that the certificate was made for");
                None
            }
            Err(_) => {
                let text = format!("the key in {key_shown} is of no kind that can be used");
                self.file_error(&key.span(), text, "use ECDSA (P-256, P-384), RSA (2048 to 4096 bits) or Ed25519");
                None
            }
        }
    }

    fn certificates(&mut self, file: &At<String>) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.file(file, PEM_BYTES, NAME_THE_FILE)?;
        let shown = self.directory.join(&file.value);
        match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(chain) if !chain.is_empty() => Some(chain),
            read => {
                let what = if read.is_ok() { "holds no certificate" } else { "is not PEM" };
                let remedy = "name a file with -----BEGIN CERTIFICATE----- in it";
                self.file_error(&file.span(), format!("{} {what}", shown.display()), remedy);
                None
            }
        }
    }

    fn private_key(&mut self, file: &At<String>) -> Option<PrivateKeyDer<'static>> {
        let bytes = self.file(file, PEM_BYTES, NAME_THE_FILE)?;
        let read = PrivateKeyDer::from_pem_slice(&bytes).ok();
        if read.is_none() {
            let text = format!("{} holds no private key", self.directory.join(&file.value).display());
            self.file_error(
                &file.span(),
                text,
                "name a PEM file with a key of PKCS#8, PKCS#1 or SEC1 that no password protects",
            );
        }
        read
    }

    fn authorities(&mut self, file: &At<String>) -> Option<Authorities> {
        let certificates = self.certificates(file)?;
        let mut store = RootCertStore::empty();
        let (_, unusable) = store.add_parsable_certificates(certificates);
        if unusable > 0 {
            let text =
                format!("{} holds a certificate that cannot be read", self.directory.join(&file.value).display());
            self.file_error(&file.span(), text, "leave in it only the authorities' own certificates");
            return None;
        }
        Some(Authorities(Arc::new(store)))
    }

    /// Those that the system trusts, or the ones that SSL_CERT_FILE and SSL_CERT_DIR name.
    fn system_authorities(&mut self, table: &str, span: &Span) -> Option<Authorities> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            let text = "nobody is trusted on this system to say whose certificate is right";
            let remedy = format!("write `{table}.tls.ca_file`, or install the system's certificates (ca-certificates)");
            self.file_error(span, text, remedy);
            return None;
        }
        Some(Authorities(Arc::new(store)))
    }
}
