//! Why a request goes past the cache, or its answer is not stored: closed sets, with one text each.

/// Why a request goes past the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Neither GET nor HEAD.
    Method,
    /// A GET or HEAD with a body: the upstream may answer by it, and it is no part of the key.
    Body,
    /// A field that names another method.
    MethodOverride,
    /// A precondition that only the upstream may evaluate (`If-Match`, `If-Unmodified-Since`; RFC 9111 section 4.3.2).
    Precondition,
    /// Another protocol is wanted.
    Upgrade,
    /// The client's own `no-store`, where it is honoured.
    NoStore,
}

impl Bypass {
    /// Every value, in order.
    pub const ALL: &'static [Self] =
        &[Self::Method, Self::Body, Self::MethodOverride, Self::Precondition, Self::Upgrade, Self::NoStore];

    /// Text in headers, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "request-body",
            Self::MethodOverride => "method-override",
            Self::Precondition => "precondition",
            Self::Upgrade => "upgrade",
            Self::NoStore => "request-no-store",
        }
    }

    /// Where it is laid down: a section of a standard, or of this project's documentation.
    pub fn clause(self) -> &'static str {
        match self {
            Self::Method => "RFC 9111, 4 (the method allows its use)",
            Self::Body => "RFC 9110, 9.3.1 (the content of a GET has no meaning that all agree on)",
            Self::MethodOverride | Self::Upgrade => "docs/caching.md: which requests",
            Self::Precondition => "RFC 9111, 4.3.2 (only the origin evaluates it)",
            Self::NoStore => "RFC 9111, 5.2.1.5 (client_directives = \"honor\")",
        }
    }
}

/// Why an answer is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The request was no GET.
    Method,
    /// A status that lies in the one request, its connection or its credentials.
    Status,
    /// A part of a representation.
    Partial,
    /// A status that is not understood, and `must-understand`.
    NotUnderstood,
    /// `no-store`.
    NoStore,
    /// `private`.
    Private,
    /// It sets a cookie.
    SetCookie,
    /// The request was authorised and the answer not marked as shareable (RFC 9111 section 3.5).
    Authorization,
    /// The request carried credentials, and the upstream gave no lifetime.
    Credentials,
    /// `Vary: *`.
    VaryStar,
    /// `Vary` names more fields than a variant may have, or cannot be read.
    Vary,
    /// More or longer tags than may be stored.
    TooManyTags,
    /// A server error without a lifetime of its own.
    ServerError,
    /// No lifetime, and nothing to validate it by.
    NoFreshness,
}

impl Refusal {
    /// Every value, in order.
    pub const ALL: &'static [Self] = &[
        Self::Method,
        Self::Status,
        Self::Partial,
        Self::NotUnderstood,
        Self::NoStore,
        Self::Private,
        Self::SetCookie,
        Self::Authorization,
        Self::Credentials,
        Self::VaryStar,
        Self::Vary,
        Self::TooManyTags,
        Self::ServerError,
        Self::NoFreshness,
    ];

    /// Text in headers, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::Partial => "partial",
            Self::NotUnderstood => "not-understood",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::Authorization => "authorization",
            Self::Credentials => "credentials",
            Self::VaryStar => "vary-star",
            Self::Vary => "vary",
            Self::TooManyTags => "too-many-tags",
            Self::ServerError => "server-error",
            Self::NoFreshness => "no-freshness",
        }
    }

    /// Where it is laid down: a section of a standard, or of this project's documentation.
    pub fn clause(self) -> &'static str {
        match self {
            Self::Method => "RFC 9111, 3 (the method is understood to be cacheable)",
            Self::Status => "docs/caching.md: what is stored (it answers what one client sent)",
            Self::Partial => "RFC 9111, 3.3 (a part must not become a whole)",
            Self::NotUnderstood => "RFC 9111, 5.2.2.3 (must-understand)",
            Self::NoStore => "RFC 9111, 5.2.2.5 (no-store)",
            Self::Private => "RFC 9111, 5.2.2.7 (private)",
            Self::SetCookie => "docs/caching.md: cookies (RFC 9111, 7.3)",
            Self::Authorization => "RFC 9111, 3.5 (needs public, must-revalidate or s-maxage)",
            Self::Credentials => "docs/caching.md: credentials",
            Self::VaryStar => "RFC 9111, 4.1 (Vary: * matches no request)",
            Self::Vary => "docs/caching.md: vary (16 fields that can be read)",
            Self::TooManyTags => "docs/caching.md: what is stored (128 tags of 256 bytes)",
            Self::ServerError => "docs/caching.md: what is stored (a failure is not the page)",
            Self::NoFreshness => "RFC 9111, 3 (a lifetime, or something that makes it useful without one)",
        }
    }

    /// Whether the next request for the same key is likely to meet it too, so that it is worth remembering. What lies in
    /// one request, or in one failure, is not: it would let one client send everybody past the cache.
    pub fn lies_in_the_resource(self) -> bool {
        match self {
            Self::Method
            | Self::Status
            | Self::Partial
            | Self::Authorization
            | Self::Credentials
            | Self::ServerError => false,
            Self::NotUnderstood
            | Self::NoStore
            | Self::Private
            | Self::SetCookie
            | Self::VaryStar
            | Self::Vary
            | Self::TooManyTags
            | Self::NoFreshness => true,
        }
    }
}
