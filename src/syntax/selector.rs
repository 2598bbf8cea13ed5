//! Selectors: what an invalidation names.

use serde::{Deserialize, Serialize};

use super::SyntaxError;

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

impl Order {
    /// The selectors, parsed and normalised.
    ///
    /// # Errors
    /// An empty order, too many selectors, or one that cannot be read.
    pub fn selectors(&self) -> Result<Vec<Selector>, SyntaxError> {
        Err(SyntaxError::new("not yet", ""))
    }
}
