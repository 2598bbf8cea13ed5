//! Selectors: what an invalidation names.

use serde::{Deserialize, Serialize};

use super::{SyntaxError, path};

/// What one invalidation names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A URL with all its variants.
    Url(UrlSelector),
    /// A tag (surrogate key).
    Tag(String),
    /// A path prefix, on segment bounds or as written if it ends in `/`.
    Prefix(String),
    /// Everything that a route stored.
    Route(String),
    /// Everything.
    All,
}

/// A URL selector: `/path`, `/path?query`, `/path?*`, or the same behind `http://host`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UrlSelector {
    /// Lower-case authority, or any host.
    pub host: Option<String>,
    /// Normalised path.
    pub path: String,
    /// Which queries.
    pub query: UrlQuery,
}

/// The query of a URL selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UrlQuery {
    /// This one, or none at all.
    Exact(Option<String>),
    /// Any, none included.
    Any,
}

/// Closed set of selector kinds, for labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectorKind {
    /// A URL.
    Url,
    /// A tag.
    Tag,
    /// A prefix.
    Prefix,
    /// A route.
    Route,
    /// Everything.
    All,
}

impl SelectorKind {
    /// Label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Tag => "tag",
            Self::Prefix => "prefix",
            Self::Route => "route",
            Self::All => "all",
        }
    }
}

impl Selector {
    /// Its kind.
    pub fn kind(&self) -> SelectorKind {
        match self {
            Self::Url(_) => SelectorKind::Url,
            Self::Tag(_) => SelectorKind::Tag,
            Self::Prefix(_) => SelectorKind::Prefix,
            Self::Route(_) => SelectorKind::Route,
            Self::All => SelectorKind::All,
        }
    }
}

/// One invalidation as doors, bus and log carry it: the JSON of the admin API's `POST /invalidate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    /// URL selectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Path prefixes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Names of routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// Everything.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Mark stale instead of gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
}

/// Most selectors that one order may hold.
pub const SELECTORS_PER_ORDER: usize = 1024;
/// Longest tag and route name, in bytes.
pub const NAME_BYTES: usize = 256;
/// Longest URL or prefix, in bytes: no request head is as large by default.
pub const URL_BYTES: usize = 32 * 1024;
/// Longest message in its JSON form, in bytes: bounds what a publisher can make every pod parse.
pub const MESSAGE_BYTES: usize = 1024 * 1024;

impl Order {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        let lists = [&self.urls, &self.tags, &self.prefixes, &self.routes];
        !self.all && lists.iter().all(|list| list.is_empty())
    }

    /// Reads the JSON form; what it names is read by [`Order::selectors`].
    ///
    /// # Errors
    /// Longer than [`MESSAGE_BYTES`], no JSON, or another shape.
    pub fn parse_message(bytes: &[u8]) -> Result<Self, SyntaxError> {
        if bytes.len() > MESSAGE_BYTES {
            return Err(SyntaxError::new(
                format!("the message is {} bytes long", bytes.len()),
                format!("send at most {MESSAGE_BYTES}, or a tag, prefix or route for many URLs at once"),
            ));
        }
        let refuse = |problem: &str| {
            SyntaxError::new(
                format!("the message cannot be read: {problem}"),
                "send an object with lists of strings, such as {\"tags\":[\"product:7\"]}",
            )
        };
        // serde takes a list for a struct, field by field.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(refuse("it is no JSON object"));
        }
        serde_json::from_slice(bytes).map_err(|error| refuse(&shown(&error.to_string())))
    }

    /// The selectors, parsed and normalised.
    ///
    /// # Errors
    /// An empty order, too many selectors, or one that cannot be read.
    pub fn selectors(&self) -> Result<Vec<Selector>, SyntaxError> {
        let count = self.urls.len() + self.tags.len() + self.prefixes.len() + self.routes.len() + usize::from(self.all);
        if count == 0 {
            return Err(SyntaxError::new(
                "the order names nothing",
                "name urls, tags, prefixes or routes, or set `all` to true",
            ));
        }
        if count > SELECTORS_PER_ORDER {
            return Err(SyntaxError::new(
                format!("the order has {count} selectors"),
                format!("send at most {SELECTORS_PER_ORDER}, or a tag, prefix or route for many URLs at once"),
            ));
        }
        let mut selectors = Vec::with_capacity(count);
        for url in &self.urls {
            selectors.push(Selector::Url(UrlSelector::parse(url)?));
        }
        for tag in &self.tags {
            check_tag(tag)?;
            selectors.push(Selector::Tag(tag.clone()));
        }
        for prefix in &self.prefixes {
            selectors.push(Selector::Prefix(parse_prefix(prefix)?));
        }
        for route in &self.routes {
            check_route(route)?;
            selectors.push(Selector::Route(route.clone()));
        }
        if self.all {
            selectors.push(Selector::All);
        }
        Ok(selectors)
    }
}

