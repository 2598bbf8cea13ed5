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
    /// What looks like one of them, misspelt, and would go out as it stands: in braces a single word of letters, digits, `_`
    /// and `-`, at least one letter among them, with or without blanks around it. JSON has nothing like it.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, SyntaxError> {
        let mut pieces = Vec::new();
        let (mut plain, mut left) = (0, 0);
        while let Some(at) = text[left..].find('{').map(|at| left + at) {
            left = at + 1;
            let Some((name, _)) = text[left..].split_once('}') else { break };
            if !is_word(name.trim_matches([' ', '\t'])) {
                continue;
            }
            let Some(blank) = known.iter().position(|known| *known == name) else {
                let all: Vec<String> = known.iter().map(|known| format!("{{{known}}}")).collect();
                let remedy = format!("write one of {}, or break the line behind a brace that is meant", all.join(", "));
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

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) && text.contains(char::is_alphabetic)
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
            ("{} { } {6} {2-4} {_}", "{} { } {6} {2-4} {_}"),
            (r#"{"limit"} {limit: 1} {a b} {a.b} {'limit'}"#, r#"{"limit"} {limit: 1} {a b} {a.b} {'limit'}"#),
            ("{\nmeant } {limit", "{\nmeant } {limit"),
        ] {
            assert_eq!(Blanks::parse(text, &KNOWN).unwrap().filled(&["L", "7"]), expected, "{text}");
        }
    }

    #[test]
    fn a_misspelt_blank_is_refused() {
        for word in [
            "retry_afer",
            "limt",
            "retryAfter",
            "Limit",
            "LIMIT",
            "retry-after",
            " limit ",
            "limit ",
            "\tlimit",
            "délai",
            "a1",
        ] {
            let error = Blanks::parse(&format!("in {{{word}}} s"), &KNOWN).expect_err(word);
            assert!(error.problem.ends_with(&format!("{{{word}}}")), "{error}");
            assert!(error.remedy.contains("{limit}, {retry_after}"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_has_no_blank_stays_as_it_is(text in "[^{]*([{][\":.\n][^{]*)*") {
            prop_assert_eq!(Blanks::parse(&text, &KNOWN).unwrap().filled(&["L", "7"]), text);
        }
    }
}
