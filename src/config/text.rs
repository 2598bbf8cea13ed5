//! Settings that are text with a grammar of its own: durations, sizes, addresses, patterns and so on.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::IdentityPart;
use super::check::nearest;
use crate::syntax::SyntaxError;
use crate::syntax::glob::Glob;
use crate::syntax::pattern::Pattern;
use crate::syntax::pointer::Pointer;
use crate::syntax::rate::Rate;
use crate::syntax::scalar;
use crate::syntax::template::Template;

/// What a piece of text can be read as.
pub(super) trait Grammar: Sized {
    /// With its article, as in "expected a duration".
    const KIND: &'static str;
    /// One that is right.
    const EXAMPLE: &'static str;

    /// Reads it.
    fn read(text: &str) -> Result<Self, SyntaxError>;
}

/// Text that is to be read as a `T`, not read yet: so that reading can report it with its place, beside all others.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<T> {
    text: String,
    #[serde(skip)]
    grammar: PhantomData<T>,
}

impl<T: Grammar> Text<T> {
    /// As it was written.
    pub(super) fn source(&self) -> &str {
        &self.text
    }

    /// What it means.
    pub(super) fn read(&self) -> Result<T, SyntaxError> {
        T::read(&self.text)
    }
}

impl<T: Grammar> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed(T::KIND)
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-kind": T::KIND, "examples": [T::EXAMPLE] })
    }
}

macro_rules! grammar {
    ($type:ty, $kind:literal, $example:literal, $read:expr) => {
        impl Grammar for $type {
            const KIND: &'static str = $kind;
            const EXAMPLE: &'static str = $example;

            fn read(text: &str) -> Result<Self, SyntaxError> {
                $read(text)
            }
        }
    };
}

grammar!(Duration, "a duration", "250ms", scalar::duration);
grammar!(usize, "a size", "64KiB", scalar::size);
grammar!(f64, "a percentage", "10%", scalar::percentage);
grammar!(Rate, "a rate", "100/s", Rate::parse);
grammar!(Pattern, "a path pattern", "/catalog/{id}", Pattern::parse);
grammar!(Pointer, "a JSON pointer", "/usage/total_tokens", Pointer::parse);
grammar!(Template, "a template", "product:{id}", Template::parse);
grammar!(Glob, "a parameter name", "utm_*", Glob::parse);
grammar!(SocketAddr, "an address", "127.0.0.1:8080", address);
grammar!(IpNet, "a network", "10.0.0.0/8", network);
grammar!(HeaderName, "a field name", "accept-language", field_name);
grammar!(HeaderValue, "a field value", "max-age=60", field_value);
grammar!(Method, "a method", "GET", method);
grammar!(Host, "a host", "shop.example", host);
grammar!(Name, "a name", "catalog", name);
grammar!(Namespace, "a namespace", "shop-prod", namespace);
grammar!(IdentityPart, "an identity", "ip", identity);

/// A host that a route takes, lower case, perhaps with `*.` in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host(pub(super) String);

/// Name of a route or limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(pub(super) String);

/// Prefix of every key in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespace(pub(super) String);

/// Longest name of a route, limit or namespace, in bytes: each is a label or part of every key.
const NAME_BYTES: usize = 100;

fn address(text: &str) -> Result<SocketAddr, SyntaxError> {
    text.parse().map_err(|_| {
        let remedy = match text.rsplit_once(':') {
            Some(("" | "*", port)) if port.parse::<u16>().is_ok() => {
                format!("write \"0.0.0.0:{port}\" or \"[::]:{port}\"")
            }
            Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("write \"127.0.0.1:{port}\""),
            None if text.parse::<u16>().is_ok() => format!("write \"0.0.0.0:{text}\""),
            _ => "write an IP address and a port, such as \"0.0.0.0:8080\" or \"[::1]:8080\"".to_owned(),
        };
        SyntaxError::new(format!("\"{text}\" is not an address and port"), remedy)
    })
}

fn network(text: &str) -> Result<IpNet, SyntaxError> {
    let single = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse::<IpNet>().map(|net| net.trunc()).ok().or_else(single).ok_or_else(|| {
        let remedy = "write an address or a network, such as \"10.0.0.0/8\" or \"::1\"";
        SyntaxError::new(format!("\"{text}\" is not a network"), remedy)
    })
}

fn field_name(text: &str) -> Result<HeaderName, SyntaxError> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        let remedy = "write the name alone, without colon or spaces, such as \"accept-language\"";
        SyntaxError::new(format!("\"{}\" is not a field name", text.escape_debug()), remedy)
    })
}

fn field_value(text: &str) -> Result<HeaderValue, SyntaxError> {
    if text.trim() != text {
        return Err(SyntaxError::new("the value begins or ends with a space", "remove it: it would not arrive"));
    }
    HeaderValue::from_str(text)
        .map_err(|_| SyntaxError::new("the value holds a control character", "write visible ASCII characters"))
}

