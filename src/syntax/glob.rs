//! Names with one `*` at the end: `utm_*`.

use std::fmt;

use super::SyntaxError;

/// A parameter name, or a prefix of names ending in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    open: bool,
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.open { "*" } else { "" })
    }
}

impl Glob {
    /// Reads `name` or `prefix*`.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let (text, open) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if text.contains('*') {
            return Err(SyntaxError::new("`*` stands inside the name", "put one `*` at the end: \"utm_*\""));
        }
        if text.is_empty() && !open {
            return Err(SyntaxError::new("the name is empty", "write a parameter name, or \"prefix*\""));
        }
        Ok(Self { text: text.to_owned(), open })
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.text) } else { name == self.text }
    }
}
