//! One HTTP/1 connection: heads in order, the service's answers in the same order, until either side ends it.
//!
//! The connection's task does everything itself: it drives the service, moves the request's body to it, and writes the
//! answer. On the way of a small answer that is at hand there is one read, one write, and no timer to arm.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use http::{Request, StatusCode};
use http_body::{Body as _, Frame};

use crate::message::interim::{Interim, Interims};
use crate::message::{Answer, Body, BodyError, Expected, Tunnel};
use crate::metrics::Ended;

use super::answer::{self, Asked, Extent, Persistence};
use super::head::{self, HTTP2_PREFACE, Head, Refusal, Scan};
use super::intake::Intake;
use super::wire::{HEAD_READ, Transport, Wire};
use super::{Context, Service, guard, spare, tunnel};

/// Most of an unread request body that is read and thrown away to keep the connection; beyond it, closing is cheaper.
const UNREAD_MAX: u64 = 64 * 1024;

/// Longest that this may take.
const UNREAD_TIME: Duration = Duration::from_secs(5);

/// How long a connection that has not sent its first request may still do so while the worker drains.
pub(super) const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// A connection that turned out to speak HTTP/2: nothing of it has been taken.
pub(super) struct Http2<T> {
    pub wire: Wire<T>,
    pub context: Context,
}

/// Serves a connection to its end, or up to HTTP/2's preface.
pub(super) async fn serve<T: Transport, S: Service>(io: T, service: &S, context: Context) -> Option<Http2<T>> {
    let wire = Wire::new(io, context.limits);
    let mut connection = Connection { wire, service, context, interims: Arc::default(), fresh: true };
    let after = loop {
        let after = match connection.next_head().await {
            Next::Head(end) => match connection.take_head(end) {
                Ok(head) => connection.exchange(head).await,
                Err(refusal) => connection.refuse(refusal).await,
            },
            Next::Refused(refusal) => connection.refuse(refusal).await,
            Next::Http2 => return Some(Http2 { wire: connection.wire, context: connection.context }),
            Next::Closed => {
                // Who takes nothing would not take a farewell.
                if !connection.wire.stood_still {
                    connection.wire.farewell().await;
                }
                After::Gone
            }
        };
        if after != After::Keep {
            break after;
        }
        connection.fresh = false;
    };
    let mut wire = connection.wire;
    if wire.stood_still {
        connection.context.metrics.connection_cut(Ended::BodyIdle);
    }
    match after {
        After::Keep | After::Gone => {}
        After::Broken => wire.io.reset_on_close(),
        After::Close | After::Unread => match wire.flush().await {
            Err(_) => wire.io.reset_on_close(),
            Ok(()) if after == After::Unread || !wire.input.is_empty() => wire.linger().await,
            Ok(()) => wire.farewell().await,
        },
    }
    None
}

struct Connection<'s, T, S> {
    wire: Wire<T>,
    service: &'s S,
    context: Context,
    interims: Arc<Interims>,
    /// Whether no request has been answered yet.
    fresh: bool,
}

enum Next {
    /// A whole one, of so many bytes.
    Head(usize),
    Refused(Refusal),
    Http2,
    Closed,
}

/// What becomes of the connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request.
    Keep,
    /// It ends with what has been answered.
    Close,
    /// It ends so, and bytes of the client are still to come.
    Unread,
    /// An answer was cut short: it must not look whole.
    Broken,
    /// There is nobody left to tell.
    Gone,
}

/// What waiting for more of a head came to.
enum Waited {
    More,
    TimedOut,
    Over,
}

