//! What goes to the upstream, and what comes back past the cache.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Patient;
use super::content::Content;
use super::respond::{self, Forward, Forwarded};
use super::socket::Socket;
use super::state::RouteState;
use super::upstream::{Failure, Patience, Reply};
use super::{Journey, headers};
use crate::cache::entry::Entry;
use crate::cache::fields::without;
use crate::cache::{Previous, conditional, directives, negotiation, parts as cached_parts};
use crate::clock::Stopwatch;
use crate::config::{FieldEdits, Protocol};
use crate::message::interim::InterimSender;
use crate::message::{Answer, Body, Expected, Tunnel};
use crate::metrics::Outcome;

/// The type of a body with several ranges.
const MULTIPART: &[u8] = b"multipart/byteranges";

/// Fields that a request gets on its way: `Host`, `Via`, and who it is forwarded for.
const ADDED_FIELDS: usize = 6;

/// By what a cache tells the upstream that it can be addressed (W3C Edge Architecture Specification 1.0).
const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");

/// How long each step of an exchange on `route` may take.
pub(crate) fn patience(route: &RouteState) -> Patience {
    Patience { may_queue: true, response: route.rule.response_timeout, body_idle: route.body_idle }
}

/// Forwards a request as it is and answers with what comes back.
pub(crate) async fn pass(journey: &mut Journey<'_>, parts: &mut Parts, body: Body, why: Forward) -> Answer {
    let request = pass_request(journey, parts, body);
    let watch = Stopwatch::start();
    let reply = journey.worker.upstream.send(request, patience(journey.route)).await;
    account(journey, &reply, watch.elapsed());
    match reply {
        Ok(reply) => passed(journey, reply, &Forwarded::because(why)),
        Err(failure) => failed(journey, &failure, why),
    }
}

/// Accounts for what the upstream was asked and said, if it was asked.
pub(crate) fn account(journey: &mut Journey<'_>, reply: &Result<Reply, Failure>, took: Duration) {
    match reply {
        Ok(reply) => journey.exchange.asked_upstream(Some(reply.response.status()), took),
        Err(failure) if failure.is_untried() => {}
        Err(_) => journey.exchange.asked_upstream(None, took),
    }
}

/// The answer to a request that got none, and whose fault that was.
pub(crate) fn failed(journey: &mut Journey<'_>, failure: &Failure, why: Forward) -> Answer {
    journey.failed(&respond::failed(failure), why)
}

/// The answer to a request that was forwarded as it is.
pub(crate) fn passed(journey: &mut Journey<'_>, reply: Reply, forwarded: &Forwarded) -> Answer {
    let Reply { mut response, upgraded } = reply;
    let version = response.version();
    let hop = headers::strip_hop_by_hop(response.headers_mut());
    headers::append_via(response.headers_mut(), version);
    journey.exchange.decide(Outcome::Pass, response.status());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((socket, behind)) = upgraded else {
            return respond::own(StatusCode::BAD_GATEWAY, "the upstream switched protocols unasked");
        };
        if let Some(protocol) = hop.upgrade {
            response.headers_mut().insert(header::UPGRADE, protocol);
        }
        let mut answer = answer(response, forwarded);
        let upstream = Box::new(Resumed { behind, socket });
        answer.tunnel = Some(Tunnel { upstream, idle: journey.route.rule.tunnel_idle });
        return answer;
    }
    answer(response, forwarded)
}

/// A response as an answer, with what there is to say of the cache.
pub(crate) fn answer(response: Response<Body>, forwarded: &Forwarded) -> Answer {
    let (parts, body) = response.into_parts();
    let mut answer = Answer::new(parts.status);
    answer.fields = parts.headers;
    forwarded.append(&mut answer.fields);
    answer.body = body;
    answer
}

/// The request to send for a request that passes the cache; its fields are taken out of `parts`.
pub(crate) fn pass_request(journey: &Journey<'_>, parts: &mut Parts, body: Body) -> Request<Body> {
    let fields = std::mem::take(&mut parts.headers);
    outgoing(journey, parts, fields, body, true)
}

/// The request of a fetch for everybody: whole and unconditional but for what is stored already.
pub(crate) fn fill_request(journey: &Journey<'_>, parts: &Parts, previous: Option<&Previous>) -> Request<Body> {
    let mut fields = shared_fields(parts);
    conditional::strip_conditions(&mut fields);
    if let Some(previous) = previous
        && let Some(entry) = previous.entry()
    {
        conditional::ask_to_confirm(&mut fields, entry, previous.confirmed_by());
    }
    let body = journey.content.as_ref().map_or(Body::Empty, Content::body);
    let mut request = outgoing(journey, parts, fields, body, false);
    // A HEAD may start a refresh; what is stored is always a whole.
    if journey.content.is_none() {
        *request.method_mut() = Method::GET;
    }
    request
}

/// The request of a fetch that completes a stored part.
pub(crate) fn rest_request(journey: &Journey<'_>, parts: &Parts, part: &Entry) -> Option<Request<Body>> {
    let mut fields = shared_fields(parts);
    cached_parts::ask_for_rest(&mut fields, part).then(|| {
        let mut request = outgoing(journey, parts, fields, Body::Empty, false);
        *request.method_mut() = Method::GET;
        request
    })
}

