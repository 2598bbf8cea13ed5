//! Who may change something through the admin port.
//!
//! A web page must not be able to: not across sites (`Origin`, `Sec-Fetch-Site`), and not by pointing a name of its own at
//! our address (DNS rebinding: `Host`). Beyond that a token decides, or, where none is set, that the peer is on this host
//! (in Kubernetes: in this pod).

use std::net::IpAddr;

use hmac::{Hmac, Mac};
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode};
use sha2::Sha256;

use crate::config::Secret;

/// Why a request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A browser sent it on behalf of another site.
    CrossSite,
    /// `Host` is a name that anybody could point here, or is missing, doubled or malformed.
    Host,
    /// A token is set, and the request has none.
    NoToken,
    /// Its token is another one.
    WrongToken,
    /// No token is set, and the peer is on another host.
    NotLoopback,
}

impl Refusal {
    /// Status, what is wrong, what to do.
    pub(super) fn explain(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::CrossSite => (
                StatusCode::FORBIDDEN,
                "a web page of another site sent this request",
                "send it from a program, or from a page that this port itself served",
            ),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "the Host field names no address of this port",
                "use an IP address, localhost, or a name that only a private network can hold (weir, weir.shop.svc, weir.internal)",
            ),
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "this needs the admin token",
                "send `Authorization: Bearer <token>`, or give `--token-file` to weir",
            ),
            Self::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "this is not the admin token",
                "compare it with the file that [admin] token_file names; a line end behind it does not count",
            ),
            Self::NotLoopback => (
                StatusCode::FORBIDDEN,
                "no admin token is set, so that only this host may change anything",
                "set [admin] token_file and send the token, or ask from the pod itself",
            ),
        }
    }
}

/// Whether a request from `peer` may change something; `token` is the configured one.
pub(super) fn admit(head: &Parts, peer: IpAddr, token: Option<&Secret>) -> Result<(), Refusal> {
    let host = authority(head).ok_or(Refusal::Host)?;
    if cross_site(head, &host) {
        return Err(Refusal::CrossSite);
    }
    if !holds(host.host()) {
        return Err(Refusal::Host);
    }
    match token {
        Some(token) if bears(head, token)? => Ok(()),
        Some(_) => Err(Refusal::WrongToken),
        None if peer.to_canonical().is_loopback() => Ok(()),
        None => Err(Refusal::NotLoopback),
    }
}

/// Whether the request bears `token`; compared as keyed digests, so that the time taken tells nothing about it.
fn bears(head: &Parts, token: &Secret) -> Result<bool, Refusal> {
    let field = single(head, &AUTHORIZATION).ok_or(Refusal::NoToken)?;
    let (scheme, credentials) = field.split_once(' ').ok_or(Refusal::NoToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::NoToken);
    }
    let digest = |bytes: &[u8]| {
        Hmac::<Sha256>::new_from_slice(b"weir admin token").expect("any length is a key").chain_update(bytes)
    };
    let wanted = digest(token.expose().trim_ascii()).finalize().into_bytes();
    Ok(!token.expose().trim_ascii().is_empty() && digest(credentials.trim().as_bytes()).verify(&wanted).is_ok())
}

/// The authority that the request is for; `None` where it is missing, doubled or malformed.
fn authority(head: &Parts) -> Option<Authority> {
    let host: Authority = single(head, &HOST)?.parse().ok()?;
    let agrees = head.uri.authority().is_none_or(|target| target.as_str().eq_ignore_ascii_case(host.as_str()));
    (agrees && !host.as_str().contains('@')).then_some(host)
}

/// Whether a browser sent this for a page of another origin.
fn cross_site(head: &Parts, host: &Authority) -> bool {
    let foreign_origin = head.headers.contains_key(ORIGIN) && {
        let origin = single(head, &ORIGIN).unwrap_or_default();
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
    };
    let site = head.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    foreign_origin || !matches!(site, None | Some(b"same-origin" | b"none"))
}

/// Whether no stranger can make `host` resolve to us: an address, or a name outside the public DNS.
fn holds(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let private = ["localhost", "svc", "local", "internal"];
    !name.is_empty() && name.rsplit_once('.').is_none_or(|(_, last)| private.contains(&last))
}

