//! Pure grammars that configuration, routing and doors share: text in, values or a [`SyntaxError`] out.

pub mod blanks;
pub mod glob;
pub mod path;
pub mod pattern;
pub mod pointer;
pub mod query;
pub mod rate;
pub mod scalar;
pub mod selector;
pub mod template;

use std::fmt;

/// What is wrong with a piece of text, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl SyntaxError {
    /// `problem`, and the `remedy` for it.
    pub fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for SyntaxError {}

/// Whether `text` can name a part of a path: letters, digits, `_` and `-`.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Value of a hexadecimal digit.
fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}
