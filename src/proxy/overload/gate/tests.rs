use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

fn gate(in_flight: usize, exchanges: Option<usize>, workers: usize) -> Vec<Arc<Door>> {
    let bounds = Bounds { in_flight, adaptive: false, exchanges, queue_timeout: Duration::from_secs(20) };
    let gate = Gate::new(bounds, workers);
    (0..workers).map(|worker| Door::new(Arc::clone(&gate), worker)).collect()
}

fn is_empty(gate: &Gate) -> bool {
    gate.counts.load(Ordering::SeqCst) == 0 && gate.waiting() == 0 && gate.queue().waiting == 0
}

/// Begins to wait in line.
async fn in_line(door: &Arc<Door>) -> tokio::task::JoinHandle<Result<Place, Shed>> {
    let (before, own) = (door.gate().waiting(), Arc::clone(door));
    let waits = tokio::spawn(async move { own.enter(true).await });
    while door.gate().waiting() == before {
        tokio::task::yield_now().await;
    }
    waits
}

#[tokio::test]
async fn places_go_to_those_who_wait_in_order_of_arrival() {
    let doors = gate(2, None, 1);
    let door = &doors[0];
    let (first, second) = (door.enter(true).await.unwrap(), door.enter(true).await.unwrap());
    let (third, fourth) = (in_line(door).await, in_line(door).await);
    drop(first);
    let third = third.await.unwrap().unwrap();
    assert!(!fourth.is_finished() && door.gate().waiting() == 1);
    assert_eq!(door.gate().in_flight(), 2, "never more than may be");
    drop(second);
    drop((third, fourth.await.unwrap().unwrap()));
    assert!(is_empty(door.gate()));
}

#[tokio::test]
async fn an_exchange_keeps_its_connection_and_not_its_place() {
    let doors = gate(1, Some(2), 1);
    let door = &doors[0];
    let mut bodies = Vec::new();
    for _ in 0..2 {
        bodies.push(door.enter(true).await.unwrap().answered(0, 0));
    }
    assert_eq!(door.gate().in_flight(), 0);
    let waits = in_line(door).await;
    drop(bodies);
    drop(waits.await.unwrap().unwrap());
    assert!(is_empty(door.gate()));
}

#[tokio::test]
async fn who_leaves_the_line_leaves_nothing_behind() {
    let doors = gate(1, None, 2);
    let held = doors[0].enter(true).await.unwrap();
    let gate = doors[0].gate();
    let mut waiting = Vec::new();
    for i in 0..40 {
        let door = Arc::clone(&doors[i % 2]);
        waiting.push(tokio::spawn(async move { door.enter(true).await.map(drop) }));
        while gate.waiting() <= i {
            tokio::task::yield_now().await;
        }
    }
    for (i, waits) in waiting.iter().enumerate() {
        if i % 3 != 0 {
            waits.abort();
        }
    }
    while gate.waiting() > 14 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gate.queue().lines.iter().map(VecDeque::len).sum::<usize>(), 14);
    drop(held);
    for waits in waiting {
        if let Ok(entered) = waits.await {
            entered.unwrap();
        }
    }
    assert!(is_empty(gate));
}

#[tokio::test]
async fn a_place_that_comes_to_who_has_left_goes_to_the_next() {
    let doors = gate(1, None, 1);
    let door = &doors[0];
    let held = door.enter(true).await.unwrap();
    let (leaves, stays) = (door.join().unwrap(), in_line(door).await);
    // It has come, and nobody has looked.
    drop(held);
    assert_eq!(door.gate().waiting(), 1);
    drop(leaves);
    drop(stays.await.unwrap().unwrap());
    assert!(is_empty(door.gate()));
}

#[tokio::test]
async fn a_panic_gives_the_place_back() {
    let doors = gate(1, None, 1);
    let door = &doors[0];
    let place = door.enter(true).await.unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _place = place;
        std::panic::resume_unwind(Box::new("as the test says"));
    }));
    assert!(panicked.is_err() && is_empty(door.gate()));
}

#[tokio::test]
async fn what_nobody_waits_for_takes_spare_room_only() {
    let doors = gate(16, None, 1);
    let door = &doors[0];
    let mut held = Vec::new();
    while let Ok(place) = door.enter(false).await {
        held.push(place);
    }
    assert_eq!(held.len(), 14, "an eighth is left to clients");
    assert!(!door.gate().has_spare());
    for _ in 0..2 {
        held.push(door.enter(true).await.unwrap());
    }
    assert_eq!(door.enter(false).await.unwrap_err(), Shed::NoSpare);
    let doors = gate(1, None, 1);
    assert!(doors[0].enter(false).await.is_ok(), "of one place there is no eighth");
}

