//! Dictionaries of structured fields (RFC 9651 section 4.2.2), as far as caching needs them. Reading one allocates
//! nothing.

use std::borrow::Cow;

/// A member's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A whole number.
    Integer(i64),
    /// `?1`, `?0`, or a name alone.
    Boolean(bool),
    /// An inner list of nothing but strings.
    Strings(Strings<'a>),
    /// Anything else: a decimal, string, token, date, byte sequence, or a list with one of them in it.
    Other,
}

/// The strings of an inner list, in order; each is copied only if something in it is escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strings<'a> {
    /// What stands between the parentheses, read before.
    rest: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = Text { rest: self.rest };
        text.skip(|byte| byte == b' ');
        let string = text.string().ok()?;
        text.parameters().ok()?;
        self.rest = text.rest;
        Some(if string.contains('\\') { Cow::Owned(unescaped(string)) } else { Cow::Borrowed(string) })
    }
}

/// Calls `member` with each member's name and value in order; of a name that comes twice, the last counts. Parameters
/// are passed over. `lines` are the field's values, one for each of its lines.
///
/// # Errors
/// One of them is no dictionary, so that nothing in the field means anything. Members in front of the fault have been
/// handed out already.
pub fn dictionary<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
    mut member: impl FnMut(&'a [u8], Value<'a>),
) -> Result<(), Malformed> {
    for line in lines {
        let mut text = Text { rest: line.trim_ascii() };
        loop {
            let name = text.key()?;
            let value = if text.takes(b'=') { text.member_value()? } else { Value::Boolean(true) };
            text.parameters()?;
            member(name, value);
            text.skip(|byte| matches!(byte, b' ' | b'\t'));
            if text.rest.is_empty() {
                break;
            }
            if !text.takes(b',') {
                return Err(Malformed);
            }
            text.skip(|byte| matches!(byte, b' ' | b'\t'));
        }
    }
    Ok(())
}

/// The field is no dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

struct Text<'a> {
    rest: &'a [u8],
}

impl<'a> Text<'a> {
    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.rest.first() == Some(&byte);
        if is_next {
            self.rest = &self.rest[1..];
        }
        is_next
    }

    fn next(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Takes what `is_part` is true of.
    fn skip(&mut self, is_part: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !is_part(*byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn key(&mut self) -> Result<&'a [u8], Malformed> {
        if !matches!(self.rest.first(), Some(b'a'..=b'z' | b'*')) {
            return Err(Malformed);
        }
        Ok(self.skip(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*')))
    }

    fn member_value(&mut self) -> Result<Value<'a>, Malformed> {
        if !self.takes(b'(') {
            return self.item();
        }
        let inside = self.rest;
        let mut are_strings = true;
        self.skip(|byte| byte == b' ');
        while !self.takes(b')') {
            are_strings &= self.rest.first() == Some(&b'"');
            self.item()?;
            self.parameters()?;
            let spaces = self.skip(|byte| byte == b' ');
            if spaces.is_empty() && self.rest.first() != Some(&b')') {
                return Err(Malformed);
            }
        }
        let length = inside.len() - self.rest.len() - 1;
        Ok(if are_strings { Value::Strings(Strings { rest: &inside[..length] }) } else { Value::Other })
    }

    fn item(&mut self) -> Result<Value<'a>, Malformed> {
        match self.rest.first().ok_or(Malformed)? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string().map(|_| Value::Other),
            b'A'..=b'Z' | b'a'..=b'z' | b'*' => {
                self.skip(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
                Ok(Value::Other)
            }
            b'?' => {
                self.next()?;
                match self.next()? {
                    b'0' => Ok(Value::Boolean(false)),
                    b'1' => Ok(Value::Boolean(true)),
                    _ => Err(Malformed),
                }
            }
            b':' => {
                self.next()?;
                self.skip(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
                if self.takes(b':') { Ok(Value::Other) } else { Err(Malformed) }
            }
            b'@' => {
                self.next()?;
                match self.number()? {
                    Value::Integer(_) => Ok(Value::Other),
                    _ => Err(Malformed),
                }
            }
            b'%' => {
                self.next()?;
                self.display_string()
            }
            _ => Err(Malformed),
        }
    }

    fn number(&mut self) -> Result<Value<'a>, Malformed> {
        let sign = if self.takes(b'-') { -1 } else { 1 };
        let digits = self.skip(|byte| byte.is_ascii_digit());
        if digits.is_empty() || digits.len() > 15 {
            return Err(Malformed);
        }
        if self.takes(b'.') {
            let fraction = self.skip(|byte| byte.is_ascii_digit());
            let is_decimal = digits.len() <= 12 && (1..=3).contains(&fraction.len());
            return if is_decimal { Ok(Value::Other) } else { Err(Malformed) };
        }
        Ok(Value::Integer(sign * digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))))
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        if !self.takes(b'"') {
            return Err(Malformed);
        }
        let inside = self.rest;
        loop {
            match self.next()? {
                b'"' => break,
                b'\\' if !matches!(self.next()?, b'"' | b'\\') => return Err(Malformed),
                b'\\' | b' '..=b'~' => {}
                _ => return Err(Malformed),
            }
        }
        std::str::from_utf8(&inside[..inside.len() - self.rest.len() - 1]).map_err(|_| Malformed)
    }

    fn display_string(&mut self) -> Result<Value<'a>, Malformed> {
        if !self.takes(b'"') {
            return Err(Malformed);
        }
        loop {
            match self.next()? {
                b'"' => return Ok(Value::Other),
                b'%' => {
                    for _ in 0..2 {
                        if !matches!(self.next()?, b'0'..=b'9' | b'a'..=b'f') {
                            return Err(Malformed);
                        }
                    }
                }
                b' '..=b'~' => {}
                _ => return Err(Malformed),
            }
        }
    }

    fn parameters(&mut self) -> Result<(), Malformed> {
        while self.takes(b';') {
            self.skip(|byte| byte == b' ');
            self.key()?;
            if self.takes(b'=') {
                self.item()?;
            }
        }
        Ok(())
    }
}

