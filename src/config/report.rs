//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;
use std::ops::Range;

/// Longest source line that is shown under a problem, in characters.
const SNIPPET_CHARS: usize = 160;

/// Keys that hold a secret themselves; they are allowed in the environment only, and not shown from anywhere.
const SECRET_KEYS: [&str; 3] = ["password", "token", "key_secret"];

/// Whether a problem stops Weir.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is taken, but probably not what was meant.
    Warning,
}

impl Severity {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Where a setting was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file; line and column count from 1, columns in characters.
    File {
        /// As it was named to Weir.
        name: String,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In the file as a whole.
    Whole(String),
    /// On the command line or in the environment: `--set server.listen`, `WEIR__SERVER__LISTEN`.
    Override(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Whole(text) | Self::Override(text) => f.write_str(text),
        }
    }
}

/// The line of a problem, and which part of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet {
    /// The whole line, passwords in URLs masked.
    pub text: String,
    /// Characters before the part that is meant.
    pub start: usize,
    /// Characters of that part, at least 1.
    pub length: usize,
}

/// One thing that is wrong, or worth a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops Weir.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub text: String,
    /// What to write instead.
    pub remedy: String,
    /// The line itself, where there is one to show.
    pub snippet: Option<Snippet>,
    /// Whether the file that a setting names is at fault, and not what is written.
    pub is_file: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}: {}", self.place, self.severity.as_str(), self.text)?;
        if let (Some(snippet), Place::File { line, .. }) = (&self.snippet, &self.place) {
            let number = line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(f, "{gutter} |")?;
            writeln!(f, "{number} | {}", snippet.text.trim_end())?;
            writeln!(f, "{gutter} | {}{}", " ".repeat(snippet.start), "^".repeat(snippet.length))?;
        }
        writeln!(f, "help: {}", self.remedy)
    }
}

/// Every problem of one configuration, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The problems.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// How many problems stop Weir.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    /// Whether the configuration may be right, and only files with certificates or keys cannot be used.
    pub fn is_of_files(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error || problem.is_file)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Bytes of a text, from and to. Values of overrides have spans behind the end of the file's text.
pub(super) type Span = Range<usize>;

/// The file and the overrides, and which span belongs to what.
#[derive(Debug)]
pub(super) struct Sources<'t> {
    name: &'t str,
    text: &'t str,
    overrides: Vec<Extra>,
}

/// One override: a label for its place, and its value as it was given.
#[derive(Debug)]
struct Extra {
    label: String,
    value: String,
    from_environment: bool,
}

impl<'t> Sources<'t> {
    /// The file `name` with `text`, no override yet.
    pub(super) fn new(name: &'t str, text: &'t str) -> Self {
        Self { name, text, overrides: Vec::new() }
    }

    /// Takes one override in, and gives the span that stands for it.
    pub(super) fn add(&mut self, label: &str, value: &str, from_environment: bool) -> Span {
        let start = self.first_extra() + self.overrides.len();
        self.overrides.push(Extra { label: label.to_owned(), value: value.to_owned(), from_environment });
        start..start + 1
    }

    /// The value as it was given, if `span` belongs to an override.
    pub(super) fn override_text(&self, span: &Span) -> Option<&str> {
        self.extra(span).map(|extra| extra.value.as_str())
    }

    /// Whether `span` belongs to a variable of the environment.
    pub(super) fn is_environment(&self, span: &Span) -> bool {
        self.extra(span).is_some_and(|extra| extra.from_environment)
    }

    /// A problem at `span`; without one, of the file as a whole.
    pub(super) fn problem(
        &self,
        severity: Severity,
        span: Option<&Span>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        let (place, snippet) = match span {
            None => (Place::Whole(self.name.to_owned()), None),
            Some(span) => match self.extra(span) {
                Some(extra) => (Place::Override(extra.label.clone()), None),
                None => self.locate(span),
            },
        };
        Problem { severity, place, text: text.into(), remedy: remedy.into(), snippet, is_file: false }
    }

    /// One past the end of the text, so that a span at its very end still belongs to the file.
    fn first_extra(&self) -> usize {
        self.text.len() + 1
    }

