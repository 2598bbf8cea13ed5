//! What a request asks for, in the one form that is routed, keyed, limited and forwarded.

use std::borrow::Cow;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, header};

use super::client::Scheme;
use crate::config::{QueryKeep, QueryRule};
use crate::syntax::path::{self, Ambiguity};
use crate::syntax::query;

/// Host, path and query; what was in that form already is shared with the request, not copied.
#[derive(Clone)]
pub struct Target {
    scheme: Scheme,
    host_value: HeaderValue,
    host: Option<String>,
    uri: Uri,
    path: Option<String>,
    query: Option<Option<String>>,
    ambiguity: Option<Ambiguity>,
}

impl Target {
    /// The target of a request whose client spoke `scheme`.
    ///
    /// The authority is HTTP/2's `:authority` or HTTP/1's `Host`; the server has seen to it that there is one.
    pub fn of(parts: &Parts, scheme: Scheme) -> Self {
        let authority = parts.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        let host_value = authority.or_else(|| parts.headers.get(header::HOST).cloned());
        let host_value = host_value.unwrap_or_else(|| HeaderValue::from_static(""));
        let text = host_value.to_str().unwrap_or_default();
        let host = text.bytes().any(|b| b.is_ascii_uppercase()).then(|| text.to_ascii_lowercase());
        let (path, ambiguity) = match path::normalise(parts.uri.path()) {
            Ok(Cow::Borrowed(_)) => (None, None),
            Ok(Cow::Owned(path)) => (Some(path), None),
            Err(ambiguity) => (None, Some(ambiguity)),
        };
        Self { scheme, host_value, host, uri: parts.uri.clone(), path, query: None, ambiguity }
    }

    /// Drops and sorts parameters as the route's rule has it.
    pub fn keep_query(&mut self, rule: &QueryRule) {
        let keeps_all = matches!(rule.keep, QueryKeep::All);
        let Some(raw) = self.uri.query() else { return };
        if raw.is_empty() {
            self.query = Some(None);
        }
        if !rule.sort && keeps_all {
            return;
        }
        let keep = |name: &str| match &rule.keep {
            QueryKeep::All => true,
            QueryKeep::Except(globs) => !globs.iter().any(|glob| glob.matches(name)),
            QueryKeep::Only(globs) => globs.iter().any(|glob| glob.matches(name)),
        };
        if let Cow::Owned(kept) = query::filter(raw, keep, rule.sort) {
            self.query = Some(Some(kept).filter(|kept| !kept.is_empty()));
        }
    }

    /// The scheme that the client spoke.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Lower-case authority, without the scheme's default port.
    pub fn host(&self) -> &str {
        let host = self.host.as_deref().unwrap_or_else(|| self.host_value.to_str().unwrap_or_default());
        let port = match self.scheme {
            Scheme::Http => ":80",
            Scheme::Https => ":443",
        };
        host.strip_suffix(port).unwrap_or(host)
    }

    /// The authority as it came.
    pub fn host_value(&self) -> &HeaderValue {
        &self.host_value
    }

    /// Normalised path.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_else(|| self.uri.path())
    }

    /// Query, without what the route drops.
    pub fn query(&self) -> Option<&str> {
        match &self.query {
            Some(query) => query.as_deref(),
            None => self.uri.query(),
        }
    }

    /// Why the path has no one form.
    pub fn ambiguity(&self) -> Option<Ambiguity> {
        self.ambiguity
    }

    /// Origin form, as it is forwarded.
    pub fn origin_form(&self) -> Uri {
        if self.path.is_none() && self.query.is_none() && self.uri.authority().is_none() {
            return self.uri.clone();
        }
        let mut text = self.path().to_owned();
        if let Some(query) = self.query() {
            text.push('?');
            text.push_str(query);
        }
        PathAndQuery::try_from(text).map_or_else(|_| self.uri.clone(), Uri::from)
    }
}
