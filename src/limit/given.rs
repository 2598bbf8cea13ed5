//! Identities as operators write them: a part and its value, made canonical by what makes requests' identities so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value};

use super::Facts;
use super::identity;
use crate::config::{self, IdentityPart};
use crate::syntax::SyntaxError;

/// The canonical bytes of the identity that a request of these `parts` has, of a limit on these `routes`.
///
/// # Errors
/// A part that is missing, doubled, not the limit's, or has a value that it cannot have. Values are not in the text.
pub(super) fn canonical(
    limit: &config::Limit,
    routes: &[&str],
    parts: &[(String, String)],
) -> Result<Vec<u8>, SyntaxError> {
    let whole: Vec<String> = limit.key.iter().map(|part| format!("{part}=..")).collect();
    let wrong = |problem: String| SyntaxError::new(problem, format!("this limit's identity is `{}`", whole.join("&")));
    let mut out = Vec::new();
    let mut used = 0;
    for part in &limit.key {
        let mut values = parts.iter().filter(|(name, _)| is_named(part, name)).map(|(_, value)| value.as_str());
        let only = if routes.len() == 1 { routes.first().copied() } else { None };
        let value = match (values.next(), part) {
            (Some(value), _) => {
                used += 1;
                value
            }
            (None, IdentityPart::Route) => only.ok_or_else(|| wrong("`route` is missing".to_owned()))?,
            (None, _) => return Err(wrong(format!("`{part}` is missing"))),
        };
        if values.next().is_some() {
            return Err(wrong(format!("`{part}` comes twice")));
        }
        one(part, value, &mut out).ok_or_else(|| wrong(format!("this is no value for `{part}`")))?;
    }
    if used < parts.len() {
        let other = parts.iter().find(|(name, _)| !limit.key.iter().any(|part| is_named(part, name)));
        let other = other.map_or("", |(name, _)| name.as_str());
        return Err(wrong(format!("`{other}` is no part of who `{}` counts", limit.name)));
    }
    Ok(out)
}

/// Whether `name` is what the part is called.
fn is_named(part: &IdentityPart, name: &str) -> bool {
    let own = part.to_string();
    if matches!(part, IdentityPart::Header(_)) { own.eq_ignore_ascii_case(name) } else { own == name }
}

/// Appends one part with this value; `None` if it cannot have it.
fn one(part: &IdentityPart, value: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut headers = HeaderMap::new();
    let (mut ip, mut method, mut query) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Method::GET, None);
    let mut put = |name: &HeaderName, text: &str| -> Option<()> {
        headers.insert(name, HeaderValue::from_bytes(text.as_bytes()).ok()?);
        Some(())
    };
    match part {
        IdentityPart::Ip => ip = value.parse().ok()?,
        IdentityPart::Header(name) => put(name, value)?,
        IdentityPart::Cookie(_) if value.contains(';') => return None,
        IdentityPart::Cookie(name) => put(&COOKIE, &format!("{name}={value}"))?,
        IdentityPart::Query(name) => query = Some(format!("{}={}", escaped(name), escaped(value))),
        IdentityPart::Claim { name, field } => {
            let said: Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            let payload = Map::from_iter([(name.clone(), said)]);
            put(field, &format!("e30.{}.e30", base64url(Value::from(payload).to_string().as_bytes())))?;
        }
        IdentityPart::Method => method = Method::from_bytes(value.as_bytes()).ok()?,
        IdentityPart::Route | IdentityPart::Host => {}
    }
    let facts = Facts { ip, headers: &headers, query: query.as_deref(), route: value, host: value, method: &method };
    identity::canonical(std::slice::from_ref(part), &facts, out);
    Some(())
}

/// With everything escaped that means something in a query.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02x}"),
    };
    text.bytes().map(byte).collect()
}

/// Without padding (RFC 4648 section 5).
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0, |bits, (nth, byte)| bits | u32::from(*byte) << (16 - 8 * nth));
        for digit in 0..=group.len() {
            out.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    out
}

/// The parts of an identity in canonical bytes, for people: by their names; of a long value its digest.
pub(super) fn shown(key: &[IdentityPart], canonical: &[u8]) -> Map<String, Value> {
    let mut parts = Map::new();
    let mut rest = canonical;
    for part in key {
        let Some((kind, value, after)) = identity::first(rest) else { break };
        rest = after;
        let text = match (kind, value) {
            (b'4', &[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).to_string(),
            (b'6', network) if network.len() == 8 => {
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(network);
                format!("{}/64", Ipv6Addr::from(octets))
            }
            (kind, digest) if kind.is_ascii_uppercase() => {
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sha256:{hex}")
            }
            (_, text) => String::from_utf8_lossy(text).into_owned(),
        };
        parts.insert(part.to_string(), text.into());
    }
    parts
}

#[cfg(test)]
#[path = "given_tests.rs"]
mod tests;
