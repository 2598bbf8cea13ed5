//! Fields that belong to one connection or one hop: what is removed, what is added, what must not pass.

use std::fmt::Write;
use std::net::IpAddr;

use http::header::{CONNECTION, COOKIE, Entry, FORWARDED, TE, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::client::{Client, X_FORWARDED_FOR, X_FORWARDED_PROTO, split_unquoted};

/// `X-Forwarded-Host`.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What the fields of one hop asked for before they were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hop {
    /// Protocols offered (or, in a 101, chosen) by `Upgrade` where `Connection` names it; never `h2c`.
    pub upgrade: Option<HeaderValue>,
    /// Whether trailers are wanted (`TE: trailers`).
    pub te_trailers: bool,
    /// Whether `Connection: close` was said.
    pub close: bool,
}

/// Removes what belongs to one connection only (RFC 9110 section 7.6.1), in requests and answers alike, and says what it
/// was. `TE: trailers`, and `Connection` with `Upgrade`, are for the caller to make anew where they hold.
///
/// `Connection` names further fields of the kind; it cannot take away one that other parties than the next hop need, or
/// anyone could strip a request of its framing, its credentials or its origin.
pub fn strip_hop_by_hop(fields: &mut HeaderMap) -> Hop {
    if !fields.keys().any(is_hop_by_hop) {
        return Hop::default();
    }
    let mut hop = Hop { te_trailers: wants_trailers(fields), ..Hop::default() };
    strip_nominated(fields);
    let says = |wanted: &[u8]| {
        let options = fields.get_all(CONNECTION).iter().flat_map(tokens);
        options.into_iter().any(|option| option.eq_ignore_ascii_case(wanted))
    };
    hop.close = says(b"close");
    let upgrade = says(b"upgrade");
    if upgrade {
        hop.upgrade = offered_protocols(fields);
    }
    remove_where(fields, is_hop_by_hop);
    hop
}

/// Removes the fields that `Connection` names away, but none that belongs to the hop by itself, `Connection` included.
/// Of a request they go before anything looks at it: what the upstream is not to see may choose no route, key or limit.
pub fn strip_nominated(fields: &mut HeaderMap) {
    if !fields.contains_key(CONNECTION) {
        return;
    }
    let connection: Vec<HeaderValue> = fields.get_all(CONNECTION).iter().cloned().collect();
    for option in connection.iter().flat_map(tokens) {
        if let Ok(name) = HeaderName::from_bytes(option)
            && !is_end_to_end(name.as_str())
            && !is_hop_by_hop(&name)
        {
            fields.remove(name);
        }
    }
}

/// Fields that one connection owns, `Connection` or not. `HTTP2-Settings` goes with `h2c`, which is never passed on.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Fields (in lower case) that `Connection` cannot name away: framing, addressing, credentials, what other hops wrote, and
/// what a cache or the reader of the content decides by.
fn is_end_to_end(name: &str) -> bool {
    matches!(
        name,
        "age"
            | "authorization"
            | "cache-control"
            | "cdn-cache-control"
            | "cookie"
            | "date"
            | "etag"
            | "expires"
            | "forwarded"
            | "host"
            | "last-modified"
            | "location"
            | "set-cookie"
            | "surrogate-control"
            | "vary"
            | "via"
            | "weir-cache-control"
            | "www-authenticate"
    ) || name.starts_with("content-")
        || name.starts_with("x-forwarded-")
}

fn wants_trailers(fields: &HeaderMap) -> bool {
    let codings = fields.get_all(TE).iter().flat_map(tokens);
    let mut names = codings.map(|coding| coding.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end());
    names.any(|name| name.eq_ignore_ascii_case(b"trailers"))
}

/// All of `Upgrade` but `h2c`, which would hand the connection to a protocol that nobody here looks into.
fn offered_protocols(fields: &HeaderMap) -> Option<HeaderValue> {
    let all = fields.get_all(UPGRADE);
    let is_h2c = |protocol: &&[u8]| !protocol.is_ascii() || protocol.eq_ignore_ascii_case(b"h2c");
    let mut values = all.iter();
    let first = values.next()?;
    if values.next().is_none() && !tokens(first).any(|protocol| is_h2c(&protocol)) {
        return (tokens(first).next().is_some()).then(|| first.clone());
    }
    let kept: Vec<_> = all.iter().flat_map(tokens).filter(|protocol| !is_h2c(protocol)).collect();
    if kept.is_empty() { None } else { HeaderValue::try_from(kept.join(&b", "[..])).ok() }
}

