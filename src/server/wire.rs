//! A connection's bytes: what was read ahead, what is still to be written, and how long either may stand still.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::spare;
use crate::config::ServerLimits;

/// Bytes asked of the socket while a head is awaited.
pub(super) const HEAD_READ: usize = 8 * 1024;

/// Bytes asked of the socket while a body is awaited.
pub(super) const BODY_READ: usize = 16 * 1024;

/// Bytes read ahead while a request is being answered, to notice that its client leaves; more wait in the kernel.
const AHEAD_MAX: usize = 16 * 1024;

/// Bodies up to this are copied behind their head: one plain write is cheaper than a gathered one.
const COPY_MAX: usize = 16 * 1024;

/// Answers to pipelined requests are collected up to this before they are written.
const COLLECT_MAX: usize = 32 * 1024;

/// Room for status line, framing and the fields that are not prepared; more grows the buffer.
const OTHER_FIELDS: usize = 256;

/// Longest that a refused client's bytes are read and thrown away, so that it sees the answer and not a reset.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Most that is thrown away.
const LINGER_MAX: usize = 4 * 1024 * 1024;

/// A client's connection.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Turns the coming close into a reset: the client must not take what it has for the whole, and the kernel must
    /// not go on sending.
    fn reset_on_close(&self);

    /// Says that the end is meant, where the transport has a word for it; to be called once all has been written.
    fn poll_farewell(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Transport for TcpStream {
    fn reset_on_close(&self) {
        // Only a socket that is closed already refuses this.
        let _ = self.set_zero_linger();
    }
}

/// A deadline that costs nothing while it only moves later: the runtime's timer is armed once and looks again when it
/// fires.
#[derive(Default)]
pub(super) struct Timer {
    due: Option<Instant>,
    armed: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Is due `after` this moment.
    pub(super) fn set(&mut self, after: Duration) {
        self.due = Some(Instant::now() + after);
    }

    /// Is never due.
    pub(super) fn clear(&mut self) {
        self.due = None;
    }

    /// Whether a deadline runs.
    pub(super) fn is_set(&self) -> bool {
        self.due.is_some()
    }

    /// Ready once it is due.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let armed = self.armed.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if due < armed.deadline() {
            armed.as_mut().reset(due);
        }
        while armed.deadline() < due {
            ready!(armed.as_mut().poll(cx));
            armed.as_mut().reset(due);
        }
        armed.as_mut().poll(cx)
    }
}

/// The time that a body may stand still, which only what moves enough buys anew: a client that sends or takes a byte now
/// and then is as good as silent. Only waiting for the client counts.
pub(super) struct Pace {
    idle: Duration,
    progress: usize,
    timer: Timer,
    left: Duration,
    moved: usize,
}

impl Pace {
    /// At least `progress` bytes in every `idle` of waiting.
    pub(super) fn new(idle: Duration, progress: usize) -> Self {
        Self { idle, progress, timer: Timer::default(), left: idle, moved: 0 }
    }

    /// So many bytes moved.
    pub(super) fn moved(&mut self, count: usize) {
        self.moved += count;
        if self.moved >= self.progress {
            (self.left, self.moved) = (self.idle, 0);
        } else if let Some(due) = self.timer.due {
            self.left = due.saturating_duration_since(Instant::now());
        }
        self.timer.clear();
    }

    /// Ready once the client has been waited for too long.
    pub(super) fn poll_waited(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.timer.is_set() {
            self.timer.set(self.left);
        }
        self.timer.poll(cx)
    }
}

/// Bytes on their way to the client: a buffer that is used again, and perhaps one large piece behind it.
#[derive(Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    written: usize,
    tail: Bytes,
}

impl Output {
    /// The buffer to append to. Nothing may be appended behind a large piece: flush first.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.tail.is_empty(), "what is appended would overtake the large piece");
        if self.buffer.capacity() == 0 {
            self.buffer = spare::buffer();
        }
        &mut self.buffer
    }

    /// Appends `piece`, by reference where it is large.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.len() <= COPY_MAX { self.buffer().extend_from_slice(&piece) } else { self.tail = piece }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.buffer.len() - self.written + self.tail.len()
    }

    /// Whether it is time to write: a large piece waits, behind which nothing can be appended, or enough was collected.
    pub(super) fn is_due(&self) -> bool {
        !self.tail.is_empty() || self.len() > COLLECT_MAX
    }

    /// Makes room for a head of so many prepared bytes and a body that will be copied behind it.
    pub(super) fn reserve(&mut self, prepared: usize, body: usize) {
        let copied = if body <= COPY_MAX { body } else { 0 };
        self.buffer().reserve(prepared + copied + OTHER_FIELDS);
    }

    fn wrote(&mut self, count: usize) {
        let of_buffer = count.min(self.buffer.len() - self.written);
        self.written += of_buffer;
        self.tail.advance(count - of_buffer);
        if self.written == self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
        }
    }
}

/// A connection with its buffers and deadlines.
pub(super) struct Wire<T> {
    pub io: T,
    /// Read but not yet taken.
    pub input: BytesMut,
    /// Made but not yet written.
    pub output: Output,
    /// Caps and deadlines.
    pub limits: ServerLimits,
    /// The deadline of a head.
    pub reading: Timer,
    /// Whether a body stood still for too long.
    pub stood_still: bool,
    /// How a body comes.
    pub coming: Pace,
    going: Pace,
    /// Whether the transport holds bytes that it has not written yet, as TLS may.
    is_held: bool,
    ended: bool,
}

