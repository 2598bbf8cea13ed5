//! JSON pointers (RFC 6901): `/usage/total_tokens`, `/choices/0/cost`.

use std::fmt;

use super::SyntaxError;

/// Most steps from the whole document to a value.
const STEPS_MAX: usize = 16;

/// A place in a JSON document; no step is the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<Step>);

/// One step down: a member's name or, in an array, an element's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The name.
    pub name: Box<str>,
    /// What it is in an array: digits without a leading zero.
    pub index: Option<u64>,
}

impl Pointer {
    /// Reads `/name/0/name`, where `~0` stands for `~` and `~1` for `/`.
    ///
    /// # Errors
    /// No slash in front, another character behind `~`, `-` (the element behind an array's last), or too many steps.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let wrong = |problem: String, remedy: &str| Err(SyntaxError::new(problem, remedy));
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Some(path) = text.strip_prefix('/') else {
            let problem = format!("\"{}\" does not begin with a slash", text.escape_debug());
            return wrong(problem, "write the names from the top down, such as \"/usage/total_tokens\"");
        };
        let mut steps = Vec::new();
        for part in path.split('/') {
            if part.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
                let problem = format!("\"{}\" has a `~` that stands for nothing", part.escape_debug());
                return wrong(problem, "write `~0` for a tilde, and `~1` for a slash");
            }
            if part == "-" {
                let remedy = "write the element's number, from 0 on";
                return wrong("\"-\" is the element behind an array's last, which is never there".to_owned(), remedy);
            }
            // In this order, or `~01` would become a slash.
            let name = part.replace("~1", "/").replace("~0", "~");
            let is_number = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            steps.push(Step { index: part.parse().ok().filter(|_| is_number), name: name.into() });
        }
        if steps.len() > STEPS_MAX {
            let problem = format!("\"{}\" has more than {STEPS_MAX} steps", text.escape_debug());
            return wrong(problem, "name a value that is less deep");
        }
        Ok(Self(steps))
    }

    /// From the whole document down.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Pointer {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", step.name.replace('~', "~0").replace('/', "~1")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_read_as_the_rfc_has_them() {
        // RFC 6901 section 5, without those of the fragment form.
        for (text, names) in [
            ("", &[][..]),
            ("/foo", &["foo"]),
            ("/foo/0", &["foo", "0"]),
            ("/", &[""]),
            ("/a~1b", &["a/b"]),
            ("/c%d", &["c%d"]),
            ("/k\"l", &["k\"l"]),
            ("/ ", &[" "]),
            ("/m~0n", &["m~n"]),
            ("/~01", &["~1"]),
            ("/a//b", &["a", "", "b"]),
        ] {
            let pointer = Pointer::parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            let read: Vec<&str> = pointer.steps().iter().map(|step| &*step.name).collect();
            assert_eq!(read, names, "{text}");
            assert_eq!(pointer.to_string(), text);
        }
        let index = |text: &str| Pointer::parse(text).unwrap().steps()[0].index;
        assert_eq!(["/0", "/10", "/01", "/", "/1a", "/+1"].map(index), [Some(0), Some(10), None, None, None, None]);
    }

    #[test]
    fn what_is_no_pointer_is_refused_with_a_remedy() {
        for (text, remedy) in [
            ("usage", "/usage/total_tokens"),
            ("#/usage", "/usage/total_tokens"),
            ("/a~", "~0"),
            ("/a~2b", "~1"),
            ("/a/-", "number"),
            (&"/a".repeat(17), "less deep"),
        ] {
            let wrong = Pointer::parse(text).expect_err(text);
            assert!(wrong.remedy.contains(remedy), "{text}: {wrong}");
        }
    }
}