/// A string's text without the backslashes in front of quotes and backslashes.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        out.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Value::{Boolean, Integer, Other};
    use super::*;

    fn read<'a>(lines: &[&'a str]) -> Option<Vec<(String, Value<'a>)>> {
        let mut members = Vec::new();
        dictionary(lines.iter().map(|line| line.as_bytes()), |name, value| {
            members.push((String::from_utf8(name.to_vec()).unwrap(), value));
        })
        .ok()?;
        Some(members)
    }

    #[test]
    fn dictionaries() {
        for (text, expected) in [
            ("max-age=60, no-store", &[("max-age", Integer(60)), ("no-store", Boolean(true))][..]),
            ("a=-1,b=?0;x;y=\"1\" \t,\tc", &[("a", Integer(-1)), ("b", Boolean(false)), ("c", Boolean(true))]),
            ("a=1.5, b=\"x, \\\"y\\\"\", c=tok/en:*", &[("a", Other), ("b", Other), ("c", Other)]),
            ("a=(1 \"b\";c  d), f=( 1 )", &[("a", Other), ("f", Other)]),
            ("a=:aGk=:, b=@1659578233, c=%\"f%c3\"", &[("a", Other), ("b", Other), ("c", Other)]),
            ("a=%\"b\\\", c=1", &[("a", Other), ("c", Integer(1))]),
            ("*k.e_y-9=1;  p=2", &[("*k.e_y-9", Integer(1))]),
            ("a=1, a=2", &[("a", Integer(1)), ("a", Integer(2))]),
            ("  a  ", &[("a", Boolean(true))]),
        ] {
            let expected = expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            assert_eq!(read(&[text]), Some(expected), "{text}");
        }
        assert_eq!(read(&["a", "b"]).unwrap().len(), 2);
        assert_eq!(read(&[]), Some(Vec::new()));
        for text in [
            "",
            "A",
            "a=",
            "a,",
            ",a",
            "a b",
            "a=1x",
            "a=1.",
            "a=1.2345",
            "a=\"x",
            "a=\"\\x\"",
            "a=?2",
            "a=:x",
            "a=(1",
            "a=(1\"b\")",
            "a;",
            "a;B",
            "a=1234567890123456",
            "max-age =60",
            "max-age= 60",
            "a=@1.5",
            "a=%\"%zz\"",
            "a=%\"%C3\"",
            "a=\u{e9}",
            "a=--1",
        ] {
            assert_eq!(read(&[text]), None, "{text}");
        }
    }

    #[test]
    fn lists_of_strings() {
        let strings = |text: &str| match read(&[text]).as_deref() {
            Some([(_, Value::Strings(strings))]) => Some(strings.map(Cow::into_owned).collect::<Vec<_>>()),
            Some([(_, Other)]) => None,
            other => panic!("{text}: {other:?}"),
        };
        for (text, expected) in [
            ("a=()", &[][..]),
            ("a=(  )", &[]),
            ("a=(\"b\")", &["b"]),
            ("a=( \"b\";x  \"c d\";y=\"z\" );q", &["b", "c d"]),
            ("a=(\"\\\"\" \"\\\\\" \"\")", &["\"", "\\", ""]),
        ] {
            assert_eq!(
                strings(text).as_deref(),
                Some(expected.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().as_slice()),
                "{text}"
            );
        }
        for text in ["a=(b)", "a=(\"b\" c)", "a=(1 \"b\")", "a=(%\"b\")", "a=\"b\""] {
            assert_eq!(strings(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(line in prop::collection::vec(any::<u8>(), 0..64), list in "[\"\\\\ ;a(=)]{0,16}") {
            let members = |_: &[u8], value| {
                if let Value::Strings(strings) = value {
                    strings.for_each(drop);
                }
            };
            let _ = dictionary([&line[..]].into_iter(), members);
            let _ = dictionary([format!("a=({list})").as_bytes()].into_iter(), members);
        }

        /// What was taken for a list of strings is one to the end.
        #[test]
        fn strings_come_back_as_they_were(strings in prop::collection::vec("[ -~]{0,6}", 0..4)) {
            let quoted = strings.iter().map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
            let line = format!("a=({})", quoted.collect::<Vec<_>>().join(" "));
            let members = read(&[&line]).unwrap();
            let Value::Strings(found) = members[0].1 else { panic!("{line}") };
            prop_assert_eq!(found.map(Cow::into_owned).collect::<Vec<_>>(), strings);
        }
    }
}
