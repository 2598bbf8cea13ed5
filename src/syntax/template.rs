//! Templates over a pattern's captures: `product:{id}`.

use super::SyntaxError;
use super::pattern::Captures;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    pieces: Vec<Piece>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(String),
}

impl Template {
    /// Reads a template; `{{` and `}}` are the braces themselves.
    ///
    /// # Errors
    /// An empty template, a brace without its other one, or a name that no pattern could have.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        if text.is_empty() {
            return Err(SyntaxError::new("the template is empty", "write text with names in braces: \"product:{id}\""));
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut left = text;
        while let Some(at) = left.find(['{', '}']) {
            plain.push_str(&left[..at]);
            let brace = &left[at..];
            if let Some(behind) = brace.strip_prefix("{{").or_else(|| brace.strip_prefix("}}")) {
                plain.push_str(&brace[..1]);
                left = behind;
                continue;
            }
            let Some((name, behind)) = brace.strip_prefix('{').and_then(|inner| inner.split_once('}')) else {
                return Err(SyntaxError::new(
                    format!("a brace in `{text}` has no other one"),
                    "write {name} for a part of the path, {{ or }} for a brace itself",
                ));
            };
            if !super::is_name(name) {
                return Err(SyntaxError::new(
                    format!("`{{{name}}}` names no part of a path"),
                    "write the name of a part of the route's path: \"product:{id}\"",
                ));
            }
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Name(name.to_owned()));
            left = behind;
        }
        plain.push_str(left);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self { source: text.to_owned(), pieces })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names that it needs, as often as they stand there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Name(name) => Some(name.as_str()),
        })
    }

    /// The text, with each name replaced by its capture as it stands in the path, escapes and all; a name without one
    /// leaves nothing.
    pub fn render(&self, captures: &Captures<'_>) -> String {
        let mut out = String::with_capacity(self.source.len() + 16);
        for piece in &self.pieces {
            out.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Name(name) => captures.value(name).unwrap_or_default(),
            });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn renders_captures_and_braces() {
        let captures = Captures(vec![("id".to_owned(), "a%20b"), ("rest".to_owned(), "x/y")]);
        for (text, names, expected) in [
            ("plain", vec![], "plain"),
            ("product:{id}", vec!["id"], "product:a%20b"),
            ("{id}{rest}", vec!["id", "rest"], "a%20bx/y"),
            ("{id}-{id}", vec!["id", "id"], "a%20b-a%20b"),
            ("{{{id}}}", vec!["id"], "{a%20b}"),
            ("{{id}}", vec![], "{id}"),
            ("{other}.", vec!["other"], "."),
            ("/catalog?*", vec![], "/catalog?*"),
        ] {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.names().collect::<Vec<_>>(), names, "{text}");
            assert_eq!(template.render(&captures), expected, "{text}");
            assert_eq!(template.source(), text);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for text in ["", "{", "}", "a{id", "id}", "{}", "{*rest}", "{a b}", "{a{b}}"] {
            let error = Template::parse(text).unwrap_err();
            assert!(!error.problem.is_empty() && !error.remedy.is_empty(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in "[{}ab*é ]{0,16}") {
            if let Ok(template) = Template::parse(&text) {
                template.render(&Captures::default());
            }
        }

        #[test]
        fn text_with_doubled_braces_is_itself(text in "[{}a é]{1,16}") {
            let doubled = text.replace('{', "{{").replace('}', "}}");
            let template = Template::parse(&doubled).unwrap();
            prop_assert_eq!(template.render(&Captures::default()), text);
        }
    }
}