impl<T: Transport> Wire<T> {
    pub(super) fn new(io: T, limits: ServerLimits) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: Output::default(),
            limits,
            reading: Timer::default(),
            stood_still: false,
            coming: Pace::new(limits.body_idle, limits.body_progress),
            going: Pace::new(limits.body_idle, limits.body_progress),
            is_held: false,
            ended: false,
        }
    }

    /// Reads what is there, up to about `want` bytes; 0 is the end.
    pub(super) fn poll_fill(&mut self, want: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if want == HEAD_READ && self.input.capacity() == 0 {
            return self.poll_wake(cx);
        }
        if self.input.capacity() - self.input.len() < want / 4 {
            // Once a request is gone its bytes are nobody's, and this uses their room again.
            self.input.reserve(want.saturating_sub(self.input.len()).max(want / 4));
        }
        let read = ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx));
        self.ended = matches!(read, Ok(0));
        Poll::Ready(read)
    }

    /// The first bytes of a head: a client that says nothing needs no buffer of its own.
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        spare::with_scratch(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            self.ended = read.filled().is_empty();
            self.input.extend_from_slice(read.filled());
            Poll::Ready(Ok(self.input.len()))
        })
    }

    /// Ready once the client is known to have left; reads ahead, within a bound, to notice.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended && self.input.len() < AHEAD_MAX {
            match ready!(self.poll_fill(HEAD_READ, cx)) {
                // Whole requests that came before the end are still answered.
                Ok(0) if !self.input.is_empty() => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// If the connection is broken, or the client took next to nothing for `body_idle`.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.len() > 0 {
            let rest = &self.output.buffer[self.output.written..];
            let io = Pin::new(&mut self.io);
            let written = if self.output.tail.is_empty() {
                io.poll_write(cx, rest)
            } else if rest.is_empty() {
                io.poll_write(cx, &self.output.tail)
            } else {
                io.poll_write_vectored(cx, &[IoSlice::new(rest), IoSlice::new(&self.output.tail)])
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.output.wrote(count);
                    self.going.moved(count);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.poll_stalled(cx),
            }
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(flushed) => {
                if self.is_held {
                    self.is_held = false;
                    self.going.moved(self.limits.body_progress);
                }
                Poll::Ready(flushed)
            }
            Poll::Pending => {
                self.is_held = true;
                self.poll_stalled(cx)
            }
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.going.poll_waited(cx));
        self.stood_still = true;
        // The kernel must not go on where nobody takes anything.
        self.io.reset_on_close();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether something is still to be written.
    pub(super) fn is_unwritten(&self) -> bool {
        self.output.len() > 0 || self.is_held
    }

    /// See [`Wire::poll_flush`].
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Holds no buffer until the client speaks again. Nothing may be on its way.
    pub(super) fn rest(&mut self) {
        if self.input.is_empty() && !self.is_unwritten() {
            self.input = BytesMut::new();
            spare::put_buffer(std::mem::take(&mut self.output.buffer));
        }
    }

    /// Ends the connection well, after its last byte has been written.
    pub(super) async fn farewell(&mut self) {
        // Most transports have nothing to say, and need no timer.
        if poll_fn(|cx| Poll::Ready(self.io.poll_farewell(cx))).await.is_pending() {
            let said = poll_fn(|cx| self.io.poll_farewell(cx));
            // Who does not take it in time goes without.
            let _ = tokio::time::timeout(LINGER_TIME, said).await;
        }
    }

    /// Ends the connection so that the client gets the last answer although bytes of it were left unread: a close with
    /// unread bytes is a reset, which may overtake the answer (RFC 9112 section 9.6).
    pub(super) async fn linger(mut self) {
        let throw_away = async {
            self.io.shutdown().await?;
            let mut left = LINGER_MAX;
            loop {
                self.input.clear();
                self.input.reserve(BODY_READ);
                match self.io.read_buf(&mut self.input).await? {
                    0 => return io::Result::Ok(()),
                    count if count >= left => return Ok(()),
                    count => left -= count,
                }
            }
        };
        // Whatever goes wrong here, the connection ends.
        let _ = tokio::time::timeout(LINGER_TIME, throw_away).await;
    }
}

#[cfg(test)]
impl Transport for tokio::io::DuplexStream {
    fn reset_on_close(&self) {}
}

#[cfg(test)]
mod tests {
    use tokio::io::ReadBuf;

    use super::*;
    use crate::server::sample::LIMITS;

    /// Takes every byte at once and gets rid of none.
    struct Holding;

    impl AsyncRead for Holding {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Holding {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Transport for Holding {
        fn reset_on_close(&self) {}

        fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
            Pin::new(self).poll_shutdown(cx).map(|_| ())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_transport_holds_has_deadlines_too() {
        let mut wire = Wire::new(Holding, LIMITS);
        wire.output.buffer().extend_from_slice(b"answer");
        let began = Instant::now();
        assert_eq!(wire.flush().await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(began.elapsed().as_secs(), LIMITS.body_idle.as_secs());
        assert!(wire.is_unwritten(), "nothing of ours waits, but it was not written");
        let began = Instant::now();
        wire.farewell().await;
        assert_eq!(began.elapsed().as_secs(), LINGER_TIME.as_secs());
    }
}
