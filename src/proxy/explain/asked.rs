//! A question, read: the request as the proxy would get it, and the answer that is supposed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};

use crate::message::Peer;
use crate::message::question::Question;
use crate::syntax::SyntaxError;

/// Methods in capitals, for whoever writes them otherwise.
const KNOWN: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE", "CONNECT"];

/// A request, and what is supposed of its answer.
pub(super) struct Asked {
    /// Its head, as a client of HTTP/1.1 would send it.
    pub(super) parts: Parts,
    /// Where it comes from.
    pub(super) peer: Peer,
    /// Whether that is only assumed.
    pub(super) is_peer_assumed: bool,
    /// Its body, as far as it is given.
    pub(super) body: Bytes,
    /// Whether it has one, given or announced by its fields.
    pub(super) has_body: bool,
    /// The supposed answer.
    pub(super) answer: Option<(StatusCode, HeaderMap)>,
}

impl Asked {
    /// Reads a question.
    ///
    /// # Errors
    /// What of it cannot be read. No value of a field is in the text: it may be a credential.
    pub(super) fn read(question: &Question) -> Result<Self, SyntaxError> {
        let method = method(&question.method)?;
        let mut headers = fields(&question.headers, "request field", "-H or header=")?;
        let (uri, is_https) = url(&question.url, &mut headers)?;
        let address = match &question.client {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.trim().parse().map_err(|_| {
                SyntaxError::new(
                    format!("client: `{text}` is no address"),
                    "write an IPv4 or IPv6 address, without a port",
                )
            })?,
        };
        let answer = answer(question)?;
        let announced = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
        let body = Bytes::from(question.body.clone().unwrap_or_default());
        let has_body = !body.is_empty() || announced || headers.contains_key(TRANSFER_ENCODING);
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(Self {
            parts: request.into_parts().0,
            peer: Peer { address: SocketAddr::new(address, 0), encrypted: is_https },
            is_peer_assumed: question.client.is_none(),
            body,
            has_body,
            answer,
        })
    }
}

fn method(text: &str) -> Result<Method, SyntaxError> {
    let capitals = text.to_ascii_uppercase();
    if capitals != text && KNOWN.contains(&capitals.as_str()) {
        let problem = format!("method: `{text}` is none, since methods tell capitals from small letters");
        return Err(SyntaxError::new(problem, format!("write {capitals}")));
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| {
        SyntaxError::new(format!("method: `{text}` is none"), "write a method such as GET in front of the URL")
    })
}

/// The target in origin form, with the authority in `Host`, and whether the scheme is `https`.
fn url(text: &str, headers: &mut HeaderMap) -> Result<(Uri, bool), SyntaxError> {
    let remedy = "write http://host/path, or a path and -H 'Host: name'";
    if headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(SyntaxError::new("Host is given twice", "give it once, or leave it to the URL"));
    }
    let uri: Uri = text.parse().map_err(|error| {
        // What stands in front of an @ is a password, and behind a question mark may be one.
        let shown = if text.contains('@') { "it" } else { text.split('?').next().unwrap_or_default() };
        SyntaxError::new(
            format!("url: `{shown}` is no URL: {error}"),
            format!("{remedy}; escape what is no URL character (%20)"),
        )
    })?;
    let is_https = match uri.scheme_str() {
        None => false,
        Some("http") => false,
        Some("https") => true,
        Some(other) => return Err(SyntaxError::new(format!("url: `{other}` is no scheme that Weir serves"), remedy)),
    };
    if uri.scheme().is_none() && !text.starts_with('/') {
        return Err(SyntaxError::new("url: it has no scheme", remedy));
    }
    if let Some(authority) = uri.authority() {
        if authority.as_str().contains('@') {
            return Err(SyntaxError::new("url: it has a user in it, which no request carries", remedy));
        }
        if !headers.contains_key(HOST) {
            let host = HeaderValue::from_str(authority.as_str());
            headers.insert(HOST, host.map_err(|_| SyntaxError::new("url: its host cannot stand in a field", remedy))?);
        }
    }
    if !headers.contains_key(HOST) {
        return Err(SyntaxError::new("url: it names no host", remedy));
    }
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok((Uri::from(target), is_https))
}

