//! Who a request is counted as: the parts that a limit names, as one canonical byte string.
//!
//! Canonical: the spellings of one client (address forms, letter case of a host, repeated or padded fields, escapes)
//! give the same bytes. Injective: two identities never do, because each part carries its kind and length. Bounded: a
//! value longer than `VALUE_MAX` stands as its SHA-256, so that an identity has at most that many bytes a part. What
//! leaves the process is an HMAC of it ([`Pseudonym`]); memory keeps a keyed hash.

use std::net::IpAddr;

use ahash::RandomState;
use hmac::{Hmac, Mac};
use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};

use super::claim::{Claim, claim};
use crate::config::{IdentityPart, Secret};

/// Longest value that stands in an identity as it is, in bytes.
const VALUE_MAX: usize = 256;

/// Bytes in front of a part's value: kind and length.
pub(super) const PART_HEAD: usize = 5;

/// Bytes of an HMAC that name a bucket in Redis: 128 bits, far beyond any accidental collision.
const PSEUDONYM_BYTES: usize = 16;

/// Separates these HMACs from others under the same secret.
const PSEUDONYM_DOMAIN: &[u8] = b"weir limit 1\0";

/// What of a request identities are made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Client address, through trusted proxies only.
    pub ip: IpAddr,
    /// Request fields.
    pub headers: &'a HeaderMap,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// The route's name.
    pub route: &'a str,
    /// Authority.
    pub host: &'a str,
    /// Method.
    pub method: &'a Method,
}

/// Appends the canonical bytes of `parts` to `out`.
///
/// What a request lacks is empty: all who lack it are one. Whether it lacks none.
pub fn canonical(parts: &[IdentityPart], facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    let mut is_whole = true;
    for part in parts {
        // Kind and length, filled in once the value is known.
        let start = out.len();
        out.extend_from_slice(&[0; PART_HEAD]);
        let kind = match part {
            IdentityPart::Ip => address(facts.ip, out),
            IdentityPart::Header(name) => {
                field(name, facts.headers, out);
                b'h'
            }
            IdentityPart::Cookie(name) => {
                out.extend_from_slice(cookie(name.as_bytes(), facts.headers));
                b'c'
            }
            IdentityPart::Query(name) => {
                parameter(name.as_bytes(), facts.query.unwrap_or_default().as_bytes(), out);
                b'q'
            }
            IdentityPart::Claim { name, field } => match claim(name, field, facts.headers) {
                Some(Claim::Other(value)) => {
                    out.extend_from_slice(value.as_bytes());
                    b'n'
                }
                Some(Claim::Text(value)) => {
                    out.extend_from_slice(value.as_bytes());
                    b'j'
                }
                None => b'j',
            },
            IdentityPart::Route => {
                out.extend_from_slice(facts.route.as_bytes());
                b'r'
            }
            IdentityPart::Host => {
                out.extend(authority(facts.host).bytes().map(|byte| byte.to_ascii_lowercase()));
                b'o'
            }
            IdentityPart::Method => {
                out.extend_from_slice(facts.method.as_str().as_bytes());
                b'm'
            }
        };
        is_whole &= out.len() > start + PART_HEAD;
        seal(start, kind, out);
    }
    is_whole
}

/// Writes kind and length before the value that begins after them, and the digest of a long value in its place.
fn seal(start: usize, kind: u8, out: &mut Vec<u8>) {
    let value = start + PART_HEAD;
    out[start] = kind;
    if out.len() - value > VALUE_MAX {
        let digest = Sha256::digest(&out[value..]);
        out.truncate(value);
        out.extend_from_slice(&digest);
        out[start] = kind.to_ascii_uppercase();
    }
    let length = (out.len() - value) as u32;
    out[start + 1..value].copy_from_slice(&length.to_le_bytes());
}

/// The kind and the value of the first part of canonical bytes, and what comes after it; `None` at their end.
pub(super) fn first(canonical: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, a, b, c, d], rest) = canonical.split_first_chunk::<PART_HEAD>()?;
    let (value, after) = rest.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
    Some((kind, value, after))
}