/// The elements of a list of tokens, as bytes: one that is no token does not hide the others.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// The longest address as text.
const ADDRESS_BYTES: usize = 46;

/// What stands around address and host in one element of `Forwarded`.
const FORWARDED_EXTRA_BYTES: usize = 32;

/// Tells the upstream where a request came from: `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
///
/// What a trusted peer wrote is continued; a stranger's `Forwarded` and `X-Forwarded-*` fields are removed. Where a
/// trusted peer wrote one of the two lists, the other begins with the client it names. `host` is the authority by which
/// the request was routed and keyed.
pub fn set_forwarding(fields: &mut HeaderMap, client: &Client, host: &str) {
    // A trusted peer passes on what it does not know, such as another spelling of what it writes itself.
    remove_where(fields, |name| is_forwarding(name) && (!client.peer_trusted || name.as_str().contains('_')));
    let mut list = joined(fields, &X_FORWARDED_FOR).unwrap_or_else(|| {
        let mut list = String::with_capacity(ADDRESS_BYTES);
        if client.ip != client.peer {
            push_ip(&mut list, client.ip);
        }
        list
    });
    separate(&mut list);
    push_ip(&mut list, client.peer);
    insert(fields, X_FORWARDED_FOR, list);

    // A quote that somebody left open would swallow what comes behind it, the next field or what is appended.
    let is_whole = |value: &HeaderValue| value.to_str().is_ok_and(|value| split_unquoted(value).is_some());
    let is_whole = fields.get_all(FORWARDED).iter().all(is_whole);
    let list = joined(fields, &FORWARDED).filter(|_| is_whole);
    let mut list = list.unwrap_or_else(|| String::with_capacity(ADDRESS_BYTES + host.len() + FORWARDED_EXTRA_BYTES));
    let fresh = list.is_empty();
    separate(&mut list);
    push_node(&mut list, if fresh { client.ip } else { client.peer });
    push_host(&mut list, host);
    list.push_str(";proto=");
    list.push_str(client.proto.as_str());
    if fresh && client.ip != client.peer {
        separate(&mut list);
        push_node(&mut list, client.peer);
    }
    insert(fields, FORWARDED, list);

    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.proto.as_str()));
    match HeaderValue::from_str(host) {
        Ok(host) if !host.is_empty() => fields.insert(X_FORWARDED_HOST, host),
        _ => fields.remove(X_FORWARDED_HOST),
    };
}

/// `Forwarded` and every `X-Forwarded-*`.
fn is_forwarding(name: &HeaderName) -> bool {
    const PREFIX: &str = "x-forwarded-";
    *name == FORWARDED || name.as_str().get(..PREFIX.len()).is_some_and(|start| reads_as(start, PREFIX))
}

/// Whether a name is `known`, or is to services that read `_` as `-`, as those behind CGI, WSGI or Rack do.
fn reads_as(name: &str, known: &str) -> bool {
    let same = |(byte, known): (u8, u8)| byte == known || (byte == b'_' && known == b'-');
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(same)
}

/// Removes every field whose name fits, in time linear in the fields, without an allocation where none does.
fn remove_where(fields: &mut HeaderMap, fits: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| fits(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// All values of a field as one list; nothing where there is none, or where a value is not text.
fn joined(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut list = String::new();
    for value in fields.get_all(name) {
        let value = value.to_str().ok()?.trim();
        if !value.is_empty() {
            separate(&mut list);
            list.push_str(value);
        }
    }
    (!list.is_empty()).then_some(list)
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push_str(", ");
    }
}

/// `for=` with a node as RFC 7239 section 6 spells it: IPv6 in brackets, and therefore in quotes.
fn push_node(list: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(_) => {
            list.push_str("for=");
            push_ip(list, ip);
        }
        IpAddr::V6(ip) => _ = write!(list, "for=\"[{ip}]\""),
    }
}

/// An address as it is written; of IPv4 without the formatter, which would take longer than all else here.
fn push_ip(list: &mut String, ip: IpAddr) {
    let IpAddr::V4(v4) = ip else {
        _ = write!(list, "{ip}");
        return;
    };
    for (i, part) in v4.octets().into_iter().enumerate() {
        if i > 0 {
            list.push('.');
        }
        list.push_str(itoa::Buffer::new().format(part));
    }
}

