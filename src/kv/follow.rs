//! Finding out which servers Redis is: from the Sentinels, or from the servers of a Cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::bus::Dedicated;
use super::dial::Dialer;
use super::{Reply, Shared, Unavailable, cluster, jittered, sentinel};
use crate::config::{Address, Servers};

/// Pause between two looks while all is well.
const EVERY: Duration = Duration::from_secs(1);

/// And while a server is in trouble: another may take its place at any moment.
const IN_TROUBLE: Duration = Duration::from_millis(250);

/// Least pause, however often the map is doubted.
const LEAST: Duration = Duration::from_millis(50);

/// Longest that one who is asked has for his answer, the opening of the connection included.
const ANSWER: Duration = Duration::from_millis(500);

/// How long others are waited for once one has answered.
const OTHERS: Duration = Duration::from_millis(50);

/// Least time between two lines that say why no server is found, while the cause changes.
const SAID_AGAIN: Duration = Duration::from_secs(10);

/// Keeps the map of servers right. Runs for ever, unless there is one server only, of which all is known.
pub async fn follow(shared: Arc<Shared>) {
    let mut asked = Asked::default();
    let mut heard = sentinel::Latest::default();
    // Why no server is found, and when that was said.
    let mut lost: Option<(String, Instant)> = None;
    loop {
        let found = match &shared.topology.servers {
            Servers::Standalone(_) => return,
            Servers::Cluster { seeds } => cluster::find(&shared, seeds, &mut asked).await,
            Servers::Sentinel { sentinels, master } => {
                sentinel::find(&shared, sentinels, master, &mut heard, &mut asked).await
            }
        };
        match found {
            Ok(found) => {
                shared.topology.adopt(&found);
                lost = None;
            }
            Err(cause) => {
                if lost.as_ref().is_none_or(|(said, at)| *said != cause && at.elapsed() >= SAID_AGAIN) {
                    tracing::warn!(cause, "Redis' servers cannot be found: what is known of them counts on");
                    lost = Some((cause, Instant::now()));
                }
            }
        }
        let is_calm = lost.is_none() && !shared.topology.is_troubled();
        let next = Instant::now() + jittered(if is_calm { EVERY } else { IN_TROUBLE });
        sleep(jittered(LEAST)).await;
        tokio::select! {
            () = sleep_until(next) => {}
            () = shared.topology.doubted() => {}
        }
    }
}

/// The address in a redirection: `host:port`, at the host of who said it if none is named.
pub(super) fn address(text: &str, said_by: &Address) -> Address {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let port = port.parse().unwrap_or(0);
    match (host, said_by) {
        ("", Address::Tcp { host, .. }) => Address::Tcp { host: host.clone(), port },
        _ => Address::Tcp { host: host.to_owned(), port },
    }
}

/// A command's parts.
pub(super) type Parts = Vec<Vec<u8>>;

/// Connections to those who are asked, kept from one look to the next.
#[derive(Default)]
pub(super) struct Asked(HashMap<Address, Dedicated>);

impl Asked {
    /// What each of `whom` answers to `commands`, or why it does not, as far as they answer within a moment of the first; by
    /// address.
    pub(super) async fn ask(
        &mut self,
        shared: &Arc<Shared>,
        dialer: &Dialer,
        whom: Vec<Address>,
        commands: &[Parts],
    ) -> Vec<(Address, Result<Vec<Reply>, String>)> {
        self.0.retain(|address, _| whom.contains(address));
        let mut questions = JoinSet::new();
        for address in whom {
            let (shared, dialer, commands) = (Arc::clone(shared), dialer.clone(), commands.to_vec());
            let open = self.0.remove(&address);
            questions.spawn(async move {
                let answer = timeout(ANSWER, question(&shared, &dialer, &address, open, &commands)).await;
                (address, answer.unwrap_or_else(|_| Err(Unavailable::Timeout.to_string())))
            });
        }
        let mut answers = Vec::new();
        let mut until = Instant::now() + ANSWER + OTHERS;
        while let Ok(Some(joined)) = timeout_at(until, questions.join_next()).await {
            let Ok((address, answer)) = joined else { continue };
            let answer = answer.map(|(open, replies)| {
                self.0.insert(address.clone(), open);
                until = until.min(Instant::now() + OTHERS);
                replies
            });
            answers.push((address, answer));
        }
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        answers
    }
}

async fn question(
    shared: &Shared,
    dialer: &Dialer,
    address: &Address,
    open: Option<Dedicated>,
    commands: &[Parts],
) -> Result<(Dedicated, Vec<Reply>), String> {
    let mut open = match open {
        Some(open) => open,
        None => call(shared, dialer, address).await?,
    };
    let mut replies = Vec::new();
    for command in commands {
        replies.push(said(&mut open, command).await?);
    }
    Ok((open, replies))
}

/// A connection to one who is asked; or why there is none.
pub(super) async fn call(shared: &Shared, dialer: &Dialer, address: &Address) -> Result<Dedicated, String> {
    Dedicated::call(dialer, address).await.map_err(|none| {
        shared.metrics.redis_failed(none.kind());
        none.to_string()
    })
}

/// What it answers; or why it does not.
pub(super) async fn said(open: &mut Dedicated, command: &Parts) -> Result<Reply, String> {
    let parts: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
    open.command(&parts, ANSWER).await.map_err(|error| match error {
        Unavailable::Refused(kind) => format!("{kind} to {}", String::from_utf8_lossy(&command.join(&b' '))),
        error => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_their_host_or_mean_their_own() {
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
        let own = tcp("10.0.0.1", 7000);
        assert_eq!(address("10.0.0.2:7001", &own), tcp("10.0.0.2", 7001));
        assert_eq!(address(":7001", &own), tcp("10.0.0.1", 7001));
        assert_eq!(address("::1:7001", &own), tcp("::1", 7001));
    }
}
