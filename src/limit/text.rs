//! Identities as people write them: the fields of the hashes that say who has which tier.
//!
//! Parts stand in the order of the limit's `key`, with a space between them. An address is as usual, of IPv6 the /64; what a
//! request lacks is `-`; a value that is hashed for its length is `sha256:` and the digest in hex; all else is as it is in
//! the identity, but for `%`, spaces and control characters, which are `%` and two hex digits. No two identities of a limit
//! have the same text, but for a claim's text and number.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::identity::PART_HEAD;

/// What stands before the digest of a long value.
const DIGEST: &[u8] = b"sha256:";

/// Appends the text of an identity, given as [`super::identity::canonical`] writes it.
pub(super) fn append(mut canonical: &[u8], out: &mut Vec<u8>) {
    let mut is_first = true;
    while let Some((head, rest)) = canonical.split_at_checked(PART_HEAD) {
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (value, rest) = rest.split_at(length.min(rest.len()));
        if !is_first {
            out.push(b' ');
        }
        is_first = false;
        part(head[0], value, out);
        canonical = rest;
    }
}

fn part(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    match (kind, value) {
        (b'4', &[a, b, c, d]) => {
            // Writing to memory does not fail.
            let _ = write!(out, "{}", Ipv4Addr::new(a, b, c, d));
        }
        (b'6', half) if half.len() == 8 => {
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(half);
            let _ = write!(out, "{}/64", Ipv6Addr::from(octets));
        }
        (_, b"") => out.push(b'-'),
        (kind, digest) if kind.is_ascii_uppercase() => {
            out.extend_from_slice(DIGEST);
            digest.iter().for_each(|byte| hex(*byte, out));
        }
        (_, value) => {
            // What would be read as something else begins with an escape.
            let mut is_odd = value == b"-" || value.starts_with(DIGEST);
            for &byte in value {
                if is_odd || byte <= b' ' || byte == b'%' || byte == 0x7f {
                    out.push(b'%');
                    hex(byte, out);
                } else {
                    out.push(byte);
                }
                is_odd = false;
            }
        }
    }
}

fn hex(byte: u8, out: &mut Vec<u8>) {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    out.extend([digit(byte >> 4), digit(byte & 15)]);
}

#[cfg(test)]
mod tests {
    use http::header::HeaderName;
    use http::{HeaderMap, Method};

    use super::super::Facts;
    use super::super::identity::canonical;
    use super::*;
    use crate::config::IdentityPart;

    fn text(parts: &[IdentityPart], ip: &str, key: &str) -> String {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), key.parse().unwrap())]);
        let facts = Facts {
            ip: ip.parse().unwrap(),
            headers: &headers,
            query: None,
            route: "a b",
            host: "Shop.Example:443",
            method: &Method::GET,
        };
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        canonical(parts, &facts, &mut bytes);
        append(&bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn identities_are_written_as_people_do() {
        let key = || IdentityPart::Header(HeaderName::from_static("x-api-key"));
        let both = [IdentityPart::Ip, key()];
        for (parts, ip, value, expected) in [
            (&[key()][..], "::1", "alice", "alice"),
            (&[key()], "::1", "zo\u{eb} 100%", "zo\u{eb}%20100%25"),
            (&[key()], "::1", "", "-"),
            (&[key()], "::1", "-", "%2d"),
            (&[key()], "::1", "--", "--"),
            (&[key()], "::1", "sha256:00", "%73ha256:00"),
            (&[IdentityPart::Ip], "::ffff:192.0.2.1", "", "192.0.2.1"),
            (&[IdentityPart::Ip], "2001:db8:1:2:3::4", "", "2001:db8:1:2::/64"),
            (&both, "192.0.2.1", "a", "192.0.2.1 a"),
            (&[IdentityPart::Route, IdentityPart::Host], "::1", "", "a%20b shop.example"),
        ] {
            assert_eq!(text(parts, ip, value), expected);
        }
        let long = text(&both, "::1", &"x".repeat(257));
        assert!(long.starts_with("::/64 sha256:") && long.len() == 13 + 64, "{long}");
    }
}