fn push_host(list: &mut String, host: &str) {
    if host.is_empty() {
        return;
    }
    list.push_str(";host=");
    if host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        list.push_str(host);
        return;
    }
    list.push('"');
    for c in host.chars() {
        if matches!(c, '"' | '\\') {
            list.push('\\');
        }
        list.push(c);
    }
    list.push('"');
}

/// Sets a field; a value that no field can hold removes it instead.
fn insert(fields: &mut HeaderMap, name: HeaderName, value: String) {
    match HeaderValue::try_from(value) {
        Ok(value) => _ = fields.insert(name, value),
        Err(_) => _ = fields.remove(name),
    }
}

/// Adds this hop to `Via` (RFC 9110 section 7.6.3); `version` is that of the message as it was received.
pub fn append_via(fields: &mut HeaderMap, version: Version) {
    let via = match version {
        Version::HTTP_10 => "1.0 weir",
        Version::HTTP_2 => "2.0 weir",
        Version::HTTP_3 => "3.0 weir",
        _ => "1.1 weir",
    };
    fields.append(VIA, HeaderValue::from_static(via));
}

/// On a route that caches, removes the fields by which some services let a request name another host, URL, scheme or
/// prefix than its own: they are no part of the key, so what they provoke must not be stored. Those in `keyed` stay. Call
/// it before [`set_forwarding`], which writes the ones that are ours from what is keyed.
pub fn drop_overrides(fields: &mut HeaderMap, keyed: &[HeaderName]) {
    remove_where(fields, |name| is_override(name) && !keyed.contains(name));
}

/// Whether there is one of the fields that [`drop_overrides`] removes, and that [`set_forwarding`] does not write anew.
pub fn steers(fields: &HeaderMap, keyed: &[HeaderName]) -> bool {
    fields.keys().any(|name| is_override(name) && !is_forwarding(name) && !keyed.contains(name))
}

/// Whether a field asks for another method than the request's own: such a request bypasses the cache.
pub fn overrides_method(fields: &HeaderMap) -> bool {
    fields.keys().any(is_method_override)
}

fn is_override(name: &HeaderName) -> bool {
    const OVERRIDES: [&str; 9] = [
        "front-end-https",
        "x-host",
        "x-http-host-override",
        "x-original-host",
        "x-original-uri",
        "x-original-url",
        "x-rewrite-url",
        "x-scheme",
        "x-url-scheme",
    ];
    // Most names begin with another letter.
    name.as_str().starts_with(['x', 'f'])
        && ((is_forwarding(name) && *name != X_FORWARDED_FOR)
            || OVERRIDES.iter().any(|known| reads_as(name.as_str(), known)))
}

fn is_method_override(name: &HeaderName) -> bool {
    const OVERRIDES: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];
    name.as_str().starts_with('x') && OVERRIDES.iter().any(|known| reads_as(name.as_str(), known))
}

/// Puts the `Cookie` fields that HTTP/2 may split (RFC 9113 section 8.2.3) back into one.
pub fn join_cookies(fields: &mut HeaderMap) {
    let Entry::Occupied(mut cookies) = fields.entry(COOKIE) else { return };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let mut joined = Vec::with_capacity(cookies.iter().map(|cookie| cookie.len() + 2).sum());
    for cookie in cookies.iter().filter(|cookie| !cookie.is_empty()) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(cookie.as_bytes());
    }
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        Ok(joined) => _ = cookies.insert(joined),
        Err(_) => _ = cookies.remove(),
    }
}

/// Removes from trailers what would change framing, routing, credentials, or how the message is read, after all of that
/// was decided (RFC 9110 section 6.5.1).
pub fn filter_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, is_forbidden_trailer);
}

fn is_forbidden_trailer(name: &HeaderName) -> bool {
    let text = name.as_str();
    // Both are defined so that they may come behind the content (RFC 9110 section 8.8.3, RFC 9530 section 2).
    let allowed = matches!(text, "etag" | "content-digest");
    let decided_by = is_hop_by_hop(name) || is_end_to_end(text) || is_override(name) || is_method_override(name);
    !allowed
        && (decided_by
            || text.starts_with("if-")
            || matches!(text, "expect" | "max-forwards" | "pragma" | "range" | "retry-after" | "trailer"))
}

#[cfg(test)]
mod tests;
