//! Templates over a pattern's captures: `product:{id}`.

use super::SyntaxError;
use super::pattern::Captures;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
}

impl Template {
    /// Reads a template; `{{` and `}}` are the braces themselves.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        Ok(Self { source: text.to_owned() })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names that it needs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// The text, with each name replaced by its capture.
    pub fn render(&self, captures: &Captures<'_>) -> String {
        let _ = captures;
        self.source.clone()
    }
}
