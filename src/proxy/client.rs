//! Who is it: the client's address and scheme, through trusted proxies only.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Config;
use crate::message::Peer;

/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Most proxies between client and Weir that are looked through: bounds what a long list costs.
pub const HOPS: usize = 32;

/// Who sent a request, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The first address from the right that is not a trusted proxy's, or the farthest that is; IPv4 never mapped.
    pub ip: IpAddr,
    /// What the client spoke to the first trusted proxy, or to Weir.
    pub proto: Scheme,
    /// The transport's remote address; IPv4 never mapped.
    pub peer: IpAddr,
    /// Whether `peer` is a trusted proxy: only then its forwarding fields are believed and kept.
    pub peer_trusted: bool,
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As it stands in URLs and fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }
}

impl Client {
    /// Who sent a request with these `fields` over a connection from `peer`.
    ///
    /// From a trusted peer, `X-Forwarded-For` (or, in its absence, `Forwarded`, RFC 7239) is read from the right: each
    /// element was written by the hop to its right, so it is believed as long as that hop is trusted. What cannot be read
    /// ends the walk at the last hop known.
    pub fn identify(peer: &Peer, fields: &HeaderMap, config: &Config) -> Self {
        Self::believing(peer, fields, |ip| config.trusts(ip))
    }

    fn believing(peer: &Peer, fields: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> Self {
        let address = peer.address.ip().to_canonical();
        let proto = if peer.encrypted { Scheme::Https } else { Scheme::Http };
        let mut client = Self { ip: address, proto, peer: address, peer_trusted: trusts(address) };
        if !client.peer_trusted {
            return client;
        }
        if fields.contains_key(X_FORWARDED_FOR) {
            client.walk_x_forwarded(fields, trusts);
        } else if fields.contains_key(FORWARDED) {
            client.walk_forwarded(fields, trusts);
        } else {
            client.proto = nth_proto(fields, 0).unwrap_or(proto);
        }
        client
    }

    fn walk_x_forwarded(&mut self, fields: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) {
        let mut hops = 0;
        for element in elements_from_right(fields, &X_FORWARDED_FOR).take(HOPS) {
            let Some(ip) = parse_node(element) else { break };
            self.ip = ip;
            hops += 1;
            if !trusts(ip) {
                break;
            }
        }
        self.proto = nth_proto(fields, hops.max(1) - 1).unwrap_or(self.proto);
    }

    fn walk_forwarded(&mut self, fields: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) {
        let mut proto = None;
        let mut hops = 0;
        for field in fields.get_all(FORWARDED).iter().rev() {
            for element in unquoted_from_right(&String::from_utf8_lossy(field.as_bytes())) {
                let Some(hop) = parse_element(element).filter(|_| hops < HOPS) else { return };
                hops += 1;
                proto = hop.proto.or(proto);
                self.proto = proto.unwrap_or(self.proto);
                let Some(ip) = hop.ip else { return };
                self.ip = ip;
                if !trusts(ip) {
                    return;
                }
            }
        }
    }
}

/// The elements of a list field, several fields joined, last first; empty ones are none (RFC 9110 section 5.6.1.2). What
/// is not text is an element that cannot be read, and hides none that a proxy appended to it.
fn elements_from_right<'f>(fields: &'f HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'f str> {
    let values = fields.get_all(name).iter().rev();
    let elements = values.flat_map(|value: &HeaderValue| value.as_bytes().rsplit(|&byte| byte == b','));
    let texts = elements.map(|element| std::str::from_utf8(element.trim_ascii()).unwrap_or("-"));
    texts.filter(|element| !element.is_empty())
}

