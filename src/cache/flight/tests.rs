use super::*;

fn join(flights: &Arc<Flights>) -> Joined {
    flights.join(b"key", (Position::default(), 0), |_| true)
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
    assert!(matches!(flights.join(b"other", (Position::default(), 0), |_| true), Joined::Lead(_)));
    drop(others.pop());
    let late = follower(&flights);
    assert!(matches!(join(&flights), Joined::Full), "who left made room for one");
    // Those who read what came do not stand in the way of the next flight.
    permit.end(End::Uncacheable);
    assert!(matches!(join(&flights), Joined::Lead(_)));
    drop((own, others, late));
}
