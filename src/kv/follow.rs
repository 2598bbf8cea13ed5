//! Finding out which servers Redis is: from the Sentinels, or from the servers of a Cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::bus::Dedicated;
use super::dial::Dialer;
use super::{Reply, Shared, Unavailable, cluster, jittered, sentinel};
use crate::config::{Address, Servers};
use crate::metrics::RedisPart;

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

/// Keeps the map of servers right. Runs for ever, unless there is one server only, of which all is known.
pub async fn follow(shared: Arc<Shared>) {
    let mut asked = Asked::default();
    let mut heard = sentinel::Latest::default();
    loop {
        let found = match &shared.topology.servers {
            Servers::Standalone(_) => return,
            Servers::Cluster { seeds } => cluster::find(&shared, seeds, &mut asked).await,
            Servers::Sentinel { sentinels, master } => {
                sentinel::find(&shared, sentinels, master, &mut heard, &mut asked).await
            }
        };
        let outcome = found.map(|found| shared.topology.adopt(&found));
        let is_calm = outcome.is_ok() && !shared.topology.is_troubled();
        shared.health.tell(RedisPart::Topology, outcome);
        let next = Instant::now() + jittered(if is_calm { EVERY } else { IN_TROUBLE });
        sleep(jittered(LEAST)).await;
        tokio::select! {
            () = sleep_until(next) => {}
            () = shared.topology.doubted() => {}
        }
    }
}

/// The address in a redirection: `host:port`, at the host of who said it if none is named.
/// `None` where there is nobody.
pub(super) fn address(text: &str, said_by: &Address) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some(match (host, said_by) {
        ("", Address::Tcp { host, .. }) => Address::Tcp { host: host.clone(), port },
        _ => Address::Tcp { host: host.to_owned(), port },
    })
}

/// A command's parts.
pub(super) type Parts = Vec<Vec<u8>>;

/// The connection, and what was said on it; or why nothing was.
type Answered = Result<(Dedicated, Vec<Reply>), String>;

/// Looks after which others are asked.
const SAME: u32 = 30;

/// Who is asked, and connections to them, kept from one look to the next.
#[derive(Default)]
pub(super) struct Asked {
    open: HashMap<Address, Dedicated>,
    /// Who has not answered yet: what they say counts in the next look.
    waiting: HashSet<Address>,
    questions: JoinSet<(Address, Answered)>,
    salt: RandomState,
    looks: u32,
}

impl Asked {
    /// By which those are chosen who are asked in this look: seldom another.
    pub(super) fn salt(&mut self) -> &RandomState {
        self.looks += 1;
        if self.looks.is_multiple_of(SAME) {
            self.salt = RandomState::new();
        }
        &self.salt
    }

    /// What each of `whom` answers to `commands`, or why it does not, as far as they answer within a moment of the first; by
    /// address.
    pub(super) async fn ask(
        &mut self,
        shared: &Arc<Shared>,
        dialer: &Dialer,
        whom: Vec<Address>,
        commands: &[Parts],
    ) -> Vec<(Address, Result<Vec<Reply>, String>)> {
        self.open.retain(|address, _| whom.contains(address));
        for address in whom {
            if !self.waiting.insert(address.clone()) {
                continue;
            }
            let (shared, dialer, commands) = (Arc::clone(shared), dialer.clone(), commands.to_vec());
            let open = self.open.remove(&address);
            self.questions.spawn(async move {
                let answer = timeout(ANSWER, question(&shared, &dialer, &address, open, &commands)).await;
                (address, answer.unwrap_or_else(|_| Err(Unavailable::Timeout.to_string())))
            });
        }
        let mut answers = Vec::new();
        let mut until = Instant::now() + ANSWER + OTHERS;
        while let Ok(Some(joined)) = timeout_at(until, self.questions.join_next()).await {
            let Ok((address, answer)) = joined else { continue };
            self.waiting.remove(&address);
            let answer = answer.map(|(open, replies)| {
                self.open.insert(address.clone(), open);
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
) -> Answered {
    let mut open = match open {
        Some(open) => open,
        None => call(shared, dialer, address).await?,
    };
    let mut replies = Vec::new();
    for command in commands {
        replies.push(said(&mut open, command).await?);
        // Who knows nothing is asked nothing more.
        if replies.last() == Some(&Reply::Nil) {
            break;
        }
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
        let tcp = |host: &str, port| Some(Address::Tcp { host: host.to_owned(), port });
        let own = tcp("10.0.0.1", 7000).unwrap();
        assert_eq!(address("10.0.0.2:7001", &own), tcp("10.0.0.2", 7001));
        assert_eq!(address(":7001", &own), tcp("10.0.0.1", 7001));
        assert_eq!(address("::1:7001", &own), tcp("::1", 7001));
        assert_eq!(address(":0", &own), None);
    }
}
