//! Tags that an answer carries: `Surrogate-Key`, `Cache-Tag` and `Cache-Groups` (RFC 9875).

use http::HeaderMap;

/// Most tags that a stored answer may carry; each costs its readers a look-up.
pub const MAX_TAGS: usize = 128;

/// Longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 256;

/// An answer has more or longer tags than may be stored, or one that no invalidation could name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagsRefused;

/// The tags of an answer, each once.
///
/// # Errors
/// Over [`MAX_TAGS`] or [`MAX_TAG_BYTES`], or not UTF-8: an answer whose tags were only partly kept would outlive its
/// invalidation, so such an answer may not be stored at all.
pub fn answer_tags(headers: &HeaderMap) -> Result<Vec<String>, TagsRefused> {
    let mut tags = Tags(Vec::new());
    for value in headers.get_all("surrogate-key") {
        for tag in text(value.as_bytes())?.split_ascii_whitespace() {
            tags.add(tag)?;
        }
    }
    for value in headers.get_all("cache-tag") {
        for tag in text(value.as_bytes())?.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            tags.add(tag)?;
        }
    }
    for value in headers.get_all("cache-groups") {
        for group in groups(value.as_bytes()).unwrap_or_default() {
            tags.add(&group)?;
        }
    }
    Ok(tags.0)
}

/// The groups that an answer to a write names as changed (RFC 9875 section 3), [`MAX_TAGS`] at most.
pub fn changed_groups(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let lines = headers.get_all("cache-group-invalidation").iter();
    lines.flat_map(|value| groups(value.as_bytes()).unwrap_or_default()).take(MAX_TAGS)
}

struct Tags(Vec<String>);

impl Tags {
    fn add(&mut self, tag: &str) -> Result<(), TagsRefused> {
        if self.0.iter().any(|known| known == tag) {
            return Ok(());
        }
        if tag.len() > MAX_TAG_BYTES || self.0.len() == MAX_TAGS {
            return Err(TagsRefused);
        }
        self.0.push(tag.to_owned());
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<&str, TagsRefused> {
    std::str::from_utf8(value).map_err(|_| TagsRefused)
}

/// A structured list of strings (RFC 9651 sections 4.2.1 and 4.2.5), parameters left out; `None` if it is anything
/// else, which means an absent field (RFC 9651 section 4.2).
fn groups(value: &[u8]) -> Option<Vec<String>> {
    let mut members = Vec::new();
    let mut rest = value.trim_ascii();
    while !rest.is_empty() {
        let (member, tail) = string(rest)?;
        members.push(member);
        rest = parameters(tail)?.trim_ascii_start();
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(b",")?.trim_ascii_start();
        if rest.is_empty() {
            return None;
        }
    }
    Some(members)
}

fn string(text: &[u8]) -> Option<(String, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut out = String::new();
    loop {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        match byte {
            b'"' => return Some((out, rest)),
            b'\\' => {
                let (&escaped, tail) = rest.split_first()?;
                if !matches!(escaped, b'"' | b'\\') {
                    return None;
                }
                out.push(char::from(escaped));
                rest = tail;
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => return None,
        }
    }
}

/// Steps over `;name=value` pairs.
fn parameters(mut rest: &[u8]) -> Option<&[u8]> {
    while let Some(tail) = rest.strip_prefix(b";") {
        rest = tail.trim_ascii_start();
        let name = rest.iter().position(|byte| matches!(byte, b'=' | b';' | b',' | b' ')).unwrap_or(rest.len());
        if name == 0 {
            return None;
        }
        rest = &rest[name..];
        let Some(value) = rest.strip_prefix(b"=") else { continue };
        rest = if value.starts_with(b"\"") {
            string(value)?.1
        } else {
            let end = value.iter().position(|byte| matches!(byte, b';' | b',' | b' ')).unwrap_or(value.len());
            &value[end..]
        };
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn of(fields: &[(&'static str, &str)]) -> Result<Vec<String>, TagsRefused> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        answer_tags(&headers)
    }

    #[test]
    fn all_three_fields_are_read() {
        let tags = of(&[
            ("surrogate-key", "a  b"),
            ("surrogate-key", "c a"),
            ("cache-tag", "d, e f,,b"),
            ("cache-groups", r#""g;1", "h\"i";x="y,z";n=1 , "j""#),
        ]);
        assert_eq!(tags.unwrap(), ["a", "b", "c", "d", "e f", "g;1", "h\"i", "j"]);
        assert!(of(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_malformed_structured_list_is_absent() {
        for value in ["a", "\"a\" \"b\"", "\"a\",", "\"a", "1, \"b\"", "\"a\\x\"", "\"a\";=1"] {
            assert!(of(&[("cache-groups", value)]).unwrap().is_empty(), "{value}");
        }
    }

    #[test]
    fn bounds_refuse_the_whole_answer() {
        let many = (0..=MAX_TAGS).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ");
        assert_eq!(of(&[("surrogate-key", &many)]), Err(TagsRefused));
        assert_eq!(of(&[("cache-tag", &"x".repeat(MAX_TAG_BYTES))]).unwrap().len(), 1);
        assert_eq!(of(&[("cache-tag", &"x".repeat(MAX_TAG_BYTES + 1))]), Err(TagsRefused));
        let mut headers = HeaderMap::new();
        headers.insert("surrogate-key", HeaderValue::from_bytes(b"a\xff").unwrap());
        assert_eq!(answer_tags(&headers), Err(TagsRefused));
    }

    proptest! {
        #[test]
        fn any_value_is_survived(value in "[ -~]{0,80}") {
            for name in ["surrogate-key", "cache-tag", "cache-groups"] {
                let _ = of(&[(name, &value)]);
            }
        }
    }
}