/// The request for a part that may be kept: the client's conditions are the upstream's to judge.
pub(crate) fn part_request(journey: &Journey<'_>, parts: &Parts) -> Request<Body> {
    outgoing(journey, parts, shared_fields(parts), Body::Empty, false)
}

/// The client's fields in the form in which they are keyed.
fn shared_fields(parts: &Parts) -> HeaderMap {
    let mut fields = parts.headers.clone();
    negotiation::combine_lines(&mut fields);
    negotiation::normalise_negotiation(&mut fields);
    fields.insert(SURROGATE_CAPABILITY, HeaderValue::from_static(directives::SURROGATE_CAPABILITY));
    fields
}

fn outgoing(
    journey: &Journey<'_>,
    parts: &Parts,
    mut fields: HeaderMap,
    body: Body,
    may_upgrade: bool,
) -> Request<Body> {
    let settings = journey.worker.upstream.settings();
    let hop = headers::strip_hop_by_hop(&mut fields);
    fields.remove(header::EXPECT);
    if let Some(rule) = &journey.route.rule.cache {
        headers::drop_overrides(&mut fields, &rule.key_headers);
    }
    // Once, for those that are added.
    fields.reserve(ADDED_FIELDS);
    headers::set_forwarding(&mut fields, &journey.client, journey.target.host());
    headers::append_via(&mut fields, parts.version);
    headers::join_cookies(&mut fields);
    // HTTP/1.0 may name none, and HTTP/1.1 has none that is empty: some servers would refuse it, others choose one.
    let is_unnamed = journey.target.host_value().is_empty();
    let host = match &settings.target {
        crate::config::Target::Tcp { authority, .. } if !settings.preserve_host || is_unnamed => {
            HeaderValue::from_str(authority).ok()
        }
        crate::config::Target::Unix(_) if is_unnamed => Some(HeaderValue::from_static("localhost")),
        _ => None,
    };
    fields.insert(header::HOST, host.unwrap_or_else(|| journey.target.host_value().clone()));
    if hop.te_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        if settings.protocol == Protocol::Http1 {
            fields.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if let Some(protocol) = hop.upgrade.filter(|_| may_upgrade && settings.protocol == Protocol::Http1) {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, protocol);
    }
    let edits = &journey.route.rule.request;
    for name in &edits.remove {
        fields.remove(name);
    }
    for (name, value) in &edits.set {
        fields.insert(name.clone(), value.clone());
    }
    let mut request = Request::new(Patient::request(body, journey.request_idle()));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = journey.target.origin_form();
    *request.headers_mut() = fields;
    if parts.extensions.get::<Expected>().is_some() {
        request.extensions_mut().insert(Expected);
    }
    if let Some(client) = journey.interim.sender() {
        request.extensions_mut().insert(Herald { client, route: Arc::clone(journey.route) });
    }
    request
}

/// Takes interim responses to the client that waits; goes along with a request to the upstream.
#[derive(Clone)]
pub(crate) struct Herald {
    client: InterimSender,
    route: Arc<RouteState>,
}

impl Herald {
    /// Hands one over, without what the route takes off answers. A 100 answers an expectation that was not passed on.
    pub(crate) fn tell(&self, interim: Response<()>) {
        if interim.status() == StatusCode::CONTINUE {
            return;
        }
        let (head, ()) = interim.into_parts();
        let mut fields = head.headers;
        headers::strip_hop_by_hop(&mut fields);
        for name in &self.route.rule.response.remove {
            fields.remove(name);
        }
        headers::append_via(&mut fields, head.version);
        self.client.send(head.status, fields);
    }
}

/// Makes a route's changes to an answer, stored lines included.
pub(crate) fn edit(answer: &mut Answer, edits: &FieldEdits) {
    if edits.remove.is_empty() && edits.set.is_empty() {
        return;
    }
    let framed = answer.fields.get(header::CONTENT_TYPE).filter(|kind| kind.as_bytes().starts_with(MULTIPART)).cloned();
    let gone = |name: &[u8]| {
        let mut named = edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name));
        named.any(|edited| edited.as_str().as_bytes() == name)
    };
    if !answer.prepared.is_empty() {
        answer.prepared = without(&answer.prepared, gone);
    }
    answer.lines.retain(|line| !gone(line.split(|byte| *byte == b':').next().unwrap_or_default()));
    for name in &edits.remove {
        answer.fields.remove(name);
    }
    for (name, value) in &edits.set {
        answer.fields.insert(name.clone(), value.clone());
    }
    // Without its boundary such a body cannot be read.
    if let Some(framed) = framed {
        answer.fields.insert(header::CONTENT_TYPE, framed);
    }
}

/// A connection whose first bytes have been read already.
struct Resumed {
    behind: Bytes,
    socket: Socket,
}

impl AsyncRead for Resumed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.behind.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let take = self.behind.len().min(buf.remaining());
        buf.put_slice(&self.behind[..take]);
        self.behind.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
