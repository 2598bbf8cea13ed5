//! What Sentinels say of a master (Redis documentation, "High availability with Redis Sentinel").

use std::sync::Arc;
use std::time::Duration;

use super::bus::Dedicated;
use super::follow::{Asked, Parts};
use super::topology::Found;
use super::{Reply, Shared};
use crate::config::{Address, ReadFrom};

/// Longest that a server may take to say whether it is a master.
const ROLE: Duration = Duration::from_millis(500);

/// Asks all of them, and believes whoever knows of the latest failover, if not an earlier one than `epoch`, which is where
/// it is kept; then the server itself.
///
/// # Errors
/// None of them knows the master, or it is none; the cause.
pub(super) async fn find(
    shared: &Arc<Shared>,
    sentinels: &[Address],
    master: &str,
    epoch: &mut u64,
    asked: &mut Asked,
) -> Result<Found, String> {
    let command = |what: &str| -> Parts { ["SENTINEL", what, master].map(|part| part.as_bytes().to_vec()).into() };
    let mut commands = vec![command("GET-MASTER-ADDR-BY-NAME"), command("MASTER")];
    if shared.read_from == ReadFrom::Replica {
        commands.push(command("REPLICAS"));
    }
    let mut cause = "no Sentinel answered".to_owned();
    let mut latest: Option<View> = None;
    for (from, answer) in asked.ask(&shared.to_sentinels, sentinels.to_vec(), &commands).await {
        match answer.map(|replies| View::read(&replies)) {
            Ok(Some(view)) => latest = latest.filter(|known| known.epoch >= view.epoch).or(Some(view)),
            Ok(None) => cause = format!("the Sentinel {from} knows no master called \"{master}\""),
            Err(error) => cause = format!("the Sentinel {from}: {error}"),
        }
    }
    let view = latest.ok_or(cause)?;
    if view.epoch < *epoch {
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
    *epoch = view.epoch;
    Ok(Found { masters: vec![(view.master, view.replicas)], slots: Vec::new() })
}

async fn role(shared: &Shared, server: &Address) -> Result<String, String> {
    let said = async { Dedicated::call(&shared.dialer, server).await?.command(&[b"ROLE"], ROLE).await };
    let said = said.await.map_err(|error| error.to_string())?;
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
        let master = Self {
            master: address(host, port)?,
            epoch: field(master, "config-epoch")?.parse().ok()?,
            replicas: rest.iter().flat_map(Reply::items).filter_map(replica).collect(),
        };
        Some(master)
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
