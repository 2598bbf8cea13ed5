//! Path patterns: `/catalog/{id}`, `/{*path}`.

use super::SyntaxError;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    source: String,
    segments: Vec<Segment>,
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// Exactly this.
    Literal(String),
    /// `{name}`: one non-empty segment.
    One(String),
    /// `{*name}`: zero or more segments; the last one only.
    Rest(String),
}

/// What a pattern's names stand for in one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures<'p>(pub Vec<(String, &'p str)>);

impl<'p> Captures<'p> {
    /// The value of `name`.
    pub fn value(&self, name: &str) -> Option<&'p str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        Ok(Self { source: text.to_owned(), segments: Vec::new() })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Names that it captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(name.as_str()),
        })
    }

    /// The captures, if `path` (normalised) matches.
    pub fn capture<'p>(&self, path: &'p str) -> Option<Captures<'p>> {
        let _ = path;
        None
    }
}
