//! A connection's bytes on their way to and from the framing library, with an eye on what the frames are.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use super::flood::{Flood, GOAWAY, PREFACE, Tally, Walker};
use crate::config::ServerLimits;
use crate::server::wire::{Transport, Wire};

/// `ENHANCE_YOUR_CALM` (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// A connection whose first bytes have been read already, and whose frames are counted.
pub(super) struct Watched<T> {
    io: T,
    read: BytesMut,
    limits: ServerLimits,
    coming: Walker,
    going: Walker,
    tally: Tally,
    /// The last stream that the client began.
    last: u32,
    flood: Option<Flood>,
    /// Farewells said, with or without a reason.
    farewells: usize,
}

impl<T: Transport> Watched<T> {
    pub(super) fn new(wire: Wire<T>) -> Self {
        Self {
            io: wire.io,
            read: wire.input,
            limits: wire.limits,
            coming: Walker::new(PREFACE),
            going: Walker::new(0),
            tally: Tally::new(wire.limits.http2, Instant::now()),
            last: 0,
            flood: None,
            farewells: 0,
        }
    }

    /// What ended the connection, if it was a flood.
    pub(super) fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// How many farewells were said to the client.
    pub(super) fn farewells(&self) -> usize {
        self.farewells
    }

    /// Ends a connection that floods or broke the protocol, after its streams were dropped: says why, where that can be said
    /// and was not said yet, and reads on for a while, so that the client sees it.
    pub(super) async fn end(mut self) {
        if self.flood.is_some() && self.going.is_between() {
            let mut goaway = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
            goaway.extend(self.last.to_be_bytes());
            goaway.extend(ENHANCE_YOUR_CALM.to_be_bytes());
            // Who does not take it will see the connection's end.
            let _ = timeout(self.limits.head_timeout, self.io.write_all(&goaway)).await;
        }
        Wire::new(self.io, self.limits).linger().await;
    }

    /// Ends a connection on which nothing moves.
    pub(super) fn cut(self) {
        self.io.reset_on_close();
    }

    fn came(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (tally, flood, last) = (&mut self.tally, &mut self.flood, &mut self.last);
        self.coming.feed(bytes, |frame| {
            *last = frame.stream.max(*last);
            *flood = flood.or(tally.came(frame, Instant::now));
        });
        self.calm_enough()
    }

    fn went(&mut self, bytes: &[u8]) {
        let (tally, flood, farewells) = (&mut self.tally, &mut self.flood, &mut self.farewells);
        self.going.feed(bytes, |frame| {
            *farewells += usize::from(frame.kind == GOAWAY);
            *flood = flood.or(tally.went(frame, Instant::now));
        });
    }

    fn calm_enough(&self) -> io::Result<()> {
        if self.flood.is_some() { Err(io::Error::other("the client floods the connection")) } else { Ok(()) }
    }
}

impl<T: Transport> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.calm_enough()?;
        let before = into.filled().len();
        if self.read.is_empty() {
            ready!(Pin::new(&mut self.io).poll_read(cx, into))?;
        } else {
            let count = self.read.len().min(into.remaining());
            into.put_slice(&self.read[..count]);
            self.read.advance(count);
            if self.read.is_empty() {
                self.read = BytesMut::new();
            }
        }
        Poll::Ready(self.came(&into.filled()[before..]))
    }
}

impl<T: Transport> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, from))?;
        self.went(&from[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, from))?;
        let mut left = count;
        for slice in from {
            let written = left.min(slice.len());
            self.went(&slice[..written]);
            left -= written;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
