//! The header that a balancer puts in front of a connection to say whose it is: PROXY protocol, versions 1 and 2.
//!
//! Read strictly, as HAProxy's `proxy-protocol.txt` has it (sections in brackets below): what is no header of a known
//! form ends the connection, because whoever was to send it can be wrong about the rest as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header of version 1, its line end included (2.1).
pub const V1_MAX: usize = 107;

/// Longest header of version 2 that is taken, where its form allows 64 KiB: the addresses and room for what balancers add,
/// a client certificate's names among it.
pub const V2_MAX: usize = 4096;

/// First bytes of either version (2.1, 2.2).
const V1_BEGINS: &[u8] = b"PROXY ";
const V2_BEGINS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2: everything before the addresses.
const V2_FIXED: usize = 16;

/// Version 2: address blocks of TCP over IPv4 and IPv6, and of unix sockets.
const V2_INET: usize = 12;
const V2_INET6: usize = 36;
const V2_UNIX: usize = 216;

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// All of the bytes belong to a header that is not whole yet.
    Partial,
    /// A whole one.
    Whole {
        /// Its length; what stands behind it is the connection's own.
        length: usize,
        /// The client it names; none where it says that the connection is the sender's own, or names no TCP address.
        client: Option<SocketAddr>,
    },
}

/// The bytes begin no header that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Reads the header at the beginning of `bytes`.
///
/// # Errors
/// The bytes are no header, or not the beginning of one.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if begins(bytes, V1_BEGINS) {
        version_1(bytes)
    } else if begins(bytes, V2_BEGINS) {
        version_2(bytes)
    } else {
        Err(Malformed)
    }
}

/// Whether the one is the beginning of the other.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let common = bytes.len().min(signature.len());
    bytes[..common] == signature[..common]
}

/// One line of text (2.1).
fn version_1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let line = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        let return_within = memchr::memchr(b'\r', line).is_some_and(|at| at + 1 < line.len());
        return if return_within || bytes.len() >= V1_MAX { Err(Malformed) } else { Ok(Parsed::Partial) };
    };
    let text = line[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()).ok_or(Malformed)?;
    let text = text.strip_prefix("PROXY ").filter(|text| !text.contains('\r')).ok_or(Malformed)?;
    let client = if text == "UNKNOWN" || text.starts_with("UNKNOWN ") { None } else { Some(named(text)?) };
    Ok(Parsed::Whole { length: end + 1, client })
}

/// `TCP4` or `TCP6`, both addresses, both ports.
fn named(text: &str) -> Result<SocketAddr, Malformed> {
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(Malformed);
    let family = word()?;
    let address = |text: &str| -> Result<IpAddr, Malformed> {
        match family {
            "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| Malformed),
            "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| Malformed),
            _ => Err(Malformed),
        }
    };
    let source = address(word()?)?;
    address(word()?)?;
    let source_port = port(word()?)?;
    port(word()?)?;
    if words.next().is_some() { Err(Malformed) } else { Ok(SocketAddr::new(source, source_port)) }
}

/// Decimal, without a sign or leading zeros.
fn port(text: &str) -> Result<u16, Malformed> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or(Malformed)
}

/// Binary (2.2).
fn version_2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(command) = bytes.get(12) else { return Ok(Parsed::Partial) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    let Some(kind) = bytes.get(13) else { return Ok(Parsed::Partial) };
    let (family, transport) = (kind >> 4, kind & 0x0f);
    let least = match family {
        0 => 0,
        1 => V2_INET,
        2 => V2_INET6,
        3 => V2_UNIX,
        _ => return Err(Malformed),
    };
    if transport > 2 {
        return Err(Malformed);
    }
    let Some(&[high, low]) = bytes.get(14..V2_FIXED) else { return Ok(Parsed::Partial) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    // A sender that speaks for itself need not fill in what it says of others.
    if length > V2_MAX || (!is_local && length < V2_FIXED + least) {
        return Err(Malformed);
    }
    let Some(addresses) = bytes.get(V2_FIXED..length) else { return Ok(Parsed::Partial) };
    // Behind the addresses there may be more (2.2.1 to 2.2.8); Weir needs none of it.
    let client = if is_local { None } else { stream(*kind, addresses) };
    Ok(Parsed::Whole { length, client })
}

/// The source address of TCP over IPv4 or IPv6.
fn stream(kind: u8, block: &[u8]) -> Option<SocketAddr> {
    match kind {
        0x11 => {
            let (source, ports) = (block.first_chunk::<4>()?, block.get(8..10)?.first_chunk::<2>()?);
            Some(SocketAddr::new(Ipv4Addr::from(*source).into(), u16::from_be_bytes(*ports)))
        }
        0x21 => {
            let (source, ports) = (block.first_chunk::<16>()?, block.get(32..34)?.first_chunk::<2>()?);
            Some(SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes(*ports)))
        }
        // Unix sockets and datagrams name no peer of a TCP connection, and what is unspecified names nobody.
        _ => None,
    }
}

#[cfg(test)]
mod tests;