fn answer(question: &Question) -> Result<Option<(StatusCode, HeaderMap)>, SyntaxError> {
    if question.status.is_none() && question.response.is_empty() {
        return Ok(None);
    }
    let status = match &question.status {
        None => StatusCode::OK,
        Some(text) => text
            .trim()
            .parse()
            .ok()
            .filter(|code| (100..600).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or_else(|| SyntaxError::new(format!("status: `{text}` is none"), "write a number from 100 to 599"))?,
    };
    Ok(Some((status, fields(&question.response, "response field", "--response or response=")?)))
}

/// Fields as they are written on a command line. What cannot be read is named by its place only.
fn fields(lines: &[String], what: &str, place: &str) -> Result<HeaderMap, SyntaxError> {
    let mut fields = HeaderMap::with_capacity(lines.len());
    for (at, line) in lines.iter().enumerate() {
        let wrong =
            |problem: &str| SyntaxError::new(format!("{what} {} ({place}): {problem}", at + 1), "write name: value");
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("it has no colon"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .map_err(|_| wrong("what stands before the colon is no field name"))?;
        let value = HeaderValue::from_str(value.trim()).or_else(|_| HeaderValue::from_bytes(value.trim().as_bytes()));
        fields.append(name, value.map_err(|_| wrong("its value has a control character"))?);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, url: &str, headers: &[&str]) -> Result<Asked, String> {
        let headers = headers.iter().map(|line| (*line).to_owned()).collect();
        let question = Question { method: method.into(), url: url.into(), headers, ..Question::default() };
        Asked::read(&question).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_is_read_as_a_client_would_send_it() {
        let asked =
            read("GET", "https://Shop.example:8443/a?b=c#d", &["X-A:  1 ", "x-a: 2"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(asked.parts.uri, "/a?b=c");
        assert_eq!(asked.parts.headers[HOST], "Shop.example:8443");
        assert_eq!(asked.parts.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(asked.peer.encrypted && !asked.has_body && asked.answer.is_none());
        let asked = read("POST", "/a", &["host: h", "content-length: 3"]).unwrap_or_else(|e| panic!("{e}"));
        assert!(asked.has_body && !asked.peer.encrypted);
        let asked = read("GET", "http://a/x", &["host: b"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(asked.parts.headers[HOST], "b", "as curl has it");
    }

    #[test]
    fn what_cannot_be_read_is_named_without_its_secrets() {
        for (method, url, headers, expected) in [
            ("get", "http://h/", &[][..], "write GET"),
            ("G T", "http://h/", &[], "method: `G T`"),
            ("", "http://h/", &[], "method: `` is none"),
            ("GET", "h/a", &[], "no URL"),
            ("GET", "h", &[], "no scheme"),
            ("GET", "ftp://h/", &[], "`ftp` is no scheme"),
            ("GET", "/a", &[], "names no host"),
            ("GET", "http://user:s3cret@h/", &[], "has a user"),
            ("GET", "http://h/a b?s3cret", &[], "`http://h/a b` is no URL"),
            ("GET", "http://user:s3cret@h /", &[], "`it` is no URL"),
            ("GET", "", &[], "no URL"),
            ("GET", "http://h/", &["a: b", "Authorization s3cret"], "request field 2 (-H or header=): it has no colon"),
            ("GET", "http://h/", &["a b: s3cret"], "no field name"),
            ("GET", "http://h/", &["a: s3cret\u{1}"], "control character"),
            ("GET", "http://h/", &["host: a", "host: b"], "twice"),
        ] {
            let error = read(method, url, headers).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let supposed = |status: &str| {
            let question = Question {
                method: "GET".into(),
                url: "http://h/".into(),
                status: Some(status.into()),
                ..Question::default()
            };
            Asked::read(&question).map(|asked| asked.answer.map(|(status, _)| status.as_u16()))
        };
        assert_eq!(supposed("404"), Ok(Some(404)));
        for wrong in ["99", "600", "OK", ""] {
            assert!(supposed(wrong).is_err_and(|error| error.problem.contains("status")), "{wrong}");
        }
    }
}
