//! How many connections each client's address has, where that is capped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};

/// Counts of the addresses that have connections open: no more of them than there are connections.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place among those of its address; dropping it gives the place back.
pub(super) struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// A place for one more connection of `address`, unless it has `most` already.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, most: NonZeroUsize) -> Option<Place> {
        let client = client(address);
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        Some(Place { clients: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().expect("no panic while held")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.clients.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// Whom an address stands for: one host has a whole /64 of IPv6 (RFC 4291 section 2.5.1).
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_address_has_its_own_places_and_gives_them_back() {
        let clients = Arc::new(Clients::default());
        let first = clients.enter(ip("10.0.0.1"), TWO).expect("a place");
        let _second = clients.enter(ip("::ffff:10.0.0.1"), TWO).expect("a place");
        assert!(clients.enter(ip("10.0.0.1"), TWO).is_none());
        let _other = clients.enter(ip("10.0.0.2"), TWO).expect("a place");
        drop(first);
        let _third = clients.enter(ip("10.0.0.1"), TWO).expect("the place that was given back");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let clients = Arc::new(Clients::default());
        let _first = clients.enter(ip("2001:db8:0:1::1"), TWO).expect("a place");
        let _second = clients.enter(ip("2001:db8:0:1:ffff::2"), TWO).expect("a place");
        assert!(clients.enter(ip("2001:db8:0:1::3"), TWO).is_none());
        assert!(clients.enter(ip("2001:db8:0:2::1"), TWO).is_some());
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let clients = Arc::new(Clients::default());
        for host in 0..1_000_u32 {
            drop(clients.enter(IpAddr::V4(host.into()), TWO));
        }
        assert!(clients.lock().is_empty());
    }
}
