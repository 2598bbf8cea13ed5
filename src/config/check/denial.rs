//! Whom a limit is not for, whom it always denies, and what its denials say: `allow`, `deny`, `status`, `body`.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Check;
use super::idle::ADDRESS_BITS;
use crate::config::Notice;
use crate::config::raw::{self, At, Maybe, Texts};
use crate::syntax::blanks::Blanks;

/// Longest body of a denial, in bytes: it is held in memory, and sent to whoever asks too often.
const BODY_BYTES: usize = 16 * 1024;

/// What a body is that says nothing of it.
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Bits of an IPv6 address that say whose it is: the others are one client's to choose.
const CLIENT_BITS: u8 = 64;

impl Check<'_, '_> {
    /// `deny`.
    pub(super) fn denied_networks(&mut self, raw: &Texts<IpNet>) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in raw.iter().flatten() {
            let Some(network) = self.network(text, CLIENT_BITS).map(canonical) else { continue };
            match network {
                IpNet::V6(v6) if v6.prefix_len() > CLIENT_BITS => {
                    let whole = Ipv6Net::new(v6.addr(), CLIENT_BITS).map_or(v6, |net| net.trunc());
                    let problem = "a client of IPv6 has a /64 to itself, and would come from another address of it";
                    self.error(&text.span(), problem, format!("write \"{whole}\""));
                }
                network => networks.push(network),
            }
        }
        networks
    }

    /// `allow`, which `deny` comes before.
    pub(super) fn allowed_networks(&mut self, raw: &Texts<IpNet>, denied: &[IpNet]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in raw.iter().flatten() {
            let Some(network) = self.network(text, ADDRESS_BITS).map(canonical) else { continue };
            if let Some(wider) = denied.iter().find(|wider| wider.contains(&network)) {
                let problem = format!("all of {network} is denied by \"{wider}\", and `deny` comes first");
                self.error(&text.span(), problem, "remove it, or deny the networks around it");
            }
            networks.push(network);
        }
        networks
    }

    /// `status`.
    pub(super) fn denial_status(&mut self, raw: &Maybe<i64>) -> StatusCode {
        let Some(at) = raw else { return StatusCode::TOO_MANY_REQUESTS };
        let read = u16::try_from(at.value).ok().filter(|status| (400..=499).contains(status) || *status == 503);
        read.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or_else(|| {
            let problem = format!("{} does not tell a client that it is denied", at.value);
            self.error(&at.span(), problem, "write a status from 400 to 499, or 503");
            StatusCode::TOO_MANY_REQUESTS
        })
    }

    /// `body` or `body_file`, with `content_type`.
    pub(super) fn notice(&mut self, raw: &raw::Limit) -> Option<Notice> {
        let content_type = self.read(&raw.content_type);
        let (text, at) = match (&raw.body, &raw.body_file) {
            (Some(_), Some(file)) => {
                self.error(&file.span(), "this limit has `body` and `body_file`", "keep one of them");
                return None;
            }
            (Some(body), None) => (body.value.clone(), body),
            (None, Some(file)) => (self.body_file(file)?, file),
            (None, None) => {
                if let Some(at) = &raw.content_type {
                    let remedy = "add `body` or `body_file`, or remove it";
                    self.error(&at.span(), "`content_type` without a body: a problem says itself what it is", remedy);
                }
                return None;
            }
        };
        if text.len() > BODY_BYTES {
            let problem = format!("the body of a denial has {} bytes", text.len());
            self.error(&at.span(), problem, format!("write at most {BODY_BYTES}"));
            return None;
        }
        match Blanks::parse(&text, &Notice::BLANKS) {
            Ok(text) => Some(Notice { content_type: content_type.unwrap_or(PLAIN), text: Arc::new(text) }),
            Err(wrong) => {
                self.error(&at.span(), wrong.problem, wrong.remedy);
                None
            }
        }
    }

    fn body_file(&mut self, file: &At<String>) -> Option<String> {
        let remedy = "name a file of text that this process may read";
        let bytes = self.file(file, BODY_BYTES, remedy)?;
        let text = String::from_utf8(bytes).ok();
        if text.is_none() {
            self.file_error(&file.span(), "the body of a denial is not UTF-8", remedy);
        }
        text
    }
}

/// As clients' addresses are compared: IPv4 never mapped.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match (network, network.addr().to_canonical()) {
        (IpNet::V6(v6), IpAddr::V4(v4)) if v6.prefix_len() >= MAPPED_BITS => {
            Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_networks_are_those_of_ipv4() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
            ("::ffff:0.0.0.0/95", "::ffff:0.0.0.0/95"),
            ("2001:db8::/32", "2001:db8::/32"),
        ] {
            let expected: IpNet = expected.parse().unwrap();
            assert_eq!(canonical(text.parse().unwrap()), expected, "{text}");
        }
    }
}
