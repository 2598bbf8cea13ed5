//! One HTTP/2 connection: hyper's framing and flow control, our bounds, and requests in HTTP/1's shape.

mod flood;
mod streams;
mod watched;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::MissedTickBehavior;

use crate::config::ServerLimits;
use crate::message::interim::Interim;
use crate::message::{Answer, Body, Peer};
use crate::metrics::Ended;

use self::flood::Flood;
use self::streams::{Activity, AnswerBody, Asked, Stream, Verdict, Watch};
use self::watched::Watched;
use super::head::{self, Refusal};
use super::http1::Http2;
use super::wire::Transport;
use super::{Context, Service, guard};

/// Bytes of an answer that wait for one stream's window.
const SEND_MAX: usize = 64 * 1024;

/// Serves a connection to its end.
pub(super) async fn serve<T: Transport, S: Service>(http2: Http2<T>, service: S) {
    let Http2 { wire, context } = http2;
    let metrics = Arc::clone(&context.metrics);
    let mut io = Watched::new(wire);
    let driven = drive(&mut io, context, service).await;
    let (farewells, flood) = (io.farewells(), io.flood());
    let reason = match (driven, flood) {
        (_, Some(Flood::Resets)) => Ended::Http2Resets,
        (_, Some(Flood::Control)) => Ended::Http2ControlFrames,
        (Driven::Stalled, None) => Ended::BodyIdle,
        (Driven::Unused, None) => Ended::HeadTimeout,
        (Driven::Broken, None) if farewells > 0 => Ended::Http2Error,
        (Driven::Broken | Driven::Over, None) => return,
    };
    metrics.connection_cut(reason);
    tracing::debug!(reason = reason.as_str(), "an HTTP/2 connection was ended");
    match reason {
        Ended::BodyIdle => io.cut(),
        Ended::HeadTimeout => {}
        Ended::Http2Error | Ended::Http2Resets | Ended::Http2ControlFrames => io.end().await,
    }
}

/// How serving a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driven {
    /// As either side wished.
    Over,
    /// By an error, of which the client was told if it broke the protocol.
    Broken,
    /// It asked for nothing.
    Unused,
    /// Nothing moved on it any more; it is still open.
    Stalled,
}

async fn drive<T: Transport, S: Service>(io: &mut Watched<T>, mut context: Context, service: S) -> Driven {
    let (limits, peer) = (context.limits, context.peer);
    let activity = Arc::new(Activity::default());
    let seen = Arc::clone(&activity);
    let respond = service_fn(move |request| {
        let (service, stream) = (service.clone(), Stream::begin(&activity));
        async move { Ok::<_, Infallible>(respond(&service, request, peer, limits, stream).await) }
    });
    let mut connection = pin!(builder(&limits).serve_connection(TokioIo::new(io), respond));
    let mut watch = Watch::new(limits);
    let mut looks = tokio::time::interval(watch.every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut leaving, mut over) = (false, Driven::Over);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return match ended {
                Ok(()) => over,
                Err(error) => {
                    tracing::debug!(%error, "an HTTP/2 connection ended early");
                    if leaving { over } else { Driven::Broken }
                }
            },
            () = context.drain.draining(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = looks.tick() => match watch.look(&seen) {
                Verdict::Fine => {}
                Verdict::Silent | Verdict::Unused if leaving => {}
                verdict @ (Verdict::Silent | Verdict::Unused) => {
                    leaving = true;
                    if verdict == Verdict::Silent {
                        over = Driven::Unused;
                    }
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Stalled => return Driven::Stalled,
            },
        }
    }
}

fn builder(limits: &ServerLimits) -> Builder<TokioExecutor> {
    let http2 = &limits.http2;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(http2.streams)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .initial_stream_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_send_buf_size(SEND_MAX)
        .max_pending_accept_reset_streams(http2.resets as usize)
        // The library's own count never ends: errors of days would sum up on a connection that lives long.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(http2.ping_interval)
        .keep_alive_timeout(http2.ping_timeout);
    builder
}

async fn respond<S: Service>(
    service: &S,
    request: Request<Incoming>,
    peer: Peer,
    limits: ServerLimits,
    stream: Stream,
) -> Response<AnswerBody> {
    let (mut parts, body) = request.into_parts();
    let head_only = parts.method == Method::HEAD;
    let answer = match normalise(&mut parts) {
        Err(refusal) => {
            let mut answer = service.refuse(refusal.status, refusal.why);
            if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
                answer.fields.entry(header::ALLOW).or_insert(head::ALLOWED);
            }
            answer
        }
        Ok(()) => {
            let body = if body.is_end_stream() { Body::Empty } else { Body::stream(Asked::new(body, &limits)) };
            // On the heap, for as long as it takes: the stream's task lives on until the client has taken the answer.
            let mut call = Box::pin(service.call(Request::from_parts(parts, body), peer, Interim::none()));
            std::future::poll_fn(|cx| guard::poll(call.as_mut(), cx)).await.unwrap_or_else(guard::panicked)
        }
    };
    response(answer, head_only, stream)
}

