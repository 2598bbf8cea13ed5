//! What a Cluster's servers say of it: CLUSTER NODES.

use std::collections::HashMap;
use std::sync::Arc;

use super::follow::{Asked, address};
use super::keys::SLOTS;
use super::topology::Found;
use super::{Shared, random};
use crate::config::{Address, ReadFrom};

/// Servers that are asked at once. One that lags is outvoted by whoever knows a later epoch.
const ASKED: usize = 4;

/// Asks some of the servers that are known, and one of the seeds; where none is of use, all of those.
///
/// # Errors
/// None of them says who has what; the cause.
pub(super) async fn find(shared: &Arc<Shared>, seeds: &[Address], asked: &mut Asked) -> Result<Found, String> {
    let whom = chosen(shared, seeds);
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

/// Masters whose breaker is closed first; then whoever else is known.
fn chosen(shared: &Shared, seeds: &[Address]) -> Vec<Address> {
    let map = shared.topology.map();
    let mut known: Vec<_> = map.nodes().map(|node| (node.breaker.is_open(), random(), &node.address)).collect();
    known.sort();
    let seed = &seeds[random() as usize % seeds.len()];
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
    /// The latest that was given out wins a slot that two claim (Redis Cluster specification, "Configuration handling").
    epoch: u64,
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
            let (by_number, by_name) = places_of(place, from);
            let (place, other) = match by_name {
                Some(name) if prefers_names => (name, Some(by_number)),
                name => (by_number, name),
            };
            view.names.extend(other.map(|other| (other, place.clone())));
            if flags.contains(&"master") {
                let slots = slots.iter().filter_map(|range| range_of(range)).collect();
                let claim = Claim { id: (*id).to_owned(), address: place, epoch: epoch.parse().unwrap_or(0), slots };
                view.masters.push(claim);
            } else if flags.contains(&"slave")
                && !flags.iter().any(|flag| ["fail", "noaddr", "handshake"].contains(flag))
            {
                view.replicas.push(((*master).to_owned(), place));
            }
        }
        view
    }
}

/// `ip:port@busport,hostname,...`: by IP address, and by name if there is one.
fn places_of(text: &str, from: &Address) -> (Address, Option<Address>) {
    let (place, rest) = text.split_once(',').unwrap_or((text, ""));
    let place = address(place.split('@').next().unwrap_or(place), from);
    let name = rest.split(',').next().filter(|name| !name.is_empty() && !name.contains('='));
    let named = match (&place, name) {
        (Address::Tcp { port, .. }, Some(name)) => Some(Address::Tcp { host: name.to_owned(), port: *port }),
        _ => None,
    };
    (place, named)
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
                if owner.is_none_or(|owner| owner.epoch < claim.epoch) {
                    *owner = Some(claim);
                }
            }
        }
    }
    let mut ids: Vec<&Claim> = owners.iter().flatten().copied().collect();
    ids.sort_by(|a, b| a.address.cmp(&b.address));
    ids.dedup_by(|a, b| a.address == b.address);
    let slots = owners.iter().map(|owner| {
        let owner = owner.as_ref()?;
        ids.binary_search_by(|one| one.address.cmp(&owner.address)).ok()
    });
    let slots = if ids.is_empty() { Vec::new() } else { slots.collect() };
    let masters = ids.iter().map(|master| {
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
        let half = merged(&[view("a 1.1.1.1:1@2 master - 0 0 1 connected 0-99\n")], true);
        assert_eq!((half.slots[99], half.slots[100]), (Some(0), None));
    }
}
