//! An upgraded connection: bytes to and fro until both sides have ended, one breaks, or both are silent for too long.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::message::Tunnel;

use super::wire::{BODY_READ, Timer, Transport};

/// Carries bytes between the client and the upstream; `read` is what the client sent behind its request.
pub(super) async fn run<T: Transport>(client: &mut T, read: BytesMut, tunnel: Tunnel) {
    let Tunnel { mut upstream, idle } = tunnel;
    let mut there = Way { buffer: read, stage: Stage::Reading };
    let mut back = Way { buffer: BytesMut::new(), stage: Stage::Reading };
    let mut silence = Timer::default();
    silence.set(idle);
    let ended = poll_fn(|cx| {
        loop {
            let up = there.poll(client, &mut upstream, cx)?;
            let down = back.poll(&mut upstream, client, cx)?;
            if there.stage == Stage::Ended && back.stage == Stage::Ended {
                return Poll::Ready(Ok(()));
            }
            if !up && !down {
                return silence.poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
            }
            silence.set(idle);
        }
    });
    let ended: io::Result<()> = ended.await;
    if ended.is_err() {
        client.reset_on_close();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    /// The source has ended; what is buffered goes first, then the end.
    Ending,
    Ended,
}

/// One direction.
struct Way {
    buffer: BytesMut,
    stage: Stage,
}

impl Way {
    /// Moves what can be moved now; whether anything was.
    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> io::Result<bool>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut moved = false;
        match self.poll_write(to, &mut moved, cx) {
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) if self.stage == Stage::Reading => {
                self.buffer.reserve(BODY_READ);
                match pin!(from.read_buf(&mut self.buffer)).poll(cx)? {
                    Poll::Ready(0) => self.stage = Stage::Ending,
                    Poll::Ready(_) => {}
                    Poll::Pending => return Ok(moved),
                }
                moved = true;
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(moved)
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        moved: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.buffer.advance(count),
            }
            *moved = true;
        }
        if self.stage == Stage::Ending {
            ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
            self.stage = Stage::Ended;
            *moved = true;
        }
        Pin::new(to).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const IDLE: Duration = Duration::from_secs(5);

    fn tunnel(read: &[u8]) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<()>) {
        let (client, mut near) = duplex(1024);
        let (far, upstream) = duplex(1024);
        let read = BytesMut::from(read);
        let tunnel = Tunnel { upstream: Box::new(far), idle: IDLE };
        let task = tokio::spawn(async move { run(&mut near, read, tunnel).await });
        (client, upstream, task)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut client, mut upstream, task) = tunnel(b"early ");
        client.write_all(b"words").await.expect("open");
        client.shutdown().await.expect("open");
        let mut heard = String::new();
        upstream.read_to_string(&mut heard).await.expect("open");
        assert_eq!(heard, "early words");
        let large = "x".repeat(100_000);
        tokio::join!(
            async {
                upstream.write_all(large.as_bytes()).await.expect("still open");
                upstream.shutdown().await.expect("open");
            },
            async {
                let mut heard = String::new();
                client.read_to_string(&mut heard).await.expect("open");
                assert_eq!(heard, large);
            },
        );
        task.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_traffic_in_one_direction_is_none() {
        let (mut client, mut upstream, task) = tunnel(b"");
        for _ in 0..4 {
            tokio::time::sleep(IDLE * 3 / 4).await;
            upstream.write_all(b"tick").await.expect("open");
        }
        assert!(!task.is_finished());
        let mut heard = [0; 16];
        client.read_exact(&mut heard).await.expect("open");
        tokio::time::sleep(IDLE * 5 / 4).await;
        assert!(task.is_finished());
    }
}
