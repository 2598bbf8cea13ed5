//! Paths, normalised once: dot segments removed, unreserved escapes decoded, hex digits in upper case
//! (RFC 3986 sections 6.2.2.1 to 6.2.2.3), bytes outside ASCII escaped. The result is what is routed, keyed, limited and
//! forwarded.

use std::borrow::Cow;

/// Why two servers could read a path two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ambiguity {
    /// `//`.
    EmptySegment,
    /// `%2f` or `%5c`.
    EncodedSlash,
    /// `\`.
    Backslash,
    /// `%00` to `%1f`, `%7f`, or such a byte as it is.
    EncodedControl,
    /// `%` without two hex digits behind it.
    BadEscape,
    /// `..` above the root.
    AboveRoot,
    /// `.;` or `..;`, escaped or not: a dot segment to servers that cut path parameters off first, a name to the others.
    DotParameter,
}

impl Ambiguity {
    /// What to tell the client.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptySegment => "an empty segment (//)",
            Self::EncodedSlash => "an encoded slash (%2f or %5c)",
            Self::Backslash => "a backslash",
            Self::EncodedControl => "an encoded control byte",
            Self::BadEscape => "a percent sign without two hex digits behind it",
            Self::AboveRoot => "dot segments that leave the root",
            Self::DotParameter => "a dot segment with a parameter (..;)",
        }
    }
}

/// A path in its one form, or why it has none.
///
/// A path already in that form is borrowed after one look at each byte. What does not begin with a slash gets one, except
/// `*` (RFC 9110 section 7.1).
///
/// # Errors
/// See [`Ambiguity`]; the first one found.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    if is_normal(path.as_bytes()) || path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    rewrite(path.strip_prefix('/').unwrap_or(path)).map(Cow::Owned)
}

/// Whether nothing is to be changed or refused.
fn is_normal(path: &[u8]) -> bool {
    if path.first() != Some(&b'/') {
        return false;
    }
    let mut at = 0;
    while at < path.len() {
        match path[at] {
            b'/' => match path.get(at + 1) {
                Some(b'/') => return false,
                Some(b'.') if dotted(&path[at + 1..]) => return false,
                _ => {}
            },
            b'%' => match escape(&path[at..]) {
                Ok(Escape::Kept) => at += 2,
                _ => return false,
            },
            b'\\' | 0..=0x1f | 0x7f.. => return false,
            _ => {}
        }
        at += 1;
    }
    true
}

/// An escaped semicolon, in its one form: some servers decode before they cut parameters off.
const SEMICOLON: &[u8] = b"%3B";

/// Whether the segment at the start of `rest` is a dot segment, a parameter behind it or not.
fn dotted(rest: &[u8]) -> bool {
    let behind = rest.iter().position(|byte| *byte != b'.').unwrap_or(rest.len());
    (1..=2).contains(&behind)
        && (matches!(rest.get(behind), None | Some(b'/' | b';')) || rest[behind..].starts_with(SEMICOLON))
}

/// What is to be done with an escape.
enum Escape {
    /// Stays as it is.
    Kept,
    /// Gets upper-case digits.
    Raised,
    /// Stands for an unreserved character.
    Decoded(u8),
}