/// The field's value, if there is exactly one and it is text.
fn single<'h>(head: &'h Parts, name: &HeaderName) -> Option<&'h str> {
    let mut values = head.headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const HERE: &str = "127.0.0.1";
    const THERE: &str = "10.0.0.9";

    fn head(fields: &[(&str, &str)]) -> Parts {
        let request =
            fields.iter().fold(Request::post("/invalidate"), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("valid").into_parts().0
    }

    fn ask(fields: &[(&str, &str)], peer: &str, token: Option<&str>) -> Result<(), Refusal> {
        admit(&head(fields), peer.parse().expect("an address"), token.map(Secret::new).as_ref())
    }

    #[test]
    fn without_a_token_the_peer_decides() {
        let host = ("host", "127.0.0.1:9901");
        assert_eq!(ask(&[host], HERE, None), Ok(()));
        assert_eq!(ask(&[host], "::1", None), Ok(()));
        assert_eq!(ask(&[host], "::ffff:127.0.0.1", None), Ok(()));
        assert_eq!(ask(&[host], THERE, None), Err(Refusal::NotLoopback));
    }

    #[test]
    fn with_a_token_only_the_token_decides() {
        let host = ("host", "10.0.0.1:9901");
        let with = |value: &str| ask(&[host, ("authorization", value)], THERE, Some("s3cret\n"));
        assert_eq!(with("Bearer s3cret"), Ok(()));
        assert_eq!(with("bearer  s3cret"), Ok(()));
        assert_eq!(with("Bearer s3cre"), Err(Refusal::WrongToken));
        assert_eq!(with("Bearer s3crets"), Err(Refusal::WrongToken));
        assert_eq!(with("Bearer "), Err(Refusal::WrongToken));
        assert_eq!(with("Basic s3cret"), Err(Refusal::NoToken));
        assert_eq!(with("Bearer"), Err(Refusal::NoToken));
        assert_eq!(ask(&[host], HERE, Some("s3cret")), Err(Refusal::NoToken), "a loopback peer needs it too");
        assert_eq!(ask(&[host, ("authorization", "Bearer ")], HERE, Some("\n")), Err(Refusal::WrongToken));
        let twice = [host, ("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")];
        assert_eq!(ask(&twice, THERE, Some("s3cret")), Err(Refusal::NoToken));
    }

    #[test]
    fn a_name_that_anybody_could_point_here_is_refused() {
        for good in [
            "127.0.0.1:9901",
            "[::1]:9901",
            "localhost",
            "LocalHost:9901",
            "weir:9901",
            "weir.shop.svc",
            "a.cluster.local.",
            "10.1.2.3",
        ] {
            assert_eq!(ask(&[("host", good)], HERE, None), Ok(()), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example:9901",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "",
            "a b",
            ".",
        ] {
            assert_eq!(ask(&[("host", bad)], HERE, None), Err(Refusal::Host), "{bad}");
        }
        let token = ("authorization", "Bearer s3cret");
        assert_eq!(ask(&[("host", "evil.example"), token], HERE, Some("s3cret")), Err(Refusal::Host));
        assert_eq!(ask(&[], HERE, None), Err(Refusal::Host));
        assert_eq!(ask(&[("host", "localhost"), ("host", "localhost")], HERE, None), Err(Refusal::Host));
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let host = ("host", "localhost:9901");
        assert_eq!(ask(&[host, ("origin", "http://localhost:9901")], HERE, None), Ok(()));
        for origin in ["http://evil.example", "http://localhost", "null", "", "localhost:9901"] {
            assert_eq!(ask(&[host, ("origin", origin)], HERE, None), Err(Refusal::CrossSite), "{origin}");
        }
        assert_eq!(ask(&[host, ("sec-fetch-site", "cross-site")], HERE, None), Err(Refusal::CrossSite));
        assert_eq!(ask(&[host, ("sec-fetch-site", "none")], HERE, None), Ok(()));
    }

    #[test]
    fn an_absolute_target_must_agree_with_the_host() {
        let mut head = head(&[("host", "localhost:9901")]);
        head.uri = "http://evil.example/invalidate".parse().expect("a URI");
        assert_eq!(admit(&head, HERE.parse().expect("an address"), None), Err(Refusal::Host));
    }
}
