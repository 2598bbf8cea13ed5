//! Answers that are our own, and what every answer says of the cache: the one place where a status is chosen.

use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::upstream::Failure;
use crate::cache::Found;
use crate::cache::conditional::{self, Reply};
use crate::cache::entry::Entry;
use crate::cache::fields::{lines, without};
use crate::cache::flight::{Failed, FlightBody};
use crate::cache::parts as cached_parts;
use crate::cache::ranges::{self, Selection};
use crate::kv;
use crate::limit::Denial;
use crate::message::{Answer, Body, BodyFault, Lines, Pieces};
use crate::metrics::Outcome;

/// RFC 9211.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of our own as RFC 9457 has it: it says what happened, and is never stored.
pub fn own(status: StatusCode, detail: impl Display) -> Answer {
    problem(status, detail, None)
}

/// The same, with the limit that is the reason.
fn problem(status: StatusCode, detail: impl Display, limit: Option<&str>) -> Answer {
    let mut body = serde_json::json!({
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail.to_string(),
    });
    if let Some(limit) = limit {
        body["limit"] = limit.into();
    }
    with_body(status, HeaderValue::from_static("application/problem+json"), format!("{body}\n"))
}

/// An answer of our own that is never stored.
fn with_body(status: StatusCode, kind: HeaderValue, body: String) -> Answer {
    let mut answer = Answer::new(status);
    answer.fields.insert(header::CONTENT_TYPE, kind);
    answer.fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.body = Bytes::from(body).into();
    answer
}

/// The answer to a request whose exchange with the upstream failed.
pub fn failure(failed: &Failed, why: Forward) -> Answer {
    let mut answer = own(failed.status, &failed.detail);
    match failed.shed {
        None => Forwarded::because(why).append(&mut answer.fields),
        Some((why, retry_after_s)) => {
            append_status(&mut answer.fields, &format!("weir; detail={}", why.as_str()));
            answer.fields.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
    }
    answer
}

/// How a request ends that gets such an answer.
pub fn outcome(failed: &Failed) -> Outcome {
    match failed.shed {
        Some(_) => Outcome::Shed,
        None if failed.status.is_client_error() => Outcome::Refused,
        None => Outcome::Failed,
    }
}

/// What a failed exchange with the upstream is to the client.
pub fn failed(failure: &Failure) -> Failed {
    let status = match failure {
        Failure::ConnectTimeout | Failure::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        Failure::Shed(_) => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Connect(_) | Failure::Closed(_) | Failure::Malformed(_) => StatusCode::BAD_GATEWAY,
        Failure::RequestBody { error, .. } => match BodyFault::of(&**error) {
            BodyFault::Silent => StatusCode::REQUEST_TIMEOUT,
            BodyFault::Malformed | BodyFault::Left => StatusCode::BAD_REQUEST,
        },
    };
    let shed = match failure {
        Failure::Shed(refusal) => Some((refusal.why, refusal.retry_after_s)),
        _ => None,
    };
    Failed { status, detail: failure.to_string(), shed, unheard: !failure.is_unknown() }
}

/// What a body that ended early is to a client that has seen none of it.
pub fn cut() -> Failed {
    let detail = "the upstream's answer ended early".to_owned();
    Failed { status: StatusCode::BAD_GATEWAY, detail, shed: None, unheard: false }
}

/// What other pods' failed exchanges with the upstream are to a client that waited for them.
pub fn failed_elsewhere(status: StatusCode) -> Failed {
    let detail = "the upstream has just failed two pods of the fleet".to_owned();
    Failed { status, detail, shed: None, unheard: true }
}

/// Why a request went to the upstream (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// The route stores nothing, or the request may not use what is stored.
    Bypass,
    /// The method's meaning asks for it.
    Method,
    /// Nothing is stored for the URL.
    UriMiss,
    /// Nothing is stored for these request fields.
    VaryMiss,
    /// What is stored is stale.
    Stale,
}

impl Forward {
    /// The member that says this and no more.
    pub fn member(self) -> &'static str {
        match self {
            Self::Bypass => "weir; fwd=bypass",
            Self::Method => "weir; fwd=method",
            Self::UriMiss => "weir; fwd=uri-miss",
            Self::VaryMiss => "weir; fwd=vary-miss",
            Self::Stale => "weir; fwd=stale",
        }
    }
}

/// The `Cache-Status` member of a forwarded request.
pub struct Forwarded {
    /// Why.
    pub why: Forward,
    /// The upstream's status, where it differs from the answer's.
    pub status: Option<StatusCode>,
    /// Whether the answer was stored.
    pub stored: bool,
    /// Whether another's fetch answered.
    pub collapsed: bool,
    /// Whether what is stored is used without the upstream's word.
    pub is_reused: bool,
    /// Why it was not stored, or what else there is to say.
    pub detail: Option<&'static str>,
}

impl Forwarded {
    /// Forwarded for this reason, and nothing more to say.
    pub fn because(why: Forward) -> Self {
        Self { why, status: None, stored: false, collapsed: false, is_reused: false, detail: None }
    }

