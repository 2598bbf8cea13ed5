//! What Sentinels say of a master (Redis documentation, "High availability with Redis Sentinel").

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::follow::{Asked, Parts, call, said};
use super::topology::Found;
use super::{Reply, Shared};
use crate::config::{Address, ReadFrom};

/// Sentinels that were set up anew know of no failover: most of them must have said so for so long.
const SET_UP_ANEW: Duration = Duration::from_secs(5);

/// The latest failover that was heard of.
#[derive(Default)]
pub(super) struct Latest {
    epoch: u64,
    /// Since when most of the Sentinels have known of earlier ones only.
    forgotten: Option<Instant>,
}

impl Latest {
    /// Whether what is known since this failover is to be believed, by so many of all Sentinels.
    fn believes(&mut self, epoch: u64, answered: usize, all: usize) -> bool {
        if epoch < self.epoch && 2 * answered <= all {
            self.forgotten = None;
            return false;
        }
        if epoch < self.epoch && self.forgotten.get_or_insert_with(Instant::now).elapsed() < SET_UP_ANEW {
            return false;
        }
        true
    }

    fn note(&mut self, epoch: u64) {
        *self = Self { epoch, forgotten: None };
    }
}

/// Asks all of them, and believes whoever knows of the latest failover, if not an earlier one than was `heard` of; then the
/// server itself.
///
/// # Errors
/// None of them knows the master, or it is none; the cause.
pub(super) async fn find(
    shared: &Arc<Shared>,
    sentinels: &[Address],
    master: &str,
    heard: &mut Latest,
    asked: &mut Asked,
) -> Result<Found, String> {
    let command = |what: &str| -> Parts { ["SENTINEL", what, master].map(|part| part.as_bytes().to_vec()).into() };
    let mut commands = vec![command("GET-MASTER-ADDR-BY-NAME"), command("MASTER")];
    if shared.read_from == ReadFrom::Replica {
        commands.push(command("REPLICAS"));
    }
    let mut causes = Vec::new();
    let mut latest: Option<View> = None;
    let mut answered = 0;
    for (from, answer) in asked.ask(shared, &shared.to_sentinels, sentinels.to_vec(), &commands).await {
        match answer.map(|replies| View::read(&replies)) {
            Ok(Some(view)) => {
                answered += 1;
                latest = latest.filter(|known| known.epoch >= view.epoch).or(Some(view));
            }
            Ok(None) => causes.push(format!("the Sentinel {from} knows no master called \"{master}\"")),
            Err(error) => causes.push(format!("the Sentinel {from}: {error}")),
        }
    }
    let Some(view) = latest else {
        return Err(if causes.is_empty() { "no Sentinel answered".to_owned() } else { causes.join("; ") });
    };
    if !heard.believes(view.epoch, answered, sentinels.len()) {
        return Err("the Sentinels that answer know of an earlier failover than those that answered before".to_owned());
    }
    let is_new = shared.topology.map().masters().first().is_none_or(|known| known.node.address != view.master);
    if is_new {
        // A Sentinel may be late: a server that says itself that it is a replica is none to write to.
        let role = role(shared, &view.master).await.map_err(|error| format!("{}: {error}", view.master))?;
        if role != "master" {
            return Err(format!("{} is to be the master, and says that it is a {role}", view.master));
        }
    }
    heard.note(view.epoch);
    Ok(Found { masters: vec![(view.master, view.replicas)], ..Found::default() })
}

async fn role(shared: &Shared, server: &Address) -> Result<String, String> {
    let mut open = call(shared, &shared.dialer, server).await?;
    let said = said(&mut open, &vec![b"ROLE".to_vec()]).await?;
    let role = said.items().first().and_then(Reply::bytes).ok_or("it does not say what it is")?;
    Ok(String::from_utf8_lossy(role).into_owned())
}

/// What one Sentinel says.
struct View {
    master: Address,
    /// Of the failover by which it became that.
    epoch: u64,
    replicas: Vec<Address>,
}

impl View {
    fn read(replies: &[Reply]) -> Option<Self> {
        let [place, master, rest @ ..] = replies else { return None };
        let [host, port] = place.items() else { return None };
        let (epoch, mut replicas): (_, Vec<_>) = (
            field(master, "config-epoch")?.parse().ok()?,
            rest.iter().flat_map(Reply::items).filter_map(replica).collect(),
        );
        // Each Sentinel has them in an order of its own.
        replicas.sort();
        replicas.dedup();
        Some(Self { master: address(host, port)?, epoch, replicas })
    }
}

/// A replica that is up, and follows its master.
fn replica(said: &Reply) -> Option<Address> {
    let is_down = |flags: &str| flags.split(',').any(|flag| ["s_down", "o_down", "disconnected"].contains(&flag));
    let is_up = !is_down(&field(said, "flags")?) && field(said, "master-link-status")? == "ok";
    let value = |name| field(said, name).map(|text| Reply::Bytes(text.into()));
    is_up.then_some(address(&value("ip")?, &value("port")?)?)
}

fn address(host: &Reply, port: &Reply) -> Option<Address> {
    let host = String::from_utf8(host.bytes()?.to_vec()).ok()?;
    Some(Address::Tcp { host, port: u16::try_from(port.number()?).ok()? })
}

/// A value of a list of names, each in front of its value.
fn field(said: &Reply, name: &str) -> Option<String> {
    let (pairs, _) = said.items().as_chunks::<2>();
    let value = pairs.iter().find_map(|[key, value]| (&key.bytes()?[..] == name.as_bytes()).then(|| value.bytes()))?;
    String::from_utf8(value?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_earlier_failover_is_believed_of_most_who_go_on_saying_so() {
        let mut heard = Latest::default();
        heard.note(7);
        assert!(heard.believes(7, 1, 3) && heard.believes(8, 1, 3));
        // Two of three that do not know yet what the third has done.
        assert!(!heard.believes(6, 2, 3));
        tokio::time::advance(SET_UP_ANEW / 2).await;
        assert!(!heard.believes(6, 2, 3));
        // One alone says nothing.
        assert!(!heard.believes(6, 1, 3));
        tokio::time::advance(SET_UP_ANEW).await;
        assert!(!heard.believes(0, 3, 3));
        tokio::time::advance(SET_UP_ANEW).await;
        assert!(!heard.believes(0, 1, 3));
        assert!(!heard.believes(0, 3, 3));
        tokio::time::advance(SET_UP_ANEW).await;
        assert!(heard.believes(0, 3, 3));
    }
}
