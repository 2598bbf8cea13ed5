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

/// Keeps the map of servers right. Runs for ever, unless there is one server only, of which all is known.
pub async fn follow(shared: Arc<Shared>) {
    let mut asked = Asked::default();
    let mut epoch = 0;
    let mut is_lost = false;
    loop {
        let found = match &shared.topology.servers {
            Servers::Standalone(_) => return,
            Servers::Cluster { seeds } => cluster::find(&shared, seeds, &mut asked).await,
            Servers::Sentinel { sentinels, master } => {
                sentinel::find(&shared, sentinels, master, &mut epoch, &mut asked).await
            }
        };
        match found {
            Ok(found) => {
                shared.topology.adopt(&found);
                is_lost = false;
            }
            Err(cause) => {
                if !is_lost {
                    tracing::warn!(cause, "Redis' servers cannot be found: what is known of them counts on");
                }
                is_lost = true;
            }
        }
        let is_calm = !is_lost && !shared.topology.is_troubled();
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
    /// What each of `whom` answers to `commands`, as far as they answer within a moment of the first.
    pub(super) async fn ask(
        &mut self,
        dialer: &Dialer,
        whom: Vec<Address>,
        commands: &[Parts],
    ) -> Vec<(Address, Result<Vec<Reply>, Unavailable>)> {
        self.0.retain(|address, _| whom.contains(address));
        let mut questions = JoinSet::new();
        for address in whom {
            let (dialer, commands, open) = (dialer.clone(), commands.to_vec(), self.0.remove(&address));
            questions.spawn(async move {
                let answer = timeout(ANSWER, question(&dialer, &address, open, &commands)).await;
                (address, answer.unwrap_or(Err(Unavailable::Timeout)))
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
        answers
    }
}

async fn question(
    dialer: &Dialer,
    address: &Address,
    open: Option<Dedicated>,
    commands: &[Parts],
) -> Result<(Dedicated, Vec<Reply>), Unavailable> {
    let mut open = match open {
        Some(open) => open,
        None => Dedicated::call(dialer, address).await?,
    };
    let mut replies = Vec::new();
    for command in commands {
        let parts: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        replies.push(open.command(&parts, ANSWER).await?);
    }
    Ok((open, replies))
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
