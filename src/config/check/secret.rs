//! Secrets come from files or the environment, never from the configuration file or the command line, which others can read.

use std::fs::File;
use std::io::Read;

use super::Check;
use crate::config::Secret;
use crate::config::raw::Maybe;

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
        let read = File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let shown = path.display();
        self.files.push(path.clone());
        match read {
            Err(error) => {
                let remedy = "name a file that this process may read, or leave the key out";
                self.error(&file.span(), format!("cannot read {shown}: {error}"), remedy);
                None
            }
            Ok(bytes) if bytes.len() > SECRET_BYTES => {
                self.error(
                    &file.span(),
                    format!("{shown} is larger than {SECRET_BYTES} bytes"),
                    "name the file with the secret",
                );
                None
            }
            Ok(bytes) => {
                let secret = bytes.trim_ascii_end();
                if secret.is_empty() {
                    self.error(
                        &file.span(),
                        format!("{shown} is empty"),
                        "write the secret into it, or leave the key out",
                    );
                    return None;
                }
                Some(Secret::new(secret))
            }
        }
    }
}
