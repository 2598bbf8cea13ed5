//! A claim of a JSON Web Token (RFC 7519), as the request says it: nobody verifies the signature here.
//!
//! Bounded: a payload of at most `PAYLOAD_MAX` is decoded, once, and only the claim is kept of it. Anything odd counts as no
//! claim: another form than that of a signed token (RFC 7515 section 3.1), a character that base64url has not, what is
//! no JSON object, a name that is there twice, a value that is no text, whole number or boolean.

use std::fmt;

use http::{HeaderMap, HeaderName};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest payload that is decoded, in bytes of base64url: a whole head has 32 KiB by default.
const PAYLOAD_MAX: usize = 16 * 1024;

/// A claim's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Text.
    Text(String),
    /// A whole number or a boolean, as JSON writes it.
    Other(String),
}

/// The claim called `name` in the token that the field holds, bare or as a bearer's (RFC 6750 section 2.1); `None` if there
/// is none that can be used.
pub(super) fn claim(name: &str, field: &HeaderName, headers: &HeaderMap) -> Option<Claim> {
    let mut lines = headers.get_all(field).iter();
    let (line, more) = (lines.next()?.as_bytes(), lines.next());
    if more.is_some() {
        return None;
    }
    let payload = payload(token(line))?;
    let mut reader = serde_json::Deserializer::from_slice(&payload);
    let mut at = reader.deserialize_map(At { path: Some(name) }).ok()?;
    reader.end().ok()?;
    at.take_if(|claim| !matches!(claim, Claim::Text(text) if text.is_empty()))
}

/// The credentials behind `Bearer`, whose letter case is free; or all of it.
fn token(line: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"bearer ";
    let line = line.trim_ascii();
    match line.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => rest.trim_ascii_start(),
        _ => line,
    }
}

/// The decoded middle of `header.payload.signature`.
fn payload(token: &[u8]) -> Option<Vec<u8>> {
    let mut parts = token.split(|&byte| byte == b'.');
    let (header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_header = !header.is_empty() && header.iter().all(is_base64url);
    if !is_header || parts.next().is_some() || payload.len() > PAYLOAD_MAX {
        return None;
    }
    base64url(payload)
}

/// Without padding (RFC 7515 section 2, RFC 4648 section 5), and with nothing in the bits that are left over.
fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // One character alone is no byte.
    (count < 6 && bits == 0).then_some(out)
}

/// Reads a value of which only what is below `path` matters; without one, it is the claim itself.
struct At<'p> {
    path: Option<&'p str>,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<Claim>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl At<'_> {
    fn claim(&self, claim: impl FnOnce() -> Claim) -> Option<Claim> {
        self.path.is_none().then(claim)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<Claim>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("claims")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.claim(|| Claim::Text(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.claim(|| Claim::Other(value.to_string())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.claim(|| Claim::Other(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.claim(|| Claim::Other(number.to_string())))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut seen) = (None, false);
        while let Some(below) = entries.next_key_seed(Name { path: self.path })? {
            match below {
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
                // The other reading of it might be somebody else's.
                Some(_) if seen => return Err(A::Error::custom("the claim is there twice")),
                Some(path) => {
                    seen = true;
                    found = entries.next_value_seed(At { path })?;
                }
            }
        }
        Ok(found)
    }
}

/// Reads a name: `None` if the path does not lead there, else what is left of the path.
struct Name<'p> {
    path: Option<&'p str>,
}

impl<'de, 'p> DeserializeSeed<'de> for Name<'p> {
    type Value = Option<Option<&'p str>>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = Option<Option<&'p str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let Some(path) = self.path else { return Ok(None) };
        // A name may have dots itself, as URLs have that name claims.
        Ok(match path.strip_prefix(name) {
            Some("") => Some(None),
            Some(rest) => rest.strip_prefix('.').map(Some),
            None => None,
        })
    }
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
