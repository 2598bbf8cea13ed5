//! The harness' clusters and sentinels do what tests take for granted.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::harness::{PATIENCE, flaky, is_before_7, redis_cluster, redis_cluster_by_clocks, sentinels};

#[test]
fn a_cluster_moves_slots_and_fails_over() {
    let cluster = redis_cluster();
    assert_eq!(cluster.masters(), [0, 1, 2]);
    let (slot, owner) = (cluster.slot_of("{a}"), cluster.owner_of("{a}"));
    let other = (owner + 1) % 3;
    for name in ["{a}", "{a}1", "{a}2"] {
        cluster.cli(owner, &["SET", name, "x"]);
    }
    let half = cluster.begin_move(slot, other).unwrap();
    cluster.move_key(half, "{a}");
    let said = |node: usize, words: &[&str]| cluster.node(node).try_cli(words).unwrap_err().to_string();
    assert!(said(owner, &["GET", "{a}"]).contains("ASK"));
    // Before Redis 7 only the new server says so.
    let split = if is_before_7() { "ASK" } else { "TRYAGAIN" };
    assert!(said(owner, &["MGET", "{a}", "{a}1"]).contains(split));
    assert_eq!(cluster.left(half).len(), 2);
    cluster.finish_move(half);
    assert!(said(owner, &["GET", "{a}"]).contains(&format!("MOVED {slot} {}", cluster.addresses()[other])));
    assert_eq!(cluster.owner(slot), other);
    assert_eq!(cluster.cli(other, &["GET", "{a}1"]), "x");
    assert_eq!(cluster.cli(other, &["MGET", "{a}", "{a}1", "{a}2"]), "x\nx\nx");

    let heir = cluster.replica_of(other);
    cluster.fail_over(heir);
    cluster.is_well();
    assert_eq!((cluster.owner(slot), cluster.replica_of(heir)), (heir, other));
    cluster.kill(heir);
    assert_eq!(cluster.taken_over(slot, heir), other);
    cluster.restart(heir);
    cluster.is_well();
    assert_eq!(cluster.replica_of(other), heir);
    cluster.freeze(other);
    assert_eq!(cluster.taken_over(slot, other), heir);
    assert_eq!(cluster.cli(heir, &["GET", "{a}2"]), "x");
    cluster.thaw(other);
    cluster.is_well();
    assert!(cluster.calls("get") >= 1);
}

#[test]
fn sentinels_fail_over() {
    let sentinels = sentinels();
    assert_eq!((sentinels.master(), sentinels.replicas().len()), (0, 2));
    let second = sentinels.fail_over();
    assert_ne!(second, 0);
    // Sentinels that are about to end one failover begin no other for long.
    sentinels.is_well();
    sentinels.kill(second);
    let third = sentinels.taken_over(second);
    assert_ne!(third, second);
    sentinels.restart(second);
    sentinels.freeze_sentinel(0);
    sentinels.thaw_sentinel(0);
    assert_eq!(sentinels.master(), third);
}

#[test]
fn a_cluster_serves_again_though_a_clock_was_set_back_since_its_start() {
    let cluster = redis_cluster_by_clocks();
    cluster.clock(1).set(-3600);
    cluster.kill(0);
    cluster.serves();
    assert_eq!(cluster.started_anew(), 1);
    cluster.restart(0);
    cluster.is_well();
    assert_eq!(cluster.started_anew(), 1);
}

#[test]
fn a_connection_that_is_cut_breaks_however_soon_all_is_well_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = flaky(listener.local_addr().unwrap());
    for _ in 0..100 {
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"x").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.read_exact(&mut [0]).unwrap();
        relay.cut();
        relay.heal();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