/// An IPv4 address, or the /64 that one IPv6 host has to itself.
fn address(ip: IpAddr, out: &mut Vec<u8>) -> u8 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            out.extend_from_slice(&v4.octets());
            b'4'
        }
        IpAddr::V6(v6) => {
            out.extend_from_slice(&v6.octets()[..8]);
            b'6'
        }
    }
}

/// The list elements of all lines of `name` (RFC 9110 section 5.3), without padding, emptiness and repetition.
fn field(name: &HeaderName, headers: &HeaderMap, out: &mut Vec<u8>) {
    let credentials = name == AUTHORIZATION || name == PROXY_AUTHORIZATION;
    let start = out.len();
    let mut last = start..start;
    let elements = headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    for element in elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty()) {
        let begun = out.len();
        if begun > start {
            out.push(b',');
        }
        let value = out.len();
        if credentials {
            scheme_lowered(element, out);
        } else {
            out.extend_from_slice(element);
        }
        if begun > start && out[last.clone()] == out[value..] {
            out.truncate(begun);
        } else {
            last = value..out.len();
        }
    }
}

/// Credentials with their scheme in lower case and one space behind it: RFC 9110 section 11.1 leaves both free.
fn scheme_lowered(credentials: &[u8], out: &mut Vec<u8>) {
    let end = credentials.iter().position(|&byte| byte == b' ').unwrap_or(credentials.len());
    let (scheme, rest) = credentials.split_at(end);
    out.extend(scheme.iter().map(u8::to_ascii_lowercase));
    if !rest.is_empty() {
        out.push(b' ');
        out.extend_from_slice(rest.trim_ascii_start());
    }
}

/// The first cookie called `name`, without the quotes that servers take off.
fn cookie<'h>(name: &[u8], headers: &'h HeaderMap) -> &'h [u8] {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    for pair in pairs {
        let (found, value) = split_once(pair, b'=');
        if found.trim_ascii() == name {
            let value = value.trim_ascii();
            let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            return bare.unwrap_or(value);
        }
    }
    b""
}

/// The first parameter whose decoded name is `name`, decoded.
fn parameter(name: &[u8], query: &[u8], out: &mut Vec<u8>) {
    for pair in query.split(|&byte| byte == b'&') {
        let (found, value) = split_once(pair, b'=');
        if decoded(found).eq(name.iter().copied()) {
            out.extend(decoded(value));
            return;
        }
    }
}

/// Bytes with `%xx` and `+` decoded; what is no escape stands for itself.
fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        if first == b'+' {
            return Some(b' ');
        }
        if first == b'%'
            && let [high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        Some(first)
    })
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

fn split_once(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(at, text) {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, b""),
    }
}

/// `host` without a default port and without the root's dot.
fn authority(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, "" | "80" | "443")) => name,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// Names buckets in Redis: truncated HMAC-SHA256 in hex, so that nobody who reads Redis learns an address or a token.
pub struct Pseudonym(Hmac<Sha256>);

impl Pseudonym {
    /// Under this secret, which all pods share.
    pub fn new(secret: &Secret) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length");
        mac.update(PSEUDONYM_DOMAIN);
        Self(mac)
    }

    /// The name of `identity` (canonical bytes): 32 hex digits.
    pub fn of(&self, identity: &[u8]) -> String {
        let digest = self.0.clone().chain_update(identity).finalize().into_bytes();
        let mut name = Vec::with_capacity(2 * PSEUDONYM_BYTES);
        for byte in &digest[..PSEUDONYM_BYTES] {
            name.extend_from_slice(&[byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        String::from_utf8(name).expect("digits are ASCII")
    }
}

/// Names buckets in memory: two hashes under keys of this process, together too wide to collide.
pub struct LocalNames([RandomState; 2]);

/// A bucket's name in memory.
pub type LocalName = u128;

impl Default for LocalNames {
    /// Under fresh keys.
    fn default() -> Self {
        Self([RandomState::new(), RandomState::new()])
    }
}

impl LocalNames {
    /// The name of `identity` (canonical bytes) under the limit called `scope`.
    pub fn of(&self, scope: &str, identity: &[u8]) -> LocalName {
        let half = |state: &RandomState| u128::from(state.hash_one((scope, identity)));
        half(&self.0[0]) << 64 | half(&self.0[1])
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
