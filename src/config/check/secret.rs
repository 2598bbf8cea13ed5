//! Secrets come from files or the environment, never from the configuration file or the command line, which others can read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::Check;
use crate::config::Secret;
use crate::config::raw::{At, Maybe};
use crate::config::report::{Problem, Severity, Span};

/// Largest secret, in bytes.
const SECRET_BYTES: usize = 64 * 1024;

impl Check<'_, '_> {
    /// The secret in `file`, or the one given as `value` by the environment variable that overrides `key`.
    pub(super) fn secret(&mut self, key: &str, file: &Maybe<String>, value: &Maybe<String>) -> Option<Secret> {
        if let Some(value) = value {
            let variable = format!("WEIR__{}", key.to_ascii_uppercase().replace('.', "__"));
            if !self.sources.is_environment(&value.span()) {
                let remedy = format!("put it in a file and write `{key}_file`, or set {variable} in the environment");
                self.error(&value.span(), format!("`{key}` stands where others can read it"), remedy);
            } else if value.value.is_empty() {
                self.error(&value.span(), format!("{variable} is empty"), "unset it, or give it a value");
            } else {
                return Some(Secret::new(value.value.as_bytes()));
            }
        }
        let file = file.as_ref()?;
        let path = self.directory.join(&file.value);
        self.files.push(path.clone());
        match read(&path, SECRET_BYTES) {
            Err(Unread::System(error)) => {
                let remedy = "name a file that this process may read, or leave the key out";
                self.error(&file.span(), format!("cannot read {}: {error}", path.display()), remedy);
                None
            }
            Err(Unread::TooLarge) => {
                let text = format!("{} is larger than {SECRET_BYTES} bytes", path.display());
                self.error(&file.span(), text, "name the file with the secret");
                None
            }
            Ok(bytes) => {
                let secret = bytes.trim_ascii_end();
                if secret.is_empty() {
                    let text = format!("{} is empty", path.display());
                    self.error(&file.span(), text, "write the secret into it, or leave the key out");
                    return None;
                }
                Some(Secret::new(secret))
            }
        }
    }

    /// What is in a file with certificates or a key, which is watched from then on.
    pub(super) fn file(&mut self, file: &At<String>, most: usize, remedy: &str) -> Option<Vec<u8>> {
        let path = self.directory.join(&file.value);
        self.files.push(path.clone());
        let text = match read(&path, most) {
            Ok(bytes) => return Some(bytes),
            Err(Unread::System(error)) => format!("cannot read {}: {error}", path.display()),
            Err(Unread::TooLarge) => format!("{} is larger than {most} bytes", path.display()),
        };
        self.file_error(&file.span(), text, remedy);
        None
    }

    /// For a file that cannot be used, in a configuration that may be right.
    pub(super) fn file_error(&mut self, place: &Span, text: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.sources.problem(Severity::Error, Some(place), text, remedy);
        self.problems.push(Problem { is_file: true, ..problem });
    }
}

enum Unread {
    System(io::Error),
    TooLarge,
}

fn read(path: &Path, most: usize) -> Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    read.map_err(Unread::System)?;
    if bytes.len() > most { Err(Unread::TooLarge) } else { Ok(bytes) }
}
