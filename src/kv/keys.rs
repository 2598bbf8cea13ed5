//! Every key and channel, with its hash tag, the reason for it, and its TTL.

/// Builds the names under one namespace.
#[derive(Debug, Clone)]
pub struct Keys {
    namespace: String,
}

impl Keys {
    /// Names under `namespace`.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// A bucket: `{ns:l:scope:identity}`. `identity` is an HMAC in hex.
    pub fn bucket(&self, scope: &str, identity: &str) -> Vec<u8> {
        format!("{}:l:{scope}:{identity}", self.namespace).into_bytes()
    }
}
