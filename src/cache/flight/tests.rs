use super::*;

fn join(flights: &Arc<Flights>) -> Joined {
    flights.join(b"key", 1, |_| true)
}

fn follower(flights: &Arc<Flights>) -> Follower {
    let Joined::Follow(follower) = join(flights) else { panic!("there is room for one more") };
    follower
}

#[test]
fn so_many_follow_one_flight_and_no_more() {
    let flights = Flights::new(1 << 20);
    let Joined::Lead(permit) = join(&flights) else { panic!("nobody flies yet") };
    let own = permit.follower().leading();
    let mut others: Vec<_> = (1..FOLLOWERS).map(|_| follower(&flights)).collect();
    assert!(matches!(join(&flights), Joined::Full));
    // Another key has a queue of its own.
    assert!(matches!(flights.join(b"other", 1, |_| true), Joined::Lead(_)));
    drop(others.pop());
    let late = follower(&flights);
    assert!(matches!(join(&flights), Joined::Full), "who left made room for one");
    // Those who read what came do not stand in the way of the next flight.
    permit.end(End::Uncacheable);
    assert!(matches!(join(&flights), Joined::Lead(_)));
    drop((own, others, late));
}

#[test]
fn who_may_not_trust_a_fetch_begins_another() {
    let flights = Flights::new(1 << 20);
    let join = |least| flights.join(b"key", 1, |begun| begun.at >= least);
    let begins = |at| Begun { at, ..Begun::default() };
    let Joined::Lead(first) = join(10) else { panic!("it is empty") };
    assert!(matches!(join(u64::MAX), Joined::Follow(_)), "it has not begun");
    first.begin(begins(10));
    assert!(matches!(join(10), Joined::Follow(_)));
    let Joined::Lead(second) = join(3_000) else { panic!("too old") };
    second.begin(begins(5_000));
    assert!(matches!(join(3_000), Joined::Follow(_)));
}

#[test]
fn who_joins_knows_more_than_a_fetch_that_had_begun_by_then() {
    let flights = Flights::new(1 << 20);
    let join = |version| flights.join(b"key", version, |_| true);
    let Joined::Lead(permit) = join(1) else { panic!("it is empty") };
    // While the leader waits, somebody comes who knows more than it did when it joined.
    let Joined::Follow(before) = join(2) else { panic!("it is in flight") };
    permit.begin(Begun { version: 2, ..Begun::default() });
    let Joined::Follow(after) = join(3) else { panic!("it is in flight") };
    assert_eq!((permit.follower().knows_more(), before.knows_more(), after.knows_more()), (false, false, true));
}