/// The elements of a `Forwarded` field, last first. Read from the right, so that a quote which a client left open hides none
/// of those that proxies appended.
fn unquoted_from_right(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    let pieces = std::iter::from_fn(move || {
        let text = rest?;
        let bytes = text.as_bytes();
        let mut quoted = false;
        for at in (0..bytes.len()).rev() {
            match bytes[at] {
                b'"' => {
                    let escapes = bytes[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
                    quoted ^= !quoted || escapes % 2 == 0;
                }
                b',' if !quoted => {
                    rest = Some(&text[..at]);
                    return Some(&text[at + 1..]);
                }
                _ => {}
            }
        }
        rest = None;
        Some(text)
    });
    pieces.map(str::trim).filter(|piece| !piece.is_empty())
}

/// `X-Forwarded-Proto` at the hop with this number from the right. Most proxies set one value rather than append one, so
/// what is missing on the left is what stands there.
fn nth_proto(fields: &HeaderMap, hop: usize) -> Option<Scheme> {
    elements_from_right(fields, &X_FORWARDED_PROTO).take(hop.min(HOPS) + 1).last().and_then(Scheme::parse)
}

/// An address with or without a port, IPv6 with or without brackets; mapped IPv4 is IPv4.
fn parse_node(text: &str) -> Option<IpAddr> {
    let ip = text.parse::<IpAddr>().ok().or_else(|| {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match bracketed {
            Some(inner) => inner.parse().ok().map(IpAddr::V6),
            None => text.parse::<SocketAddr>().ok().map(|address| address.ip()),
        }
    })?;
    Some(ip.to_canonical())
}

/// What one element of `Forwarded` says of the hop that sent the request to its writer.
#[derive(Default)]
struct ForwardedHop {
    ip: Option<IpAddr>,
    proto: Option<Scheme>,
}

/// Reads one element (RFC 7239 section 4), or nothing where it breaks the grammar. `unknown` and names that begin with
/// `_` are no addresses.
fn parse_element(element: &str) -> Option<ForwardedHop> {
    let mut hop = ForwardedHop::default();
    let mut seen_for = false;
    for pair in split_at_unquoted(element, b';')? {
        let (name, value) = pair.split_once('=')?;
        let value = unquote(value)?;
        if name.eq_ignore_ascii_case("for") {
            if std::mem::replace(&mut seen_for, true) {
                return None;
            }
            hop.ip = parse_forwarded_node(&value);
        } else if name.eq_ignore_ascii_case("proto") {
            hop.proto = Scheme::parse(&value);
        }
    }
    Some(hop)
}

/// RFC 7239 section 6: an IPv6 address stands in brackets; a port may be a name that begins with `_`.
fn parse_forwarded_node(text: &str) -> Option<IpAddr> {
    let host = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
            (digits || port.starts_with('_')).then_some(host)?
        }
        _ => text,
    };
    parse_node(host).filter(|_| host.starts_with('[') || !host.contains(':'))
}

/// The elements of a `Forwarded` field, or nothing where a quote is left open.
pub(super) fn split_unquoted(text: &str) -> Option<Vec<&str>> {
    split_at_unquoted(text, b',')
}

/// The non-empty pieces of `text` between separators outside quotes, or nothing where a quote is left open.
fn split_at_unquoted(text: &str, separator: u8) -> Option<Vec<&str>> {
    let (mut pieces, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                pieces.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(text[start..].trim());
    pieces.retain(|piece| !piece.is_empty());
    (!quoted).then_some(pieces)
}

/// The value of a token or quoted string (RFC 9110 sections 5.6.2 and 5.6.4).
fn unquote(value: &str) -> Option<Cow<'_, str>> {
    let Some(inner) = value.strip_prefix('"') else {
        // Proxies write addresses with ports, and IPv6 ones, without the quotes they need.
        return (!value.is_empty() && !value.contains(['"', ' ', '\t'])).then_some(Cow::Borrowed(value));
    };
    let inner = inner.strip_suffix('"')?;
    if !inner.contains(['\\', '"']) {
        return Some(Cow::Borrowed(inner));
    }
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => chars.next()?,
            '"' => return None,
            other => other,
        });
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests;
