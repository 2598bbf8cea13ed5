//! Path patterns: `/catalog/{id}`, `/{*path}`.
//!
//! A path is what stands between its slashes: `/a/b` is `a`, `b`; `/a/` is `a` and an empty segment, and so another path
//! than `/a`.

use super::{SyntaxError, path};

/// Most segments of one pattern: what bounds the depth of a router built from them.
pub const SEGMENTS: usize = 64;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    source: String,
    segments: Vec<Segment>,
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// Exactly this, normalised; empty behind a trailing slash.
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
    /// `/{*path}`: every path.
    pub fn everything() -> Self {
        Self { source: "/{*path}".to_owned(), segments: vec![Segment::Rest("path".to_owned())] }
    }

    /// Reads a pattern; its literal segments are normalised as paths are.
    ///
    /// # Errors
    /// What is not a path, or could never match one; a name that is no name, stands twice, shares its segment with
    /// something else or takes the rest before the end.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err(SyntaxError::new(
                format!("the pattern `{text}` does not begin with a slash"),
                format!("write \"/{text}\""),
            ));
        };
        let mut pattern = Self { source: text.to_owned(), segments: Vec::new() };
        for piece in inner.split('/') {
            if let Some(Segment::Rest(name)) = pattern.segments.last() {
                return Err(SyntaxError::new(
                    format!("something stands behind `{{*{name}}}`"),
                    format!("put `{{*{name}}}` at the end, or write `{{{name}}}` for one segment"),
                ));
            }
            let segment = Segment::parse(piece)?;
            let name = segment.name();
            if let Some(name) = name.filter(|name| pattern.names().any(|known| known == *name)) {
                return Err(SyntaxError::new(
                    format!("the name `{name}` stands twice"),
                    "give each part of the path a name of its own",
                ));
            }
            pattern.segments.push(segment);
        }
        let segments = &pattern.segments;
        if segments.len() > SEGMENTS {
            return Err(SyntaxError::new(
                format!("the pattern has {} segments", segments.len()),
                format!("write at most {SEGMENTS}"),
            ));
        }
        let empty = |segment: &Segment| matches!(segment, Segment::Literal(text) if text.is_empty());
        if segments.iter().rev().skip(1).any(empty) {
            return Err(SyntaxError::new("two slashes stand in a row", "write one"));
        }
        Ok(pattern)
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its segments; never none.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Names that it captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// The captures, if `path` (normalised) matches. What `{*name}` stands for has no slash in front.
    pub fn capture<'p>(&self, path: &'p str) -> Option<Captures<'p>> {
        let mut captures = Captures::default();
        let mut left = path.strip_prefix('/');
        for segment in &self.segments {
            if let Segment::Rest(name) = segment {
                captures.0.push((name.clone(), left.unwrap_or_default()));
                return path.starts_with('/').then_some(captures);
            }
            let (piece, behind) = split_first(left?);
            match segment {
                Segment::Literal(text) if text == piece => {}
                Segment::One(name) if !piece.is_empty() => captures.0.push((name.clone(), piece)),
                _ => return None,
            }
            left = behind;
        }
        left.is_none().then_some(captures)
    }
}

impl Segment {
    /// Name that it captures.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::One(name) | Self::Rest(name) => Some(name),
        }
    }

    fn parse(piece: &str) -> Result<Self, SyntaxError> {
        let Some(inner) = piece.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
            return Self::literal(piece);
        };
        let (name, rest) = match inner.strip_prefix('*') {
            Some(name) => (name, true),
            None => (inner, false),
        };
        if !super::is_name(name) {
            return Err(SyntaxError::new(
                format!("`{piece}` is no name for a part of the path"),
                "write one {name} or {*name} for a whole segment, of letters, digits, `_` and `-`",
            ));
        }
        Ok(if rest { Self::Rest(name.to_owned()) } else { Self::One(name.to_owned()) })
    }

    fn literal(piece: &str) -> Result<Self, SyntaxError> {
        let problem = if piece.contains(['{', '}']) {
            "holds a brace but is not one {name}: a name takes a whole segment"
        } else if piece.contains(['?', '#']) {
            "holds a query or fragment: a pattern is matched against the path alone"
        } else if piece.contains(char::is_whitespace) {
            "holds a space: paths spell it %20"
        } else if piece == "*" || piece == "**" {
            return Err(SyntaxError::new(
                format!("`{piece}` would match only itself"),
                "write {name} for one segment, {*name} for all that follow",
            ));
        } else {
            let whole = format!("/{piece}");
            match path::normalise(&whole) {
                Ok(normal) if !matches!(piece, "." | "..") => return Ok(Self::Literal(normal[1..].to_owned())),
                Ok(_) => "is a dot segment, which no normalised path holds",
                Err(ambiguity) => ambiguity.as_str(),
            }
        };
        Err(SyntaxError::new(
            format!("the segment `{piece}` cannot match: {problem}"),
            "write it as it stands in a normalised path, such as \"/catalog/{id}\"",
        ))
    }
}