    /// Appends the member to what upstream caches have said.
    pub fn append(&self, fields: &mut HeaderMap) {
        if self.status.is_none() && !self.stored && !self.collapsed && self.detail.is_none() {
            fields.append(CACHE_STATUS, HeaderValue::from_static(self.why.member()));
            return;
        }
        let mut text = self.why.member().to_owned();
        if let Some(status) = self.status {
            text.push_str(&format!("; fwd-status={}", status.as_u16()));
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            text.push_str(detail);
        }
        append_status(fields, &text);
    }
}

/// Appends `member` to `Cache-Status`.
pub fn append_status(fields: &mut HeaderMap, member: &str) {
    if let Ok(value) = HeaderValue::from_str(member) {
        fields.append(CACHE_STATUS, value);
    }
}

/// Adds the key's name to our member (RFC 9211 section 2.7), which is the last.
pub fn name_key(answer: &mut Answer, name: [u8; 16]) {
    const FIELD: &[u8] = b"cache-status: ";
    let parameter = format!("; key=\"{:032x}\"", u128::from_be_bytes(name));
    let is_ours = |line: &[u8]| line.starts_with(FIELD);
    let ours = answer.lines.as_bytes().split_inclusive(|byte| *byte == b'\n').find(|line| is_ours(line));
    if let Some(line) = ours.map(|line| line.trim_ascii_end().to_vec()) {
        answer.lines.retain(|line| !is_ours(line));
        answer.lines.push(&[&line, parameter.as_bytes(), b"\r\n"].concat());
        return;
    }
    let mut members: Vec<HeaderValue> = answer.fields.get_all(CACHE_STATUS).iter().cloned().collect();
    let Some(ours) = members.pop() else { return };
    answer.fields.remove(CACHE_STATUS);
    members.extend(HeaderValue::from_bytes(&[ours.as_bytes(), parameter.as_bytes()].concat()));
    for member in members {
        answer.fields.append(CACHE_STATUS, member);
    }
}

/// A refusal of ours, before the cache was asked.
pub fn refused(status: StatusCode, detail: impl Display) -> Answer {
    let mut answer = own(status, detail);
    append_status(&mut answer.fields, "weir; detail=refused");
    answer
}

/// A limit's denial: a problem that names the limit, the body that the limit has for it, or a gRPC status.
pub fn denied(denial: &Denial) -> Answer {
    let mut answer = match (&denial.grpc, denial.notice()) {
        (Some(kind), _) => grpc(kind, denial.grpc_status(), &denial.explain()),
        (None, Some((kind, text))) => with_body(denial.status(), kind, text),
        (None, None) => problem(denial.status(), denial.explain(), Some(&denial.limit.name)),
    };
    append_status(&mut answer.fields, "weir; detail=denied");
    denial.append_fields(&mut answer.fields);
    answer
}

/// A gRPC status in place of an answer: 200 whatever it is, all of it in the head ("Trailers-Only" in gRPC over HTTP/2).
fn grpc(kind: &HeaderValue, status: u8, message: &str) -> Answer {
    let mut answer = Answer::new(StatusCode::OK);
    answer.fields.insert(header::CONTENT_TYPE, kind.clone());
    answer.fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
    // Percent-encoded where it is no visible ASCII: names and our own sentences are.
    let message = message.replace('%', "%25");
    if let Ok(message) = HeaderValue::try_from(message) {
        answer.fields.insert(GRPC_MESSAGE, message);
    }
    answer
}

/// A stored answer, as this client may have it: whole, or 304 by its own validators (RFC 9110 section 13).
///
/// Without `forwarded` it is a hit. Nothing is allocated for one.
pub fn stored(found: &Found, parts: &Parts, forwarded: Option<&Forwarded>) -> Answer {
    let Some(entry) = found.slot.stored.entry() else {
        return own(StatusCode::INTERNAL_SERVER_ERROR, "what is stored is no answer");
    };
    let mut answer = of_entry(entry, parts);
    match forwarded {
        None => {
            age(&mut answer.lines, found.age_s);
            answer.lines.push(b"cache-status: weir; hit; ttl=");
            answer.lines.push(itoa::Buffer::new().format(found.ttl_s).as_bytes());
            answer.lines.push(b"\r\n");
        }
        Some(forwarded) => {
            // What has just come from the origin has no age (RFC 9111 section 5.1); what is reused says one (section 4).
            if found.age_s > 0 || forwarded.is_reused {
                age(&mut answer.lines, found.age_s);
            }
            forwarded.append(&mut answer.fields);
        }
    }
    let is_bodiless = parts.method == Method::HEAD || answer.status == StatusCode::NOT_MODIFIED;
    if is_bodiless {
        if answer.status != StatusCode::NOT_MODIFIED {
            answer.fields.insert(header::CONTENT_LENGTH, HeaderValue::from(entry.body.len()));
        }
    } else {
        answer.body = entry.body.clone().into();
        // A range has a meaning for GET only (RFC 9110 section 14.2).
        if parts.method == Method::GET && parts.headers.contains_key(header::RANGE) {
            match entry.part {
                None if entry.status == StatusCode::OK => {
                    narrow(&mut answer, entry, ranges::select(&parts.headers, entry));
                }
                None => {}
                // It was found to hold what is selected, or it would not be the answer.
                Some(_) => {
                    let selected = cached_parts::select(&parts.headers, entry).unwrap_or(Selection::Nothing);
                    narrow(&mut answer, entry, selected);
                }
            }
        }
    }
    answer
}

