//! `[server.tls]`, `[upstream.tls]` and `[redis.tls]` as they are written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{At, Maybe};

/// `[server.tls]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tls {
    /// PEM file with the certificate for clients that name no server, and those that lead to its authority.
    #[schemars(required)]
    #[schemars(example = "server.crt")]
    pub(in crate::config) cert: Maybe<String>,
    /// PEM file with its key: PKCS#8, PKCS#1 or SEC1.
    #[schemars(required)]
    #[schemars(example = "server.key")]
    pub(in crate::config) key: Maybe<String>,
    /// Further certificates, chosen by the server that a client names.
    pub(in crate::config) certificates: Option<Vec<At<CertificateFiles>>>,
    /// PEM file with the authorities that sign clients' certificates.
    #[schemars(example = "clients-ca.crt")]
    pub(in crate::config) client_ca: Maybe<String>,
    /// Whether a client must have a certificate of theirs.
    pub(in crate::config) client_auth: Maybe<ClientAuthMode>,
}

/// An entry of `server.tls.certificates`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CertificateFiles {
    /// PEM file with the certificate, and those that lead to its authority.
    #[schemars(required)]
    #[schemars(example = "server.crt")]
    pub(in crate::config) cert: Maybe<String>,
    /// PEM file with its key.
    #[schemars(required)]
    #[schemars(example = "server.key")]
    pub(in crate::config) key: Maybe<String>,
}

/// `server.tls.client_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ClientAuthMode {
    /// Whoever has none is refused.
    Require,
    /// Whoever has one must have a right one.
    Optional,
}

/// `[upstream.tls]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct UpstreamTls {
    /// PEM file with the authorities that sign the service's certificate; by default those that the system trusts.
    #[schemars(example = "service-ca.crt")]
    pub(in crate::config) ca_file: Maybe<String>,
    /// PEM file with the certificate that Weir shows to the service.
    #[schemars(example = "client.crt")]
    pub(in crate::config) cert: Maybe<String>,
    /// PEM file with its key.
    #[schemars(example = "client.key")]
    pub(in crate::config) key: Maybe<String>,
    /// Name that the service's certificate must have; by default the host of the URL.
    #[schemars(example = "app.example")]
    pub(in crate::config) server_name: Maybe<String>,
}

/// `[redis.tls]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RedisTls {
    /// PEM file with the authorities that sign Redis' certificate; by default those that the system trusts.
    #[schemars(example = "redis-ca.crt")]
    pub(in crate::config) ca_file: Maybe<String>,
    /// PEM file with the certificate that Weir shows to Redis.
    #[schemars(example = "client.crt")]
    pub(in crate::config) cert: Maybe<String>,
    /// PEM file with its key.
    #[schemars(example = "client.key")]
    pub(in crate::config) key: Maybe<String>,
    /// Name that Redis' certificate must have; by default the host that is connected to.
    #[schemars(example = "redis.example")]
    pub(in crate::config) server_name: Maybe<String>,
}