/// The first segment of what stands behind a slash, and what stands behind the next one.
pub fn split_first(left: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'/', left.as_bytes()) {
        Some(at) => (&left[..at], Some(&left[at + 1..])),
        None => (left, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(pattern: &str, path: &str) -> Option<Vec<(String, String)>> {
        let captures = Pattern::parse(pattern).unwrap().capture(path)?;
        Some(captures.0.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
    }

    #[test]
    fn captures_by_segment() {
        for (pattern, path, expected) in [
            ("/", "/", Some(vec![])),
            ("/", "/a", None),
            ("/a", "/a", Some(vec![])),
            ("/a", "/a/", None),
            ("/a/", "/a/", Some(vec![])),
            ("/a/", "/a", None),
            ("/a", "/ab", None),
            ("/a/{id}", "/a/7", Some(vec![("id", "7")])),
            ("/a/{id}", "/a/", None),
            ("/a/{id}", "/a", None),
            ("/a/{id}", "/a/7/8", None),
            ("/{x}/b/{y}", "/1/b/2", Some(vec![("x", "1"), ("y", "2")])),
            ("/{*path}", "/", Some(vec![("path", "")])),
            ("/{*path}", "/a/b/", Some(vec![("path", "a/b/")])),
            ("/a/{*rest}", "/a", Some(vec![("rest", "")])),
            ("/a/{*rest}", "/a/", Some(vec![("rest", "")])),
            ("/a/{*rest}", "/a/b/c", Some(vec![("rest", "b/c")])),
            ("/a/{*rest}", "/ab", None),
            ("/{*path}", "*", None),
            ("/caf%c3%a9/{x}", "/caf%C3%A9/%20", Some(vec![("x", "%20")])),
            ("/café", "/caf%C3%A9", Some(vec![])),
            ("/%7ea", "/~a", Some(vec![])),
        ] {
            let expected =
                expected.map(|pairs| pairs.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Vec<_>>());
            assert_eq!(captured(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (pattern, part) in [
            ("", "begin with a slash"),
            ("a", "begin with a slash"),
            ("/a//b", "two slashes"),
            ("//", "two slashes"),
            ("/{*x}/b", "behind `{*x}`"),
            ("/{*x}/", "behind `{*x}`"),
            ("/{x}/{x}", "stands twice"),
            ("/{x}/{*x}", "stands twice"),
            ("/{}", "no name"),
            ("/{*}", "no name"),
            ("/{a b}", "no name"),
            ("/{a}{b}", "no name"),
            ("/x{a}", "whole segment"),
            ("/{a", "whole segment"),
            ("/a?b", "query"),
            ("/a#b", "query"),
            ("/a b", "%20"),
            ("/../a", "dot segment"),
            ("/./a", "dot segment"),
            ("/*", "only itself"),
            ("/a%2fb", "encoded slash"),
            ("/a%0", "percent sign"),
        ] {
            let error = Pattern::parse(pattern).unwrap_err();
            assert!(error.problem.contains(part), "{pattern}: {error}");
            assert!(!error.remedy.is_empty(), "{pattern}");
        }
        assert!(Pattern::parse(&"/a".repeat(SEGMENTS)).is_ok());
        assert!(Pattern::parse(&"/a".repeat(SEGMENTS + 1)).is_err());
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in "[/{}*a.%2e?é ]{0,16}", path in "[/a.%2e]{0,16}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert!(!pattern.segments().is_empty());
                if let Some(captures) = pattern.capture(&path) {
                    prop_assert!(captures.0.iter().all(|(name, _)| pattern.names().any(|known| known == name)));
                }
            }
        }

        #[test]
        fn every_normal_path_matches_itself_and_the_rest(path in "/([a-z~]{1,3}/){0,4}[a-z]{0,3}") {
            prop_assert!(Pattern::parse(&path).unwrap().capture(&path).is_some());
            let all = Pattern::parse("/{*all}").unwrap();
            prop_assert_eq!(all.capture(&path).unwrap().value("all"), Some(&path[1..]));
        }

        #[test]
        fn spellings_of_a_path_are_captured_alike(path in "/[ab.%2e/]{0,10}") {
            if let Ok(normal) = path::normalise(&path) {
                let pattern = Pattern::parse("/a/{x}/{*rest}").unwrap();
                let again = path::normalise(&normal).unwrap();
                prop_assert_eq!(pattern.capture(&normal), pattern.capture(&again));
            }
        }
    }
}
