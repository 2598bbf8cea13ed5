//! What a request asks for, in the one form that is routed, keyed, limited and forwarded.

use std::borrow::Cow;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, header};

use super::client::Scheme;
use crate::config::{QueryKeep, QueryRule};
use crate::syntax::path::{self, Ambiguity};
use crate::syntax::query;

fn is_scheme(text: &str) -> bool {
    text.strip_suffix(':').is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// A path's one form where it is not in it already, or why it has none.
fn normal(uri: &Uri) -> (Option<String>, Option<Ambiguity>) {
    match path::normalise(uri.path()) {
        Ok(Cow::Borrowed(_)) => (None, None),
        Ok(Cow::Owned(path)) => (Some(path), None),
        Err(ambiguity) => (None, Some(ambiguity)),
    }
}

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
        let (path, ambiguity) = normal(&parts.uri);
        Self { scheme, host_value, host, uri: parts.uri.clone(), path, query: None, ambiguity }
    }

    /// What `reference`, in an answer to a request for this, refers to (RFC 3986 section 4.2), if that is of the same
    /// origin.
    pub fn refer(&self, reference: &str) -> Option<Self> {
        let reference = reference.split('#').next().unwrap_or_default();
        let behind = match reference.split_once("//") {
            Some((scheme, rest)) if scheme.is_empty() || is_scheme(scheme) => {
                let (authority, behind) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                let scheme = if scheme.is_empty() { self.scheme.as_str() } else { &scheme[..scheme.len() - 1] };
                let default_port = if self.scheme == Scheme::Https { ":443" } else { ":80" };
                let authority = authority.to_ascii_lowercase();
                let host = authority.strip_suffix(default_port).unwrap_or(&authority);
                if !scheme.eq_ignore_ascii_case(self.scheme.as_str()) || host != self.host() {
                    return None;
                }
                Cow::Owned(if behind.starts_with('/') { behind.to_owned() } else { format!("/{behind}") })
            }
            _ if reference.is_empty() => return Some(self.clone()),
            _ if reference.starts_with('/') => Cow::Borrowed(reference),
            _ if reference.starts_with('?') => Cow::Owned(format!("{}{reference}", self.path())),
            // Another scheme without an authority, `mailto:` for one.
            _ if reference.split(['/', '?']).next().is_some_and(|first| first.contains(':')) => return None,
            _ => {
                let directory = &self.path()[..self.path().rfind('/')? + 1];
                Cow::Owned(format!("{directory}{reference}"))
            }
        };
        let uri = Uri::from(PathAndQuery::try_from(behind.as_ref()).ok()?);
        let (path, ambiguity) = normal(&uri);
        Some(Self { uri, path, query: None, ambiguity, ..self.clone() })
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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn references_stay_within_the_origin() {
        let (parts, ()) = Request::get("/a/b?c=d").header("host", "Shop.example:80").body(()).unwrap().into_parts();
        let target = Target::of(&parts, Scheme::Http);
        for (reference, expected) in [
            ("/x?y=z", Some("/x?y=z")),
            ("x", Some("/a/x")),
            ("../x/./y#fragment", Some("/x/y")),
            ("?y", Some("/a/b?y")),
            ("", Some("/a/b?c=d")),
            ("#fragment", Some("/a/b?c=d")),
            ("http://shop.example", Some("/")),
            ("HTTP://SHOP.example:80/x", Some("/x")),
            ("//shop.example/x", Some("/x")),
            ("x?to=http://other.example/", Some("/a/x?to=http://other.example/")),
            ("https://shop.example/x", None),
            ("http://shop.example:8080/x", None),
            ("http://other.example/x", None),
            ("//other.example/x", None),
            ("http://user@shop.example/x", None),
            ("mailto:me", None),
            ("/x y", None),
        ] {
            let found = target.refer(reference).map(|found| found.origin_form().to_string());
            assert_eq!(found.as_deref(), expected, "{reference}");
        }
    }
}