impl UrlSelector {
    /// Reads `/path`, `/path?query`, `/path?*`, or the same behind `http://host` or `https://host`. The host is put in
    /// lower case and loses its scheme's default port, the path is normalised, the query stays; an empty one is none.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let refuse = |problem: &str| {
            Err(SyntaxError::new(
                format!("the URL {} {problem}", shown(text)),
                "write \"/path\", \"/path?query\", \"/path?*\", or the same behind \"http://host\"",
            ))
        };
        if text.len() > URL_BYTES {
            return refuse("is too long");
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return refuse("holds a space or control character");
        }
        if text.contains('#') {
            return refuse("has a fragment");
        }
        let (host, target) = match split_origin(text) {
            Some((authority, target, default_port)) => match host(authority, default_port) {
                Some(host) => (Some(host), if target.is_empty() { "/" } else { target }),
                None => return refuse("has no host that a request could have"),
            },
            None => (None, text),
        };
        let (path, query) = match target.split_once('?') {
            None | Some((_, "")) => (target.trim_end_matches('?'), UrlQuery::Exact(None)),
            Some((path, "*")) => (path, UrlQuery::Any),
            Some((path, query)) => (path, UrlQuery::Exact(Some(query.to_owned()))),
        };
        let path = match path {
            "" if host.is_some() => "/",
            path if path.starts_with('/') => path,
            _ => return refuse("is neither a path nor an http URL"),
        };
        match path::normalise(path) {
            Ok(path) => Ok(Self { host, path: path.into_owned(), query }),
            Err(ambiguity) => refuse(&format!("holds {}", ambiguity.as_str())),
        }
    }
}

/// Authority and target of an absolute URL, and its scheme's default port.
fn split_origin(text: &str) -> Option<(&str, &str, &'static str)> {
    let (scheme, rest) = text.split_once("://")?;
    let default_port = if scheme.eq_ignore_ascii_case("http") {
        ":80"
    } else if scheme.eq_ignore_ascii_case("https") {
        ":443"
    } else {
        return None;
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Some((authority, target, default_port))
}

/// An authority as requests are keyed by it.
fn host(authority: &str, default_port: &str) -> Option<String> {
    let parsed: http::uri::Authority = authority.parse().ok()?;
    if parsed.host().is_empty() || authority.contains('@') {
        return None;
    }
    let lower = authority.to_ascii_lowercase();
    Some(lower.strip_suffix(default_port).unwrap_or(&lower).to_owned())
}

/// Reads the beginning of a path.
///
/// # Errors
/// Anything else.
pub fn parse_prefix(text: &str) -> Result<String, SyntaxError> {
    let refuse = |problem: &str| {
        Err(SyntaxError::new(
            format!("the prefix {} {problem}", shown(text)),
            "write the beginning of a path, such as \"/catalog\" or \"/catalog/\"",
        ))
    };
    if text.len() > URL_BYTES {
        return refuse("is too long");
    }
    if !text.starts_with('/') {
        return refuse("does not begin with a slash");
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '?' || c == '#') {
        return refuse("holds something that no path holds");
    }
    if text.ends_with("/*") {
        return refuse("ends in a star that would mean only itself");
    }
    match path::normalise(text) {
        Ok(path) => Ok(path.into_owned()),
        Err(ambiguity) => refuse(&format!("holds {}", ambiguity.as_str())),
    }
}

/// Whether `tag` can be one: what the headers that carry tags can hold.
///
/// # Errors
/// Empty, longer than [`NAME_BYTES`], or not printable ASCII without spaces.
pub fn check_tag(tag: &str) -> Result<(), SyntaxError> {
    let problem = if tag.is_empty() {
        "is empty"
    } else if tag.len() > NAME_BYTES {
        "is too long"
    } else if !tag.bytes().all(|byte| byte.is_ascii_graphic()) {
        "is not printable ASCII without spaces"
    } else {
        return Ok(());
    };
    Err(SyntaxError::new(
        format!("the tag {} {problem}", shown(tag)),
        format!("write 1 to {NAME_BYTES} printable ASCII characters without spaces, such as \"product:7\""),
    ))
}

fn check_route(name: &str) -> Result<(), SyntaxError> {
    if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        return Err(SyntaxError::new(
            format!("{} can be no route's name", shown(name)),
            "write the name of a route as it stands in the configuration",
        ));
    }
    Ok(())
}

/// `text` as it may stand in an answer or log line: quoted, escaped, and of bounded length.
fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests;
