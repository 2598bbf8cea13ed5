//! Text with blanks to fill in: `Try again in {retry_after} s.` Other braces stand for themselves, as JSON has them.

use super::SyntaxError;

/// Text with blanks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blanks(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// By its place in the list of known ones.
    Blank(usize),
}

impl Blanks {
    /// Reads a text whose blanks have the names `known`.
    ///
    /// # Errors
    /// Lower-case letters and `_` in braces that are none of them: else a misspelt one would go out as it stands.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, SyntaxError> {
        let mut pieces = Vec::new();
        let (mut plain, mut left) = (0, 0);
        while let Some(at) = text[left..].find('{').map(|at| left + at) {
            left = at + 1;
            let Some((name, _)) = text[left..].split_once('}') else { break };
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                continue;
            }
            let Some(blank) = known.iter().position(|known| *known == name) else {
                let all: Vec<String> = known.iter().map(|known| format!("{{{known}}}")).collect();
                let remedy = format!("write one of {}, or a space behind a brace that is meant", all.join(", "));
                return Err(SyntaxError::new(format!("nothing is known that would stand for {{{name}}}"), remedy));
            };
            if plain < at {
                pieces.push(Piece::Text(text[plain..at].into()));
            }
            pieces.push(Piece::Blank(blank));
            left += name.len() + 1;
            plain = left;
        }
        if plain < text.len() {
            pieces.push(Piece::Text(text[plain..].into()));
        }
        Ok(Self(pieces))
    }

    /// The text, each blank filled with what `fill` has for its place in the list.
    pub fn filled(&self, fill: &[&str]) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Blank(at) => fill.get(*at).copied().unwrap_or_default().to_owned(),
        };
        self.0.iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 2] = ["limit", "retry_after"];

    #[test]
    fn blanks_are_filled_and_other_braces_stand() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{limit}", "L"),
            ("{limit}{retry_after}.", "L7."),
            (r#"{"error": {"limit": "{limit}", "wait": {retry_after}}}"#, r#"{"error": {"limit": "L", "wait": 7}}"#),
            ("{{limit}}", "{L}"),
            ("p { color: red } {", "p { color: red } {"),
            ("{} {1} {Limit}", "{} {1} {Limit}"),
        ] {
            assert_eq!(Blanks::parse(text, &KNOWN).unwrap().filled(&["L", "7"]), expected, "{text}");
        }
    }

    #[test]
    fn a_misspelt_blank_is_refused() {
        let error = Blanks::parse("in {retry_afer} s", &KNOWN).unwrap_err();
        assert!(error.problem.contains("{retry_afer}") && error.remedy.contains("{retry_after}"), "{error}");
    }

    proptest! {
        #[test]
        fn what_has_no_blank_stays_as_it_is(text in "[^{]*([{][^a-z_}][^{]*)*") {
            prop_assert_eq!(Blanks::parse(&text, &KNOWN).unwrap().filled(&["L", "7"]), text);
        }
    }
}