/// Gives a request the shape that it would have over HTTP/1 (RFC 9113 section 8.3).
fn normalise(parts: &mut request::Parts) -> Result<(), Refusal> {
    head::check_method(&parts.method)?;
    if parts.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Refusal::bad("the request target's scheme is not http or https"));
    }
    let path = match parts.uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => path.clone(),
        Some(path) if path.as_str() == "*" && parts.method == Method::OPTIONS => path.clone(),
        None if parts.method == Method::OPTIONS => PathAndQuery::from_static("*"),
        _ => return Err(Refusal::bad("the request target does not begin with a slash")),
    };
    head::check_target(path.as_str())?;
    let fields = &mut parts.headers;
    check_fields(fields)?;
    let mut hosts = fields.get_all(header::HOST).iter();
    let host = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return Err(Refusal::bad("there is more than one Host")),
        (None, None, _) => return Err(Refusal::bad("there is no Host")),
        (Some(authority), Some(host), _) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(Refusal::bad("the Host differs from the authority"));
        }
        (Some(authority), _, _) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::bad("the Host is malformed"))?
        }
        (None, Some(host), _) => host.clone(),
    };
    if !head::is_host(host.as_bytes()) {
        return Err(Refusal::bad("the Host is malformed"));
    }
    fields.insert(header::HOST, host);
    let is_known = |expected: &HeaderValue| expected.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !fields.get_all(header::EXPECT).iter().all(is_known) {
        return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "the expectation is unknown"));
    }
    fields.remove(header::EXPECT);
    join_cookies(fields)?;
    parts.uri = Uri::from(path);
    Ok(())
}

/// What the library lets through, and HTTP/1 would say in another way.
fn check_fields(fields: &http::HeaderMap) -> Result<(), Refusal> {
    let mut lengths = 0;
    for (name, value) in fields {
        if is_padded(value) {
            return Err(Refusal::bad("a field value begins or ends with white space"));
        }
        lengths += usize::from(name == header::CONTENT_LENGTH);
        if head::mimics_framing(name) {
            return Err(head::MIMIC);
        }
    }
    let is_twice =
        |name: &&HeaderName| head::stands_once(name.as_str()) && fields.get_all(*name).iter().nth(1).is_some();
    if fields.len() > fields.keys_len() && fields.keys().any(|name| is_twice(&name)) {
        return Err(head::TWICE);
    }
    if lengths > 1 { Err(Refusal::bad("there is more than one Content-Length")) } else { Ok(()) }
}

/// Whether white space stands at either end, which HTTP/2 forbids (RFC 9113 section 8.2.1) and HTTP/1 drops.
fn is_padded(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())
}

/// RFC 9113 section 8.2.3: HTTP/2 may split what HTTP/1 has in one line.
fn join_cookies(fields: &mut http::HeaderMap) -> Result<(), Refusal> {
    let cookies: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined =
            HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_err(|_| Refusal::bad("a cookie is malformed"))?;
        fields.insert(header::COOKIE, joined);
    }
    Ok(())
}

fn response(mut answer: Answer, head_only: bool, stream: Stream) -> Response<AnswerBody> {
    if answer.status.is_informational() {
        // HTTP/2 has no upgrade (RFC 9113 section 8.6).
        answer = guard::panicked();
    }
    let mut fields = answer.fields;
    fields.remove(header::TRANSFER_ENCODING);
    fields.remove(header::CONNECTION);
    let lines = Bytes::copy_from_slice(answer.lines.as_bytes());
    for (name, value) in prepared(&answer.prepared).chain(prepared(&lines)) {
        fields.append(name, value);
    }
    let bodiless = head_only || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = answer.body.size_hint().exact().filter(|length| *length > 0);
    let body = if bodiless { Body::Empty } else { answer.body };
    if !bodiless {
        fields.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length
        && answer.status != StatusCode::NO_CONTENT
    {
        fields.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    let mut response = Response::new(AnswerBody::new(body, stream));
    *response.status_mut() = answer.status;
    *response.headers_mut() = fields;
    response
}

/// The fields in serialised lines.
fn prepared(lines: &Bytes) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    lines.split(|b| *b == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r")?;
        let colon = memchr::memchr(b':', line)?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_maybe_shared(lines.slice_ref(line[colon + 1..].trim_ascii())).ok()?;
        Some((name, value))
    })
}

#[cfg(test)]
mod tests;
