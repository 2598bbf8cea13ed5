//! Connections that are nobody's to share: the subscription, the wait on a stream, and the breaker's probe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use deadpool_redis::redis::aio::SendError;
use deadpool_redis::redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::dial::{Dialer, NoConnection, OPENING, Wire};
use super::reply::{self, Fault, Reply, UNSERVED};
use super::topology::Node;
use super::{Shared, Unavailable, jittered};
use crate::clock::Stopwatch;
use crate::config::{Address, Resp};

/// Messages that may wait for being read; one more, and the subscription counts as lost: the log has them all.
pub const PENDING_MESSAGES: usize = 4096;

/// Pause between probes while the breaker is open.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// Longest that one probe waits.
const PROBE_WAIT: Duration = Duration::from_millis(500);

/// Most requests need up to three answers, for limits, look-up and lease: a server that takes longer than this share of the
/// deadline for one is of no use to them.
const TRIPS: u32 = 3;

/// A connection of its own, on the runtime that opened it.
pub struct Dedicated {
    pub(super) wire: Wire,
    /// The number of the node that it leads to, if that is known.
    node: Option<u64>,
}

impl Dedicated {
    /// Opens one to the server that has the log.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn open(shared: &Shared) -> Result<Self, Unavailable> {
        let home = shared.home().ok_or(Unavailable::NotSent)?;
        Self::to(shared, &home).await
    }

    /// Whether it leads to the server that has the log now.
    pub fn is_home(&self, shared: &Shared) -> bool {
        shared.home().is_some_and(|home| Some(home.id) == self.node)
    }

    /// Opens one to whoever listens at `address`, of whom nothing more is known.
    pub(super) async fn call(dialer: &Dialer, address: &Address) -> Result<Self, NoConnection> {
        Self::connect(dialer, address, None).await
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
        match tokio::time::timeout(wait, self.wire.connection.send_packed_command(&command)).await {
            Ok(answer) => Ok(reply::read(answer)?),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    /// Opens one to this server.
    pub(super) async fn to(shared: &Shared, node: &Node) -> Result<Self, Unavailable> {
        Self::subscriber(shared, node, None).await
    }

    async fn subscriber(shared: &Shared, node: &Node, inbox: Option<Inbox>) -> Result<Self, Unavailable> {
        let open = Self::connect(&shared.dialer, &node.address, inbox).await;
        open.map(|open| Self { node: Some(node.id), ..open }).map_err(|none| {
            if matches!(none, NoConnection::NobodyListens | NoConnection::Tls(_)) {
                node.breaker.refused(&none.to_string());
            }
            shared.not_opened(&none);
            Fault::from(none).into()
        })
    }

    async fn connect(dialer: &Dialer, address: &Address, inbox: Option<Inbox>) -> Result<Self, NoConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (config, protocol) = match inbox {
            Some(inbox) => (config.set_push_sender(move |push| inbox.take(push)), Some(Resp::Resp3)),
            // In RESP3 the answer to XREAD has another shape.
            None => (config, Some(Resp::Resp2)),
        };
        dialer.open(address, config, protocol, false).await.map(|wire| Self { wire, node: None })
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
///
/// It is with the server that has the log, and ends when another is known to have it. In a Cluster a message published at any
/// server reaches all of them; but only there does it surely come behind the records that were logged before it. Between
/// the log's going elsewhere and this process' knowing it, an order at the PUBLISH door may be taken for an equal one that
/// was logged just before: that door acknowledges nothing.
pub struct Subscription {
    connection: Dedicated,
    shared: Arc<Shared>,
    /// Tells of another map of servers.
    moved: watch::Receiver<()>,
    messages: mpsc::Receiver<Option<Message>>,
    overflowed: Arc<AtomicBool>,
    changed: Arc<AtomicBool>,
}

impl Subscription {
    /// Subscribes to `channels`, and to the changes of a `tracked` key; when this returns, whatever is published comes.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn open(shared: &Arc<Shared>, channels: &[String], tracked: Option<&[u8]>) -> Result<Self, Unavailable> {
        let moved = shared.topology.changes();
        let home = shared.home().ok_or(Unavailable::NotSent)?;
        let (sender, messages) = mpsc::channel(PENDING_MESSAGES);
        let overflowed = Arc::new(AtomicBool::new(false));
        let changed = Arc::new(AtomicBool::new(false));
        let inbox = Inbox { messages: sender, overflowed: Arc::clone(&overflowed), changed: Arc::clone(&changed) };
        let mut connection = Dedicated::subscriber(shared, &home, Some(inbox)).await?;
        for channel in channels {
            connection.command(&[b"SUBSCRIBE", channel.as_bytes()], OPENING).await?;
        }
        if let Some(key) = tracked {
            connection.command(&[b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", key], OPENING).await?;
        }
        Ok(Self { connection, shared: Arc::clone(shared), moved, messages, overflowed, changed })
    }

    /// The next message; `None` once the subscription has ended or missed one.
    pub async fn next(&mut self) -> Option<Message> {
        let message = match self.overflowed.load(Ordering::Acquire) {
            true => self.messages.try_recv().ok().flatten(),
            false => loop {
                tokio::select! {
                    biased;
                    Ok(()) = self.moved.changed() => {
                        if !self.is_home() {
                            break None;
                        }
                    }
                    message = self.messages.recv() => break message.flatten(),
                }
            },
        };
        if message.as_ref().is_some_and(|message| message.channel.is_empty()) {
            // Before it is acted on: what changes from now on is told of anew.
            self.changed.store(false, Ordering::Release);
        }
        message
    }

    /// Whether the connection still answers within `wait`: a stalled one looks like silence.
    pub async fn is_alive(&mut self, wait: Duration) -> bool {
        self.is_home() && self.connection.command(&[b"PING"], wait).await.is_ok()
    }

    fn is_home(&self) -> bool {
        self.connection.is_home(&self.shared)
    }
}

/// Closes each server's breaker, whenever it is open, once that answers as fast as requests need it. Runs for ever.
pub async fn probe(shared: Arc<Shared>) {
    let (mut probes, mut changes) = (JoinSet::new(), shared.topology.changes());
    loop {
        for node in shared.topology.known().into_iter().filter(|node| node.breaker.is_open()) {
            if !node.probed.swap(true, Ordering::AcqRel) {
                probes.spawn(probe_one(Arc::clone(&shared), node));
            }
        }
        shared.topology.show();
        shared.health.show();
        tokio::select! {
            () = shared.topology.opened() => shared.topology.doubt(),
            Ok(()) = changes.changed() => {}
            Some(_) = probes.join_next() => {}
        }
    }
}

/// Until its breaker is closed, or it is one of Redis' servers no more.
async fn probe_one(shared: Arc<Shared>, node: Arc<Node>) {
    let mut connection = None;
    while node.breaker.is_open() && shared.topology.known().iter().any(|known| known.id == node.id) {
        tokio::time::sleep(jittered(PROBE_EVERY)).await;
        // A connection that answered late is kept, so that its warming up does not count twice.
        let mut probing = match connection.take() {
            Some(open) => open,
            None => match Dedicated::to(&shared, &node).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        let watch = Stopwatch::start();
        // GET, not PING: a Redis that is loading, busy or without its master answers some commands, but not this.
        let answer = probing.command(&[b"GET", &shared.keys.probe()], PROBE_WAIT).await;
        // In a Cluster another server may have that key, or none: who knows it would answer for his own.
        let is_well = match &answer {
            Ok(_) => true,
            Err(Unavailable::Refused(kind)) => ["MOVED", "ASK", UNSERVED].contains(&kind.as_str()),
            Err(_) => false,
        };
        if is_well {
            if watch.elapsed() <= shared.deadline / TRIPS {
                node.breaker.close();
            }
            connection = Some(probing);
        }
    }
    node.probed.store(false, Ordering::Release);
}