/// Reads the escape at the start of `bytes`.
fn escape(bytes: &[u8]) -> Result<Escape, Ambiguity> {
    let (Some(&high), Some(&low)) = (bytes.get(1), bytes.get(2)) else { return Err(Ambiguity::BadEscape) };
    let (Some(h), Some(l)) = (super::hex_digit(high), super::hex_digit(low)) else { return Err(Ambiguity::BadEscape) };
    match h << 4 | l {
        b'/' | b'\\' => Err(Ambiguity::EncodedSlash),
        0..=0x1f | 0x7f => Err(Ambiguity::EncodedControl),
        byte if is_unreserved(byte) => Ok(Escape::Decoded(byte)),
        _ if high.is_ascii_lowercase() || low.is_ascii_lowercase() => Ok(Escape::Raised),
        _ => Ok(Escape::Kept),
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The normal form of a path given without its first slash. Escapes are read before dot segments are looked for, so that
/// `%2e` counts as a dot; none of them can make a slash.
fn rewrite(path: &str) -> Result<String, Ambiguity> {
    let mut out = String::with_capacity(path.len() + 1);
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if segment.is_empty() && !last {
            return Err(Ambiguity::EmptySegment);
        }
        let start = out.len();
        out.push('/');
        push_segment(segment, &mut out)?;
        match &out[start + 1..] {
            "." => out.truncate(start),
            ".." => {
                out.truncate(start);
                let parent = out.rfind('/').ok_or(Ambiguity::AboveRoot)?;
                out.truncate(parent);
            }
            other if dotted(other.as_bytes()) => return Err(Ambiguity::DotParameter),
            _ => continue,
        }
        if last {
            out.push('/');
        }
    }
    Ok(out)
}

/// Appends one segment, its escapes in their one form.
fn push_segment(segment: &str, out: &mut String) -> Result<(), Ambiguity> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = segment.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => return Err(Ambiguity::Backslash),
            0..=0x1f | 0x7f => return Err(Ambiguity::EncodedControl),
            0x80.. => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
            b'%' => {
                match escape(&bytes[at..])? {
                    Escape::Decoded(byte) => out.push(char::from(byte)),
                    Escape::Kept | Escape::Raised => {
                        out.push('%');
                        out.extend(bytes[at + 1..at + 3].iter().map(|byte| char::from(byte.to_ascii_uppercase())));
                    }
                }
                at += 2;
            }
            _ => out.push(char::from(byte)),
        }
        at += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leaves_a_normal_path_where_it_is() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/.well-known/x",
            "/a/...",
            "/a/..b/.c",
            "/a%20b",
            "/%C3%A9",
            "/a;v=1/b,c",
            "/a:b@c",
            "/%25",
            "/~x",
            "*",
        ] {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    #[test]
    fn gives_every_spelling_one_form() {
        for (path, expected) in [
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/.", "/"),
            ("/%7euser", "/~user"),
            ("/%41%2d%5f", "/A-_"),
            ("/%c3%a9", "/%C3%A9"),
            ("/é", "/%C3%A9"),
            ("/a%3fb%3b", "/a%3Fb%3B"),
            ("/%252e%252e/", "/%252e%252e/"),
            ("/..a/../b", "/b"),
            ("", "/"),
            ("a/../b", "/b"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn reports_what_can_be_read_two_ways() {
        for (path, expected) in [
            ("//", Ambiguity::EmptySegment),
            ("//a", Ambiguity::EmptySegment),
            ("/a//b", Ambiguity::EmptySegment),
            ("/a//", Ambiguity::EmptySegment),
            ("/a%2fb", Ambiguity::EncodedSlash),
            ("/a%5Cb", Ambiguity::EncodedSlash),
            ("/..%2f..%2fetc", Ambiguity::EncodedSlash),
            ("/a\\b", Ambiguity::Backslash),
            ("/a%00", Ambiguity::EncodedControl),
            ("/a%0a.css", Ambiguity::EncodedControl),
            ("/a%7f", Ambiguity::EncodedControl),
            ("/a\u{7f}", Ambiguity::EncodedControl),
            ("/a\tb", Ambiguity::EncodedControl),
            ("/a%", Ambiguity::BadEscape),
            ("/a%2", Ambiguity::BadEscape),
            ("/a%g0", Ambiguity::BadEscape),
            ("/a%é", Ambiguity::BadEscape),
            ("/..", Ambiguity::AboveRoot),
            ("/a/../../b", Ambiguity::AboveRoot),
            ("/%2e%2e/b", Ambiguity::AboveRoot),
            ("/a/..;/b", Ambiguity::DotParameter),
            ("/a/.%2e;x=1/b", Ambiguity::DotParameter),
            ("/a/..%3b/b", Ambiguity::DotParameter),
            ("/a/.%3Bx", Ambiguity::DotParameter),
        ] {
            assert_eq!(normalise(path), Err(expected), "{path}");
            assert!(!expected.as_str().is_empty());
        }
    }

    /// Paths in which everything that matters here is likely.
    fn paths() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("/"),
            Just("."),
            Just(".."),
            Just("%2e"),
            Just("%2F"),
            Just("%41"),
            Just("%c3"),
            Just("%C3"),
            Just("%"),
            Just(";"),
            Just("%3b"),
            Just("a"),
            Just("é"),
            Just("\\"),
            Just("~"),
        ];
        prop_oneof![prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat())), ".*"]
    }

    proptest! {
        #[test]
        fn is_idempotent(path in paths()) {
            if let Ok(once) = normalise(&path) {
                let twice = normalise(&once);
                prop_assert!(matches!(twice, Ok(Cow::Borrowed(_))), "{} -> {} -> {:?}", path, once, twice);
                prop_assert!(once.is_ascii());
                prop_assert!(once == "*" || once.starts_with('/'));
                let dots = once.split('/').any(|segment| segment == "." || segment == "..");
                prop_assert!(!dots, "{} -> {}", path, once);
                let decoded = once.replace("%3B", ";");
                let mut names = decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
                prop_assert!(!names.any(|name| name == "." || name == ".."), "{} -> {}", path, once);
            }
        }

        #[test]
        fn escapes_of_unreserved_bytes_change_nothing(path in "/[a-z0-9._~/-]{0,12}", at in 0_usize..12) {
            let mut spelled = path.clone();
            if let Some(byte) = path.as_bytes().get(at).filter(|byte| **byte != b'/') {
                spelled.replace_range(at..=at, &format!("%{byte:02x}"));
            }
            prop_assert_eq!(normalise(&spelled), normalise(&path));
        }
    }
}
