use super::*;

fn join(flights: &Arc<Flights>) -> Joined {
    flights.join(b"key", Known::default(), |_, _| true)
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
    assert!(matches!(flights.join(b"other", Known::default(), |_, _| true), Joined::Lead(_)));
    drop(others.pop());
    let late = follower(&flights);
    assert!(matches!(join(&flights), Joined::Full), "who left made room for one");
    // Those who read what came do not stand in the way of the next flight.
    permit.end(End::Uncacheable);
    assert!(matches!(join(&flights), Joined::Lead(_)));
    drop((own, others, late));
}

#[test]
fn who_may_not_trust_a_flight_begins_another() {
    let flights = Flights::new(1 << 20);
    let known = |now| Known { now, ..Known::default() };
    let Joined::Lead(_first) = flights.join(b"key", known(10), |_, _| true) else { panic!("it is empty") };
    assert!(matches!(flights.join(b"key", known(20), |_, began| began == 10), Joined::Follow(_)));
    let Joined::Lead(_second) = flights.join(b"key", known(5_000), |_, began| began > 3_000) else { panic!("too old") };
    assert!(matches!(flights.join(b"key", known(5_001), |_, began| began > 3_000), Joined::Follow(_)));
}