#[tokio::test]
async fn the_line_has_an_end() {
    let doors = gate(1, None, 1);
    let door = &doors[0];
    let held = door.enter(true).await.unwrap();
    let line: Vec<_> = (0..LEAST_WAITING).map(|_| door.join().unwrap()).collect();
    assert_eq!(door.join().err(), Some(Shed::QueueFull));
    drop(line);
    assert!(door.join().is_ok());
    drop(held);
    assert!(is_empty(door.gate()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_too_long_is_shed() {
    let doors = gate(1, None, 1);
    let held = doors[0].enter(true).await.unwrap();
    assert_eq!(doors[0].enter(true).await.unwrap_err(), Shed::QueueTimeout);
    drop(held);
    assert!(is_empty(doors[0].gate()));
}

#[test]
fn an_expected_wait_that_is_too_long_is_refused_on_arrival() {
    let doors = gate(1, None, 1);
    let gate = doors[0].gate();
    let mut queue = gate.queue();
    queue.pace.begins(0);
    // Ten a second.
    (1..=20).for_each(|i| queue.pace.departed(i * 100_000));
    queue.waiting = 140;
    assert_eq!(gate.refuses(&queue, 2_000_000), None, "14 s of 20 are borne in a burst");
    queue.waiting = 200;
    assert_eq!(gate.refuses(&queue, 2_000_000), Some(Shed::ExpectedWait));
    (21..=250).for_each(|i| queue.pace.departed(i * 100_000));
    queue.waiting = 90;
    assert_eq!(gate.refuses(&queue, 25_000_000), None, "9 s of 20 always are");
    queue.waiting = 120;
    assert_eq!(gate.refuses(&queue, 25_000_000), Some(Shed::ExpectedWait), "it is no burst any more");
    queue.waiting = 1;
    assert_eq!(gate.refuses(&queue, 46_000_000), Some(Shed::ExpectedWait), "nobody got through for 20 s");
}

/// A body of nothing, that is not yet known to be.
fn body() -> Body {
    crate::message::Pieces::body(std::collections::VecDeque::new())
}

/// Reads it to its end.
async fn whole(body: &mut Body) {
    let end = std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut *body), cx)).await;
    assert!(end.is_none());
}

fn turn() -> Turn {
    Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap()
}

#[tokio::test]
async fn a_place_whose_body_is_still_coming_is_anothers_until_it_is_whole() {
    let doors = gate(1, Some(8), 1);
    let (door, gate) = (&doors[0], doors[0].gate());
    let mut slow = door.enter(true).await.unwrap();
    let waits = in_line(door).await;
    let mut coming = body();
    slow.lend(turn(), &mut coming);
    let other = waits.await.unwrap().unwrap();
    assert_eq!(gate.in_flight(), 1, "the other one");
    whole(&mut coming).await;
    assert_eq!(gate.in_flight(), 2, "whole: the upstream is at work, though the limit was one");
    drop(coming);
    drop(slow.answered(0, 0));
    assert_eq!(gate.in_flight(), 1);
    drop(other);

    // Answered, or given up, before it is whole.
    for (gives_up_first, answers) in [(false, true), (false, false), (true, true), (true, false)] {
        let (mut slow, mut coming) = (door.enter(true).await.unwrap(), body());
        slow.lend(turn(), &mut coming);
        if gives_up_first {
            coming = Body::Empty;
            assert_eq!(gate.in_flight(), 0, "it never was");
        }
        if answers {
            let exchange = slow.answered(0, 0);
            assert_eq!(gate.counts.load(Ordering::SeqCst), EXCHANGE);
            drop(exchange);
        } else {
            drop(slow);
        }
        drop(coming);
        assert!(is_empty(gate), "{gate:?}");
    }
}

#[tokio::test]
async fn the_clients_time_is_not_the_upstreams() {
    let bounds = Bounds { in_flight: 64, adaptive: true, exchanges: None, queue_timeout: Duration::from_secs(20) };
    let door = Door::new(Gate::new(bounds, 1), 0);
    let gate = door.gate();
    let learnt = || format!("{:?}", gate.gradient);
    for (is_whole, is_given_up) in [(false, false), (false, true), (true, false)] {
        let (mut place, mut coming) = (door.enter(true).await.unwrap(), body());
        place.lend(turn(), &mut coming);
        if is_whole {
            whole(&mut coming).await;
        }
        if is_given_up {
            coming = Body::Empty;
        }
        let before = learnt();
        drop(place.answered(0, gate.now()));
        assert_eq!(learnt() != before, is_whole);
        drop(coming);
    }
}

#[test]
fn under_contention_no_place_is_lost_and_none_is_made() {
    const WORKERS: usize = 4;
    const ROUNDS: usize = 2_000;
    let doors = gate(3, Some(5), WORKERS);
    let gate = Arc::clone(&doors[0].gate);
    let run = |door: Arc<Door>| {
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let one = |door: Arc<Door>, i: usize| async move {
                let place = match i % 7 {
                    // One that leaves the line after a moment.
                    0 => timeout(Duration::from_micros(50), door.enter(true)).await.ok().and_then(Result::ok),
                    1 => door.enter(false).await.ok(),
                    _ => Some(door.enter(true).await.unwrap()),
                };
                tokio::task::yield_now().await;
                // Some lend it until a body is whole, and some are over before that.
                let mut coming = body();
                let place = place.map(|mut place| {
                    if i.is_multiple_of(5) {
                        place.lend(turn(), &mut coming);
                    }
                    place
                });
                tokio::task::yield_now().await;
                if i.is_multiple_of(2) {
                    whole(&mut coming).await;
                }
                assert!(door.gate().in_flight() <= 5 + 1, "exchanges, but for one that looks for who is next");
                let exchange = place.filter(|_| !i.is_multiple_of(3)).and_then(|place| place.answered(0, 0));
                tokio::task::yield_now().await;
                drop((exchange, coming));
            };
            runtime.block_on(async {
                for round in 0..ROUNDS / 20 {
                    let tasks: Vec<_> = (0..20).map(|i| tokio::spawn(one(Arc::clone(&door), round * 20 + i))).collect();
                    for task in tasks {
                        task.await.unwrap();
                    }
                }
            });
        }
    };
    let threads: Vec<_> = doors.into_iter().map(|door| std::thread::spawn(run(door))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(is_empty(&gate), "{gate:?}");
}