fn method(text: &str) -> Result<Method, SyntaxError> {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"];
    let upper = text.to_ascii_uppercase();
    if text != upper && known.contains(&upper.as_str()) {
        return Err(SyntaxError::new("methods are told apart by case", format!("write \"{upper}\"")));
    }
    if text == "CONNECT" {
        return Err(SyntaxError::new("CONNECT is not forwarded", "leave it out: a tunnel is opened by an upgrade"));
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| {
        SyntaxError::new(format!("\"{}\" is not a method", text.escape_debug()), "write a method such as \"GET\"")
    })
}

fn host(text: &str) -> Result<Host, SyntaxError> {
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Err(SyntaxError::new("`*` stands for every host", "leave `hosts` out: every host is taken"));
    }
    let bare = lower.strip_prefix("*.").unwrap_or(&lower);
    let address = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(Host(lower));
    }
    if let Some((name, port)) = bare.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(SyntaxError::new("a route takes a host on every port", format!("write \"{name}\"")));
    }
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !bare.split('.').all(label) {
        let remedy = "write a name such as \"shop.example\", or \"*.shop.example\" for every name below it";
        return Err(SyntaxError::new(format!("\"{}\" is not a host name", text.escape_debug()), remedy));
    }
    Ok(Host(lower))
}

fn word(text: &str) -> Result<String, SyntaxError> {
    if text.is_empty() || text.len() > NAME_BYTES {
        let problem = format!("a name has 1 to {NAME_BYTES} characters, this one has {}", text.len());
        return Err(SyntaxError::new(problem, "write letters, digits, `.`, `_` and `-`"));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
        None => Ok(text.to_owned()),
        Some(c) => {
            let usable =
                text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' });
            let remedy = format!(
                "letters, digits, `.`, `_` and `-` are allowed: \"{}\"",
                usable.collect::<String>().trim_matches('-')
            );
            Err(SyntaxError::new(format!("`{}` cannot stand in a name", c.escape_debug()), remedy))
        }
    }
}

fn name(text: &str) -> Result<Name, SyntaxError> {
    if text == "-" {
        return Err(SyntaxError::new("`-` stands for requests that no route takes", "choose another name"));
    }
    word(text).map(Name)
}

fn namespace(text: &str) -> Result<Namespace, SyntaxError> {
    word(text).map(Namespace)
}

fn identity(text: &str) -> Result<IdentityPart, SyntaxError> {
    const KINDS: [&str; 8] = ["ip", "route", "host", "method", "header:", "cookie:", "query:", "unverified-claim:"];
    let (kind, argument) = match text.split_once(':') {
        Some((kind, argument)) => (kind, Some(argument)),
        None => (text, None),
    };
    match (kind, argument) {
        ("ip", None) => Ok(IdentityPart::Ip),
        ("route", None) => Ok(IdentityPart::Route),
        ("host", None) => Ok(IdentityPart::Host),
        ("method", None) => Ok(IdentityPart::Method),
        ("claim", name) => Err(SyntaxError::new(
            "nobody verifies the token that a claim stands in: a client may write any",
            format!(
                "write \"unverified-claim:{}\", and \"ip\" beside it as a floor",
                name.filter(|name| !name.is_empty()).unwrap_or("sub")
            ),
        )),
        ("header" | "cookie" | "query" | "unverified-claim", None | Some("")) => {
            Err(SyntaxError::new(format!("`{kind}:` has no name behind it"), format!("write \"{kind}:name\"")))
        }
        ("header", Some(name)) => field_name(name).map(IdentityPart::Header),
        ("cookie", Some(name)) => Ok(IdentityPart::Cookie(name.to_owned())),
        ("query", Some(name)) => Ok(IdentityPart::Query(name.to_owned())),
        ("unverified-claim", Some(argument)) => claim(argument),
        _ => {
            let asked = if argument.is_some() { format!("{kind}:") } else { kind.to_owned() };
            let remedy = match nearest(&asked, KINDS) {
                Some(near) => format!("write \"{near}{}\"", argument.unwrap_or("")),
                None => format!("write one of {}", KINDS.join(", ")),
            };
            Err(SyntaxError::new(format!("\"{}\" is not an identity", text.escape_debug()), remedy))
        }
    }
}

/// `name`, of the bearer's token, or `name@field`.
fn claim(argument: &str) -> Result<IdentityPart, SyntaxError> {
    let (name, field) = argument.rsplit_once('@').unwrap_or((argument, "authorization"));
    if name.split('.').any(str::is_empty) {
        let problem = format!("\"{}\" is not the name of a claim", name.escape_debug());
        return Err(SyntaxError::new(problem, "write \"unverified-claim:sub\", or \"unverified-claim:realm.tenant\""));
    }
    Ok(IdentityPart::Claim { name: name.to_owned(), field: field_name(field)? })
}