    fn extra(&self, span: &Span) -> Option<&Extra> {
        span.start.checked_sub(self.first_extra()).and_then(|index| self.overrides.get(index))
    }

    fn locate(&self, span: &Span) -> (Place, Option<Snippet>) {
        let start = self.floor(span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let end = self.floor(span.end).clamp(start, line_end.max(start));
        let before = self.text[line_start..start].chars().count();
        let line = self.text[..line_start].matches('\n').count() + 1;
        let place = Place::File { name: self.name.to_owned(), line, column: before + 1 };
        let source = &self.text[line_start..line_end];
        if source.chars().count() > SNIPPET_CHARS {
            return (place, None);
        }
        let length = self.text[start..end].chars().count().max(1);
        (place, Some(Snippet { text: mask(source), start: before, length }))
    }

    /// `at`, or the nearest character boundary of the text before it.
    fn floor(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        (0..=at).rev().find(|&index| self.text.is_char_boundary(index)).unwrap_or(0)
    }
}

/// The line with secrets starred out, character by character, so that columns still fit: whatever stands between `://` and
/// `@`, and whatever follows a key that holds a secret itself.
fn mask(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut index = 0;
    while index < chars.len() {
        let rest = &chars[index..];
        if rest.starts_with(&[':', '/', '/']) {
            let to = rest.iter().position(|c| matches!(c, '"' | '\'')).unwrap_or(rest.len());
            if let Some(at) = rest[3.min(to)..to].iter().rposition(|&c| c == '@') {
                chars[index + 3..index + 3 + at].fill('*');
            }
            index += 3;
        } else if rest.starts_with(&['p', 'a', 's', 's', '=']) {
            let to = rest.iter().position(|c| matches!(c, '"' | '\'' | '&')).unwrap_or(rest.len());
            chars[index + 5..index + to.max(5)].fill('*');
            index += to.max(5);
        } else if let Some(value) = secret_value(rest) {
            chars[index + value..].iter_mut().filter(|c| **c != ' ').for_each(|c| *c = '*');
            break;
        } else {
            index += 1;
        }
    }
    chars.into_iter().collect()
}

/// Where the value begins, if `rest` begins with a key that holds a secret, and `=`.
fn secret_value(rest: &[char]) -> Option<usize> {
    let key = SECRET_KEYS.iter().find(|key| key.chars().eq(rest.iter().copied().take(key.len())))?;
    let equals = rest[key.len()..].iter().position(|c| !matches!(c, ' ' | '"' | '\''))?;
    (rest[key.len() + equals] == '=').then_some(key.len() + equals + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_among_the_parameters_of_an_address_is_starred_out() {
        assert_eq!(mask("url = \"unix:///r?pass=s3cret&db=a\""), "url = \"unix:///r?pass=******&db=a\"");
        assert_eq!(mask("url = \"redis://u:p@h?pass=x\" # y"), "url = \"redis://***@h?pass=*\" # y");
    }

    #[test]
    fn a_problem_is_shown_with_its_line() {
        let sources = Sources::new("weir.toml", "a = 1\nurl = \"redis://:päss@h\" # x\n");
        let problem = sources.problem(Severity::Error, Some(&(6..9)), "no", "write it so");
        assert_eq!(
            problem.to_string(),
            "weir.toml:2:1: error: no\n  |\n2 | url = \"redis://*****@h\" # x\n  | ^^^\nhelp: write it so\n"
        );
    }

    #[test]
    fn spans_outside_of_the_text_are_survived() {
        let sources = Sources::new("f", "é");
        for span in [0..0, 1..1, 0..9, 1..2, 2..2] {
            assert!(sources.problem(Severity::Error, Some(&span), "", "").to_string().starts_with("f:1:"));
        }
    }

    #[test]
    fn overrides_have_places_of_their_own() {
        let mut sources = Sources::new("f", "a");
        let first = sources.add("--set a", "1", false);
        let second = sources.add("WEIR__A", "2", true);
        assert_eq!(sources.problem(Severity::Error, Some(&first), "", "").place, Place::Override("--set a".into()));
        assert_eq!(sources.override_text(&second), Some("2"));
        assert!(sources.is_environment(&second) && !sources.is_environment(&first));
        assert_eq!(sources.override_text(&(0..1)), None);
    }
}
