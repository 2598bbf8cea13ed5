//! What a Cluster's servers say of it: CLUSTER NODES.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::Shared;
use super::follow::{Asked, address};
use super::keys::SLOTS;
use super::topology::Found;
use crate::config::{Address, ReadFrom};

/// Servers that are asked at once. One that lags is outvoted by whoever knows a later epoch.
const ASKED: usize = 4;

/// Asks some of the servers that are known, and one of the seeds; where none is of use, all of those.
///
/// # Errors
/// None of them says who has what; the cause.
pub(super) async fn find(shared: &Arc<Shared>, seeds: &[Address], asked: &mut Asked) -> Result<Found, String> {
    let whom = chosen(shared, seeds, asked.salt());
    let command = [b"CLUSTER".to_vec(), b"NODES".to_vec()].to_vec();
    let answers = asked.ask(shared, &shared.dialer, whom, &[command]).await;
    let mut causes = Vec::new();
    let mut views = Vec::new();
    for (from, answer) in answers {
        match answer {
            Ok(replies) => {
                let text = replies[0].bytes().and_then(|text| std::str::from_utf8(text).ok());
                views.extend(text.map(|text| View::read(text, &from, shared.is_encrypted)));
            }
            Err(error) => causes.push(format!("{from}: {error}")),
        }
    }
    let found = merged(&views, shared.read_from == ReadFrom::Replica);
    match (found.masters.is_empty(), causes.is_empty()) {
        (false, _) => Ok(found),
        (true, false) => Err(causes.join("; ")),
        (true, true) if views.is_empty() => Err("none of them answered".to_owned()),
        (true, true) => Err("no server of the Cluster has a slot".to_owned()),
    }
}

/// Those whose breaker is closed first; by `salt` the same for a while, so that connections to them are kept, and others in
/// other processes.
fn chosen(shared: &Shared, seeds: &[Address], salt: &RandomState) -> Vec<Address> {
    let map = shared.topology.map();
    let mut known: Vec<_> =
        map.nodes().map(|node| (node.breaker.is_open(), salt.hash_one(&node.address), &node.address)).collect();
    known.sort();
    let seed = &seeds[salt.hash_one("seed") as usize % seeds.len()];
    let mut chosen: Vec<_> =
        known.iter().map(|(_, _, address)| *address).take(ASKED - 1).chain([seed]).cloned().collect();
    // One of them may be the only one that is there.
    if known.iter().all(|(is_open, ..)| *is_open) {
        chosen.extend_from_slice(seeds);
    }
    let mut seen = Vec::new();
    chosen.retain(|address| {
        !seen.contains(address) && {
            seen.push(address.clone());
            true
        }
    });
    chosen
}

/// What one server says.
#[derive(Debug, Default)]
struct View {
    masters: Vec<Claim>,
    /// Replicas that are up, each with its master's id.
    replicas: Vec<(String, Address)>,
    /// See [`Found::names`].
    names: HashMap<Address, Address>,
}

/// A master, and what it has.
#[derive(Debug)]
struct Claim {
    id: String,
    address: Address,
    /// The latest epoch that was given out wins a slot that two claim (Redis Cluster specification, "Configuration
    /// handling"); of equal ones, what a server says of itself.
    rank: (u64, bool),
    slots: Vec<(u16, u16)>,
}

impl View {
    /// A line for each server: `id ip:port@busport[,hostname] flags master ping pong epoch link slot slot-slot ...`.
    /// With `prefers_names` servers are called by their names, of which certificates speak.
    fn read(text: &str, from: &Address, prefers_names: bool) -> Self {
        let mut view = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [id, place, flags, master, _, _, epoch, _, slots @ ..] = &fields[..] else { continue };
            let flags: Vec<&str> = flags.split(',').collect();
            // Nobody knows where it is: what it has, nobody has.
            let Some((by_number, by_name)) = places_of(place, from) else { continue };
            let (place, other) = match by_name {
                Some(name) if prefers_names => (name, Some(by_number)),
                name => (by_number, name),
            };
            view.names.extend(other.map(|other| (other, place.clone())));
            if flags.contains(&"master") {
                let slots = slots.iter().filter_map(|range| range_of(range)).collect();
                let (id, epoch) = ((*id).to_owned(), epoch.parse().unwrap_or(0));
                let is_own = flags.contains(&"myself");
                view.masters.push(Claim { id, address: place, rank: (epoch, is_own), slots });
            } else if flags.contains(&"slave") && !flags.iter().any(|flag| ["fail", "handshake"].contains(flag)) {
                view.replicas.push(((*master).to_owned(), place));
            }
        }
        view
    }
}

/// `ip:port@busport,hostname,...`: by IP address, and by name if there is one.
fn places_of(text: &str, from: &Address) -> Option<(Address, Option<Address>)> {
    let (place, rest) = text.split_once(',').unwrap_or((text, ""));
    let place = address(place.split('@').next().unwrap_or(place), from)?;
    let name = rest.split(',').next().filter(|name| !name.is_empty() && !name.contains('='));
    let named = match (&place, name) {
        (Address::Tcp { port, .. }, Some(name)) => Some(Address::Tcp { host: name.to_owned(), port: *port }),
        _ => None,
    };
    Some((place, named))
}