impl<T: Transport, S: Service> Connection<'_, T, S> {
    /// Waits for a whole head. The deadline of a silence between requests is not that of a head.
    async fn next_head(&mut self) -> Next {
        let limits = self.wire.limits;
        if self.wire.output.is_due() && self.wire.flush().await.is_err() {
            return Next::Closed;
        }
        let mut scanned = 0;
        let mut empty_line_allowed = true;
        self.wire.reading.clear();
        let mut begun = self.fresh;
        if self.fresh {
            self.wire.reading.set(limits.head_timeout);
        }
        loop {
            let is_first = self.fresh && empty_line_allowed;
            if is_first && !self.context.spoken.allows(&self.wire.input) {
                return Next::Closed;
            }
            // RFC 9112 section 2.2: an empty line before a request is passed over. HTTP/2 knows no such thing.
            if empty_line_allowed && self.wire.input.starts_with(b"\r\n") {
                self.wire.input.advance(2);
                (scanned, empty_line_allowed) = (0, false);
                continue;
            }
            match head::scan(&self.wire.input, &mut scanned) {
                Scan::End(_) if is_first && self.wire.input.starts_with(HTTP2_PREFACE) => return Next::Http2,
                Scan::End(end) if end <= limits.head => return Next::Head(end),
                Scan::BareLineFeed => return Next::Refused(Refusal::bad("a line ends without a carriage return")),
                Scan::Partial if self.wire.input.len() <= limits.head => {}
                Scan::End(_) | Scan::Partial => return Next::Refused(too_large(&self.wire.input, limits.head)),
            }
            if self.wire.flush().await.is_err() {
                return Next::Closed;
            }
            if !begun {
                begun = !self.wire.input.is_empty();
                self.wire.reading.set(if begun { limits.head_timeout } else { limits.keep_alive });
            }
            match self.wait_for_head().await {
                Waited::More => {}
                Waited::TimedOut if self.wire.input.is_empty() && !self.fresh => return Next::Closed,
                Waited::TimedOut => {
                    self.context.metrics.connection_cut(Ended::HeadTimeout);
                    if self.wire.input.is_empty() {
                        return Next::Closed;
                    }
                    return Next::Refused(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the head took too long"));
                }
                Waited::Over => return Next::Closed,
            }
        }
    }

    async fn wait_for_head(&mut self) -> Waited {
        if self.wire.input.is_empty() {
            self.wire.rest();
        }
        let mut granted = false;
        poll_fn(|cx| {
            // Reading comes first: a request that is here already is answered even while draining.
            match self.wire.poll_fill(HEAD_READ, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Waited::Over),
                Poll::Ready(Ok(_)) => return Poll::Ready(Waited::More),
                Poll::Pending => {}
            }
            if self.wire.input.is_empty() && !granted && self.context.drain.poll_draining(cx).is_ready() {
                if !self.fresh {
                    return Poll::Ready(Waited::Over);
                }
                granted = true;
                self.wire.reading.set(FIRST_REQUEST_GRACE.min(self.wire.limits.head_timeout));
            }
            self.wire.reading.poll(cx).map(|()| Waited::TimedOut)
        })
        .await
    }

    fn take_head(&mut self, end: usize) -> Result<Head, Refusal> {
        self.wire.reading.clear();
        let head = self.wire.input.split_to(end).freeze();
        head::parse(&head, spare::fields())
    }

    /// Answers a request that is not taken. Nothing behind it means anything.
    async fn refuse(&mut self, refusal: Refusal) -> After {
        let mut answer = self.service.refuse(refusal.status, refusal.why);
        if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
            answer.fields.entry(http::header::ALLOW).or_insert(head::ALLOWED);
        }
        let asked = Asked { head_only: false, http10: false, takes_trailers: false };
        let extent = answer::extent(&answer, &asked);
        self.start(&answer, extent, Persistence::Close, &asked);
        if self.send(answer.body, extent, &asked, None).await.is_err() {
            return After::Broken;
        }
        After::Unread
    }

    async fn exchange(&mut self, head: Head) -> After {
        let Head { mut parts, framing, keep_alive, expects_continue, takes_trailers } = head;
        if expects_continue {
            parts.extensions.insert(Expected);
        }
        let asked = Asked::new(&parts.method, parts.version, takes_trailers);
        let (mut intake, body) = Intake::open(framing, expects_continue, &mut self.wire);
        let called = {
            let begun = self.interims.begin();
            // HTTP/1.0 has none (RFC 9110 section 15.2).
            let interim = if asked.http10 { Interim::none() } else { begun };
            let mut call = pin!(self.service.call(Request::from_parts(parts, body), self.context.peer, interim));
            let (wire, interims) = (&mut self.wire, &self.interims);
            let mut was_pending = false;
            poll_fn(|cx| {
                let answered = guard::poll(call.as_mut(), cx);
                // Who is answered at once was told nothing before.
                if was_pending || answered.is_pending() {
                    was_pending = true;
                    while let Poll::Ready(responses) = interims.poll(cx) {
                        responses.iter().for_each(|(status, fields)| {
                            answer::interim(wire.output.buffer(), *status, fields);
                        });
                    }
                }
                if let Poll::Ready(answered) = answered {
                    return Poll::Ready(Some(answered));
                }
                // Answers before this one do not wait for it.
                if wire.is_unwritten() && matches!(wire.poll_flush(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(None);
                }
                intake.poll(wire, cx).map(|()| None)
            })
            .await
        };
        match called {
            None => After::Gone,
            Some(None) => self.answer(guard::panicked(), &asked, false, intake).await,
            Some(Some(answer)) => self.answer(answer, &asked, keep_alive, intake).await,
        }
    }

    async fn answer(&mut self, mut answer: Answer, asked: &Asked, keep_alive: bool, mut intake: Intake) -> After {
        if answer.status == StatusCode::SWITCHING_PROTOCOLS
            && let Some(tunnel) = answer.tunnel.take()
        {
            self.start(&answer, Extent::Absent(None), Persistence::Upgrade, asked);
            return self.tunnel(tunnel).await;
        }
        if answer.status.is_informational() {
            answer = guard::panicked();
        }
        let extent = answer::extent(&answer, asked);
        intake.answered();
        let readable = intake.skip(&mut self.wire) || intake.ends_within(UNREAD_MAX);
        let keep = keep_alive && readable && extent != Extent::Close && !self.context.drain.is_leaving();
        self.start(&answer, extent, if keep { Persistence::Keep } else { Persistence::Close }, asked);
        answer.fields.clear();
        spare::put_fields(answer.fields);
        if self.send(answer.body, extent, asked, Some(&mut intake)).await.is_err() {
            return After::Broken;
        }
        match (keep, intake.is_done()) {
            (true, true) => After::Keep,
            (true, false) => self.read_rest(intake).await,
            (false, true) => After::Close,
            (false, false) => After::Unread,
        }
    }

    fn start(&mut self, answer: &Answer, extent: Extent, persistence: Persistence, asked: &Asked) {
        let clock = &self.context.clock;
        let body = if let Body::Full(bytes) = &answer.body { bytes.len() } else { 0 };
        self.wire.output.reserve(answer.prepared.len(), body);
        answer::encode(self.wire.output.buffer(), answer, extent, persistence, asked, || clock.now());
    }

    /// Sends a body whose head is in the output. What is short stays there, for the next write.
    async fn send(
        &mut self,
        body: Body,
        extent: Extent,
        asked: &Asked,
        intake: Option<&mut Intake>,
    ) -> Result<(), Cut> {
        match body {
            _ if matches!(extent, Extent::Absent(_)) => Ok(()),
            Body::Empty => self.end(extent, true),
            Body::Full(bytes) => {
                self.wire.output.push(bytes);
                Ok(())
            }
            body => self.stream(body, extent, asked, intake).await,
        }
    }

    async fn stream(
        &mut self,
        mut body: Body,
        extent: Extent,
        asked: &Asked,
        mut intake: Option<&mut Intake>,
    ) -> Result<(), Cut> {
        let mut left = match extent {
            Extent::Length(length) => Some(length),
            _ => None,
        };
        let mut first = true;
        loop {
            // Collecting saves writes; a body that pauses is written before the pause.
            if self.wire.output.is_due() {
                self.flush_along(intake.as_deref_mut()).await?;
            }
            let frame = match self.next_frame(&mut body, intake.as_deref_mut()).await {
                Streamed::Frame(frame) => frame,
                Streamed::End => break,
                Streamed::Cut => return Err(Cut),
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    if let Some(left) = &mut left {
                        *left = left.checked_sub(data.len() as u64).ok_or(Cut)?;
                    }
                    if extent == Extent::Chunked {
                        answer::chunk_head(self.wire.output.buffer(), data.len(), first);
                    }
                    first = false;
                    self.wire.output.push(data);
                }
                Err(frame) => {
                    if extent == Extent::Chunked {
                        let trailers = frame.into_trailers().ok().filter(|_| asked.takes_trailers);
                        answer::last_chunk(self.wire.output.buffer(), first, trailers.as_ref());
                        return Ok(());
                    }
                }
            }
        }
        if left.is_some_and(|left| left > 0) { Err(Cut) } else { self.end(extent, first) }
    }

    async fn next_frame(&mut self, body: &mut Body, mut intake: Option<&mut Intake>) -> Streamed {
        poll_fn(|cx| {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Streamed::Frame(frame)),
                Poll::Ready(None) => return Poll::Ready(Streamed::End),
                Poll::Ready(Some(Err(error))) => {
                    log_cut(&error);
                    return Poll::Ready(Streamed::Cut);
                }
                Poll::Pending => {}
            }
            if matches!(self.wire.poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(Streamed::Cut);
            }
            let left = match intake.as_deref_mut() {
                Some(intake) => intake.poll(&mut self.wire, cx),
                None => self.wire.poll_left(cx),
            };
            left.map(|()| Streamed::Cut)
        })
        .await
    }

    /// Writes while the request's body goes on: a client may read nothing until it has sent everything.
    async fn flush_along(&mut self, mut intake: Option<&mut Intake>) -> Result<(), Cut> {
        poll_fn(|cx| {
            if let Poll::Ready(flushed) = self.wire.poll_flush(cx) {
                return Poll::Ready(flushed.map_err(|_| Cut));
            }
            let left = intake.as_deref_mut().map_or(Poll::Pending, |intake| intake.poll(&mut self.wire, cx));
            left.map(|()| Err(Cut))
        })
        .await
    }

    fn end(&mut self, extent: Extent, first: bool) -> Result<(), Cut> {
        if extent == Extent::Chunked {
            answer::last_chunk(self.wire.output.buffer(), first, None);
        }
        Ok(())
    }

    /// Reads the rest of a body that nobody wants, which is known to be short.
    async fn read_rest(&mut self, mut intake: Intake) -> After {
        intake.abandon();
        let rest = async {
            self.wire.flush().await?;
            while !intake.skip(&mut self.wire) {
                if poll_fn(|cx| self.wire.poll_fill(HEAD_READ, cx)).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            std::io::Result::Ok(())
        };
        match tokio::time::timeout(UNREAD_TIME, rest).await {
            Ok(Ok(())) => After::Keep,
            Ok(Err(_)) => After::Gone,
            Err(_) => After::Unread,
        }
    }

    async fn tunnel(&mut self, tunnel: Tunnel) -> After {
        if self.wire.flush().await.is_ok() {
            let read = std::mem::take(&mut self.wire.input);
            tunnel::run(&mut self.wire.io, read, tunnel).await;
        }
        After::Gone
    }
}

/// The answer cannot be completed.
struct Cut;

enum Streamed {
    Frame(Frame<bytes::Bytes>),
    End,
    Cut,
}

fn log_cut(error: &BodyError) {
    tracing::debug!(%error, "an answer was cut short");
}

fn too_large(input: &[u8], limit: usize) -> Refusal {
    if memchr::memchr(b'\n', &input[..input.len().min(limit)]).is_none() {
        return Refusal::new(StatusCode::URI_TOO_LONG, "the request line is too long");
    }
    Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
}

#[cfg(test)]
mod tests;
