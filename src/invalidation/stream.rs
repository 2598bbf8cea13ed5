//! The durable door: moves what foreign programs add to the stream into the log.

use std::time::Duration;

use super::doors::{self, ENTRIES, Entry};
use super::log::Log;
use super::{Invalidation, Position, to_json};
use crate::kv::bus::Dedicated;
use crate::kv::{Shared, Unavailable, jittered};
use crate::metrics::{Door, RedisPart};

/// How long one question waits at the stream for something to come.
const BLOCK_MS: &[u8] = b"2000";

/// When its answer is overdue.
const OVERDUE: Duration = Duration::from_secs(4);

/// Pause after others took all that came.
const TAKEN: Duration = Duration::from_millis(20);

/// Pause after Redis could not be asked, or did not take what came.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// Waits at the stream on a connection of its own, so that what comes is logged at once and not at the next proof. Runs
/// for ever.
pub(super) async fn listen(state: &Invalidation, log: &Log, shared: &Shared) {
    let mut connection = None;
    shared.found().await;
    loop {
        let outcome = wait_once(state, log, shared, &mut connection).await.map_err(|error| error.to_string());
        let is_well = outcome.is_ok();
        shared.health.tell(RedisPart::Stream, outcome);
        if !is_well {
            connection = None;
            tokio::time::sleep(jittered(RETRY_EVERY)).await;
        }
    }
}

async fn wait_once(
    state: &Invalidation,
    log: &Log,
    shared: &Shared,
    connection: &mut Option<Dedicated>,
) -> Result<(), Unavailable> {
    let open = match connection {
        Some(open) if open.is_home(shared) => open,
        _ => connection.insert(Dedicated::open(shared).await?),
    };
    // From 0: what was logged is gone from the stream, so that whatever is there is still to be done.
    let (most, key) = (ENTRIES.to_string(), shared.keys.door_stream());
    let question = [b"XREAD", b"COUNT", most.as_bytes(), b"BLOCK", BLOCK_MS, b"STREAMS", &key, b"0"];
    let reply = open.command(&question, OVERDUE).await?;
    let entries = reply.items().first().and_then(|stream| stream.items().get(1)).map(doors::entries);
    if let Some(entries) = entries.filter(|entries| !entries.is_empty())
        && !drain(state, log, &entries).await?.1
    {
        // Another pod was faster; or they lie at a server that is none to write to any more.
        tokio::time::sleep(jittered(TAKEN)).await;
    }
    Ok(())
}

/// Logs `entries`, and says where the log stands when none of them is left at the door, and whether this process took any.
/// What cannot be read is dropped: it would stand in the way for ever.
pub(super) async fn drain(state: &Invalidation, log: &Log, entries: &[Entry]) -> Result<(Position, bool), Unavailable> {
    let read: Vec<_> = entries.iter().map(|entry| doors::entry(&entry.fields)).collect();
    let orders: Vec<_> = entries
        .iter()
        .zip(&read)
        .map(|(entry, read)| (entry, read.as_ref().map(|(order, _)| to_json(order)).unwrap_or_default()))
        .collect();
    let (head, taken) = log.drain(&orders).await?;
    let has_taken = taken.contains(&true);
    for ((read, entry), _) in read.iter().zip(entries).zip(taken).filter(|(_, taken)| *taken) {
        match read {
            Ok((_, selectors)) => state.count(selectors, Door::Stream),
            Err(error) => {
                let id = String::from_utf8_lossy(&entry.id);
                tracing::warn!(%id, %error, "an entry of the stream door was dropped: it cannot be read");
            }
        }
    }
    Ok((head, has_taken))
}