/// `7` or `0-5460`; what stands in brackets is on its way elsewhere.
fn range_of(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && usize::from(last) < SLOTS).then_some((first, last))
}

/// Each slot's owner by the latest epoch that any view knows of, and only masters that own one.
fn merged(views: &[View], with_replicas: bool) -> Found {
    let mut owners: Vec<Option<&Claim>> = vec![None; SLOTS];
    for claim in views.iter().flat_map(|view| &view.masters) {
        for (first, last) in &claim.slots {
            for owner in &mut owners[usize::from(*first)..=usize::from(*last)] {
                if owner.is_none_or(|owner| owner.rank < claim.rank) {
                    *owner = Some(claim);
                }
            }
        }
    }
    let mut owning: Vec<&Claim> = owners.iter().flatten().copied().collect();
    owning.dedup_by(|a, b| a.address == b.address);
    owning.sort_by(|a, b| a.address.cmp(&b.address));
    owning.dedup_by(|a, b| a.address == b.address);
    let slots = owners.iter().map(|owner| {
        let owner = owner.as_ref()?;
        owning.binary_search_by(|one| one.address.cmp(&owner.address)).ok()
    });
    let slots = if owning.is_empty() { Vec::new() } else { slots.collect() };
    let masters = owning.iter().map(|master| {
        let copies = views.iter().flat_map(|view| &view.replicas).filter(|(of, _)| with_replicas && *of == master.id);
        let mut copies: Vec<Address> = copies.map(|(_, address)| address.clone()).collect();
        copies.sort();
        copies.dedup();
        (master.address.clone(), copies)
    });
    let names = views.iter().flat_map(|view| view.names.clone()).collect();
    Found { masters: masters.collect(), slots, names }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "\
07c3 127.0.0.1:30004@31004,hostname4 slave e7d1 0 1426238317239 4 connected
67ed 127.0.0.1:30002@31002,hostname2 master - 0 1426238316232 2 connected 5461-10922
292f 127.0.0.1:30003@31003,hostname3 master - 0 1426238318243 3 connected 10923-16383
6ec2 127.0.0.1:30005@31005,,tls-port=0,shard-id=69bc slave,fail 67ed 0 1426238316232 5 connected
e7d1 :30001@31001,hostname1 myself,master - 0 0 1 connected 0-5459 5460 [5461->-67ed] [9-<-292f]
";

    fn at(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn a_view_says_who_has_what() {
        let seed = at("10.0.0.1", 30001);
        let found = merged(&[View::read(NODES, &seed, false)], true);
        let masters = [
            (at("10.0.0.1", 30001), vec![at("127.0.0.1", 30004)]),
            (at("127.0.0.1", 30002), vec![]),
            (at("127.0.0.1", 30003), vec![]),
        ];
        assert_eq!(found.masters, masters);
        assert_eq!(found.slots.len(), SLOTS);
        assert_eq!([0, 5460, 5461, 16383].map(|slot| found.slots[slot]), [Some(0), Some(0), Some(1), Some(2)]);
        let named = merged(&[View::read(NODES, &seed, true)], false);
        assert_eq!(named.masters[1], (at("hostname2", 30002), vec![]));
        // Redirections may say either.
        assert_eq!(named.names[&at("127.0.0.1", 30002)], at("hostname2", 30002));
        assert_eq!(found.names[&at("hostname2", 30002)], at("127.0.0.1", 30002));
        assert_eq!(found.names.get(&at("127.0.0.1", 30005)), None);
    }

    #[test]
    fn the_later_epoch_has_a_slot_whoever_is_asked_first() {
        let view = |text: &str| View::read(text, &at("h", 1), false);
        let old = "a 1.1.1.1:1@2 master - 0 0 1 connected 0-16383\nb 2.2.2.2:1@2 slave a 0 0 1 connected\n";
        let new = "a 1.1.1.1:1@2 master,fail - 0 0 1 connected\nb 2.2.2.2:1@2 master - 0 0 7 connected 0-16383\n";
        for views in [[old, new], [new, old]] {
            let found = merged(&views.map(view), true);
            assert_eq!(found.masters, [(at("2.2.2.2", 1), vec![])]);
        }
        assert_eq!(merged(&[view("a 1.1.1.1:1@2 myself,master - 0 0 0 connected\n")], true), Found::default());
        // Who is nowhere has nothing; and of equal epochs what a server says of itself counts.
        let gone =
            view("a :0@0 master,noaddr - 0 0 1 disconnected 0-99\nb 2.2.2.2:1@2 master - 0 0 1 connected 100-16383\n");
        let found = merged(&[gone], true);
        assert_eq!((found.masters.len(), found.slots[99], found.slots[100]), (1, None, Some(0)));
        let other =
            "a 1.1.1.1:1@2 master - 0 0 1 connected 0-16383\nb 2.2.2.2:1@2 myself,master - 0 0 1 connected 0-16383\n";
        let own = "a 1.1.1.1:1@2 master - 0 0 1 connected 0-16383\nb 2.2.2.2:1@2 master - 0 0 1 connected\n";
        assert_eq!(merged(&[own, other].map(view), true).masters, [(at("2.2.2.2", 1), vec![])]);
        let half = merged(&[view("a 1.1.1.1:1@2 master - 0 0 1 connected 0-99\n")], true);
        assert_eq!((half.slots[99], half.slots[100]), (Some(0), None));
    }
}