/// Makes the answer with the whole of an entry one with the parts that were asked for (RFC 9110 sections 15.3.7 and
/// 15.5.17).
fn narrow(answer: &mut Answer, entry: &Entry, selection: Selection) {
    let length = entry.complete();
    match selection {
        Selection::Whole => {}
        Selection::One(range) => {
            answer.status = StatusCode::PARTIAL_CONTENT;
            if entry.has(b"content-digest") || entry.has(b"content-md5") {
                answer.prepared = without(&entry.fields, is_of_the_whole);
            }
            answer.fields.insert(header::CONTENT_RANGE, content_range(&range, length));
            answer.body = entry.slice(range).into();
        }
        Selection::Several(ranges) => several(answer, entry, ranges),
        Selection::Nothing => {
            let (lines, status) = (std::mem::take(&mut answer.lines), answer.fields.remove(CACHE_STATUS));
            *answer = own(StatusCode::RANGE_NOT_SATISFIABLE, format_args!("there are {length} bytes"));
            answer.lines = lines;
            answer.fields.extend(status.map(|status| (CACHE_STATUS, status)));
            let unsatisfied = HeaderValue::try_from(format!("bytes */{length}")).expect("digits are visible");
            answer.fields.insert(header::CONTENT_RANGE, unsatisfied);
        }
    }
}

/// RFC 9110 section 14.6. The parts are the stored body's own bytes, not copies.
fn several(answer: &mut Answer, entry: &Entry, ranges: Vec<Range<usize>>) {
    // Nobody who made the body can have known it.
    let boundary = format!("{:016x}{:016x}", kv::random(), kv::random());
    let content_type = lines(&entry.fields).find(|(name, _)| entry.fields[name.clone()] == *b"content-type");
    let content_type = content_type.map(|(_, value)| &entry.fields[value]);
    let mut pieces = VecDeque::with_capacity(2 * ranges.len() + 1);
    for range in ranges {
        let mut head = BytesMut::from(format!("\r\n--{boundary}\r\n").as_bytes());
        if let Some(content_type) = content_type {
            head.extend_from_slice(b"Content-Type: ");
            head.extend_from_slice(content_type);
            head.extend_from_slice(b"\r\n");
        }
        let part = format!("Content-Range: bytes {}-{}/{}\r\n\r\n", range.start, range.end - 1, entry.complete());
        head.extend_from_slice(part.as_bytes());
        pieces.push_back(head.freeze());
        pieces.push_back(entry.slice(range));
    }
    pieces.push_back(format!("\r\n--{boundary}--\r\n").into());
    answer.status = StatusCode::PARTIAL_CONTENT;
    answer.prepared = without(&entry.fields, |name| name == b"content-type" || is_of_the_whole(name));
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    answer.fields.insert(header::CONTENT_TYPE, HeaderValue::try_from(content_type).expect("hex digits are visible"));
    answer.body = Pieces::body(pieces);
}

/// Fields that sum up the bytes of one message (RFC 9530 section 2): the whole's are not a part's.
fn is_of_the_whole(name: &[u8]) -> bool {
    matches!(name, b"content-digest" | b"content-md5")
}

fn content_range(range: &Range<usize>, length: u64) -> HeaderValue {
    let text = format!("bytes {}-{}/{length}", range.start, range.end - 1);
    HeaderValue::try_from(text).expect("digits are visible")
}

/// An answer whose body still arrives.
pub fn arriving(head: &Entry, body: FlightBody, parts: &Parts, forwarded: &Forwarded) -> Answer {
    let mut answer = of_entry(head, parts);
    let age_s = head.freshness.initial_age_ms / 1000;
    if age_s > 0 {
        age(&mut answer.lines, age_s);
    }
    forwarded.append(&mut answer.fields);
    if answer.status != StatusCode::NOT_MODIFIED {
        answer.body = Body::stream(body);
    }
    answer
}

fn age(lines: &mut Lines, seconds: u64) {
    lines.push(b"age: ");
    lines.push(itoa::Buffer::new().format(seconds).as_bytes());
    lines.push(b"\r\n");
}

fn of_entry(entry: &Entry, parts: &Parts) -> Answer {
    let is_conditional = parts.method == Method::GET || parts.method == Method::HEAD;
    match conditional::evaluate(&parts.headers, entry) {
        Reply::NotModified if is_conditional => {
            let mut answer = Answer::new(StatusCode::NOT_MODIFIED);
            answer.prepared = conditional::not_modified_fields(entry);
            answer
        }
        Reply::NotModified | Reply::Full => {
            let mut answer = Answer::new(entry.status);
            answer.prepared = entry.fields.clone();
            answer
        }
    }
}
