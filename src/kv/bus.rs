//! Connections that are nobody's to share: the subscription, the wait on a stream, and the breaker's probe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use deadpool_redis::redis::aio::SendError;
use deadpool_redis::redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, Value};
use tokio::sync::mpsc;

use super::dial::{NoConnection, OPENING, Wire};
use super::reply::{Fault, Reply};
use super::{Shared, Unavailable, jittered};
use crate::clock::Stopwatch;
use crate::config::Resp;

/// Messages that may wait for being read; one more, and the subscription counts as lost: the log has them all.
pub const PENDING_MESSAGES: usize = 4096;

/// Pause between probes while the breaker is open.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// Longest that one probe waits.
const PROBE_WAIT: Duration = Duration::from_millis(500);

/// A request may need two trips: a Redis that takes longer than this share of the deadline for one is of no use to it.
const TRIPS: u32 = 2;

/// A connection of its own, on the runtime that opened it.
pub struct Dedicated(pub(super) Wire);

impl Dedicated {
    /// Opens one.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn open(shared: &Shared) -> Result<Self, Unavailable> {
        Self::connect(shared, None).await.map_err(Into::into)
    }

    /// Sends `parts` as one command and waits up to `wait` for its answer. After [`Unavailable::Timeout`] the connection
    /// is of no use.
    ///
    /// # Errors
    /// No answer, or an error.
    pub async fn command(&mut self, parts: &[&[u8]], wait: Duration) -> Result<Reply, Unavailable> {
        let mut command = Cmd::new();
        for part in parts {
            command.arg(*part);
        }
        match tokio::time::timeout(wait, self.0.connection.send_packed_command(&command)).await {
            Ok(Ok(Value::ServerError(error))) => Err(Unavailable::Refused(error.code().to_owned())),
            Ok(Ok(value)) => Ok(value.into()),
            Ok(Err(error)) => Err(Fault::from(error).into()),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    async fn connect(shared: &Shared, inbox: Option<Inbox>) -> Result<Self, Fault> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (config, protocol) = match inbox {
            Some(inbox) => (config.set_push_sender(move |push| inbox.take(push)), Some(Resp::Resp3)),
            // In RESP3 the answer to XREAD has another shape.
            None => (config, Some(Resp::Resp2)),
        };
        match shared.dialer.open(&shared.server, config, protocol).await {
            Ok(wire) => Ok(Self(wire)),
            Err(none) => {
                if matches!(none, NoConnection::NobodyListens | NoConnection::Tls(_)) {
                    shared.breaker.refused(&none.to_string());
                }
                Err(none.into())
            }
        }
    }
}

/// One message; an empty one, that the tracked key may have been changed.
#[derive(Debug, Clone)]
pub struct Message {
    /// The channel that it came on.
    pub channel: Bytes,
    /// What it says.
    pub payload: Bytes,
}

/// Takes pushes off the connection, which must not wait.
struct Inbox {
    messages: mpsc::Sender<Option<Message>>,
    overflowed: Arc<AtomicBool>,
    /// Whether a change of the tracked key waits to be read.
    changed: Arc<AtomicBool>,
}

impl Inbox {
    fn take(&self, push: PushInfo) -> Result<(), SendError> {
        let message = match push.kind {
            PushKind::Message => match <[Value; 2]>::try_from(push.data) {
                Ok([Value::BulkString(channel), Value::BulkString(payload)]) => {
                    Some(Message { channel: channel.into(), payload: payload.into() })
                }
                _ => return Ok(()),
            },
            // Nothing but what is tracked is told of, or that all keys of some database are gone. One that waits to be
            // read stands for all that come meanwhile.
            PushKind::Invalidate => match self.changed.swap(true, Ordering::AcqRel) {
                false => Some(Message { channel: Bytes::new(), payload: Bytes::new() }),
                true => return Ok(()),
            },
            PushKind::Disconnection => None,
            _ => return Ok(()),
        };
        // Behind a hole nothing more is taken: what was read before it stays without one.
        if !self.overflowed.load(Ordering::Acquire) && self.messages.try_send(message).is_err() {
            self.overflowed.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// A subscription to channels, in the order in which Redis sent the messages, without a hole until it ends.
pub struct Subscription {
    connection: Dedicated,
    messages: mpsc::Receiver<Option<Message>>,
    overflowed: Arc<AtomicBool>,
    changed: Arc<AtomicBool>,
}

impl Subscription {
    /// Subscribes to `channels`, and to the changes of a `tracked` key; when this returns, whatever is published comes.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn open(shared: &Shared, channels: &[String], tracked: Option<&[u8]>) -> Result<Self, Unavailable> {
        let (sender, messages) = mpsc::channel(PENDING_MESSAGES);
        let overflowed = Arc::new(AtomicBool::new(false));
        let changed = Arc::new(AtomicBool::new(false));
        let inbox = Inbox { messages: sender, overflowed: Arc::clone(&overflowed), changed: Arc::clone(&changed) };
        let mut connection = Dedicated::connect(shared, Some(inbox)).await?;
        for channel in channels {
            connection.command(&[b"SUBSCRIBE", channel.as_bytes()], OPENING).await?;
        }
        if let Some(key) = tracked {
            connection.command(&[b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", key], OPENING).await?;
        }
        Ok(Self { connection, messages, overflowed, changed })
    }

    /// The next message; `None` once the subscription has ended or missed one.
    pub async fn next(&mut self) -> Option<Message> {
        let message = match self.overflowed.load(Ordering::Acquire) {
            true => self.messages.try_recv().ok().flatten(),
            false => self.messages.recv().await.flatten(),
        };
        if message.as_ref().is_some_and(|message| message.channel.is_empty()) {
            // Before it is acted on: what changes from now on is told of anew.
            self.changed.store(false, Ordering::Release);
        }
        message
    }

    /// Whether the connection still answers within `wait`: a stalled one looks like silence.
    pub async fn is_alive(&mut self, wait: Duration) -> bool {
        self.connection.command(&[b"PING"], wait).await.is_ok()
    }
}

/// Closes the breaker, whenever it is open, once Redis answers as fast as requests need it. Runs for ever.
pub async fn probe(shared: Arc<Shared>) {
    loop {
        shared.breaker.opened().await;
        let mut connection = None;
        while shared.breaker.is_open() {
            tokio::time::sleep(jittered(PROBE_EVERY)).await;
            // A connection that answered late is kept, so that its warming up does not count twice.
            let mut probing = match connection.take() {
                Some(open) => open,
                None => match Dedicated::open(&shared).await {
                    Ok(open) => open,
                    Err(_) => continue,
                },
            };
            let watch = Stopwatch::start();
            // GET, not PING: a Redis that is loading, busy or without its master answers some commands, but not this.
            if probing.command(&[b"GET", &shared.keys.probe()], PROBE_WAIT).await.is_ok() {
                if watch.elapsed() <= shared.deadline / TRIPS {
                    shared.breaker.close();
                }
                connection = Some(probing);
            }
        }
    }
}
