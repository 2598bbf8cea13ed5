//! Redis as several servers, each of them a fake that says what it is told to.

use std::sync::atomic::{AtomicBool, Ordering};

use super::fake::{DEADLINE, Fake, NIL, OK, Place, Pod, Told, bulk, list};
use super::tests::eventually;
use super::*;
use crate::clock::Stopwatch;
use crate::config;

static SCRIPT: Script = Script { name: "any", source: "return 'OK'" };

/// What a request takes beyond waiting, on a busy machine.
const SLACK: Duration = Duration::from_millis(60);

/// How soon one that comes up is used (F1).
const ATTACHED: Duration = Duration::from_secs(2);

/// Keys of the first half of the slots, and of the second.
const LOW: &[u8] = b"b";
const HIGH: &[u8] = b"a";

fn redirected(kind: &str, to: &Place) -> String {
    format!("-{kind} 1 {}\r\n", to.text())
}

fn flag() -> (Arc<AtomicBool>, Arc<AtomicBool>) {
    let flag = Arc::<AtomicBool>::default();
    (Arc::clone(&flag), flag)
}

fn said(text: &str) -> Result<Option<Bytes>, Unavailable> {
    Ok(Some(Bytes::copy_from_slice(text.as_bytes())))
}

#[tokio::test]
async fn a_key_that_moved_is_found_at_once_and_then_asked_for_where_it_is() {
    let (told, here, there, (moved, has_moved)) = (Told::default(), Place::free(), Place::free(), flag());
    told.say(&[(&here, "0-16383")]);
    let to = redirected("MOVED", &there);
    let first =
        here.listen(told.and(move |_| Some(if has_moved.load(Ordering::SeqCst) { &to } else { NIL }.to_owned())));
    let second = there.listen(told.and(|_| Some(bulk("found"))));
    let pod = Pod::cluster(&[&here]);
    pod.attaches(LOW).await;
    told.say(&[(&there, "0-16383")]);
    moved.store(true, Ordering::SeqCst);
    let before = first.count("GET");
    assert_eq!(pod.get(LOW).await, said("found"), "the request that finds out has its answer");
    eventually("the map is made anew", async || pod.shared.home().is_some_and(|home| home.address == there.address()))
        .await;
    let redirections = first.count("GET") - before;
    for _ in 0..50 {
        assert_eq!(pod.get(HIGH).await, said("found"));
    }
    assert_eq!(first.count("GET") - before, redirections, "nobody is sent on any more");
    assert!(second.count("GET") >= 51);
}

#[tokio::test]
async fn a_key_whose_server_goes_is_asked_for_at_its_heir_as_soon_as_he_is_known() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-16383"), (&there, "")]);
    let first = here.listen(told.and(|_| Some(NIL.to_owned())));
    let second = there.listen(told.and(|_| Some(bulk("there"))));
    let pod = Pod::patient(Duration::from_secs(5), &[&here, &there]);
    pod.attaches(LOW).await;
    told.say(&[(&here, ""), (&there, "0-16383")]);
    first.end().await;
    let mut budget = pod.redis.budget();
    let (got, ran) = tokio::join!(pod.get(LOW), pod.redis.run(&SCRIPT, &[LOW], &[], &mut budget));
    assert_eq!((got, ran), (said("there"), Ok(Reply::Bytes(Bytes::from_static(b"OK")))));
    assert_eq!(second.count("EVALSHA"), 1);
}

#[tokio::test]
async fn a_look_up_that_breaks_off_is_sent_once_more_and_a_script_never() {
    let (told, here, (breaks, has_broken)) = (Told::default(), Place::free(), flag());
    told.say(&[(&here, "0-16383")]);
    let others = told.and(|_| Some(NIL.to_owned()));
    let fake = here.listen(move |words: &[String]| match words[0].as_str() {
        "GET" | "EVALSHA" if has_broken.swap(false, Ordering::SeqCst) => Some("?\r\n".to_owned()),
        _ => others(words),
    });
    let pod = Pod::patient(Duration::from_secs(5), &[&here]);
    pod.attaches(LOW).await;
    let before = fake.count("GET");
    breaks.store(true, Ordering::SeqCst);
    assert_eq!(pod.get(LOW).await, Ok(None));
    assert_eq!(fake.count("GET"), before + 2);
    breaks.store(true, Ordering::SeqCst);
    let ran = pod.redis.run(&SCRIPT, &[LOW], &[], &mut pod.redis.budget()).await;
    assert_eq!(ran, Err(Unavailable::Timeout));
    assert_eq!((fake.count("EVALSHA"), fake.count("EVAL ")), (1, 0));
}

#[tokio::test]
async fn a_server_that_goes_without_an_heir_is_waited_for_once_and_not_beyond_the_deadline() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-8191"), (&there, "8192-16383")]);
    let first = here.listen(told.and(|_| Some(NIL.to_owned())));
    let _second = there.listen(told.and(|_| Some(bulk("there"))));
    let whole = Duration::from_secs(2);
    let pod = Pod::patient(whole, &[&here, &there]);
    pod.attaches(LOW).await;
    first.end().await;
    let mut budget = pod.redis.budget();
    assert_eq!(pod.redis.get(LOW, &mut budget).await, Err(Unavailable::NotSent));
    let half = whole / 4..=whole / 2;
    assert!(half.contains(&budget.left()), "half of it was waited: {:?}", budget.left());
    assert_eq!(pod.redis.get(LOW, &mut budget).await, Err(Unavailable::NotSent));
    assert!(half.contains(&budget.left()), "and once: {:?}", budget.left());
    eventually("open", async || !pod.works(LOW).await && pod.is_open(&here)).await;
    let watch = Stopwatch::start();
    assert_eq!(pod.get(LOW).await, Err(Unavailable::NotSent));
    assert!(watch.elapsed() < SLACK, "{:?}", watch.elapsed());
    assert_eq!(pod.get(HIGH).await, said("there"));
}

#[tokio::test]
async fn a_server_that_is_there_and_takes_no_connection_is_no_reason_to_wait() {
    let (told, here) = (Told::default(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let others = told.and(|_| Some(NIL.to_owned()));
    let _fake = here.listen(move |words: &[String]| match words[0].as_str() {
        "AUTH" => Some("-WRONGPASS invalid username-password pair\r\n".to_owned()),
        _ => others(words),
    });
    let pod = Pod::patient(Duration::from_secs(5), &[&here]);
    pod.attaches(LOW).await;
    let password = Some(config::Secret::new("of yesterday"));
    pod.shared.set_access(&config::Access { password, ..config::Access::default() });
    let mut budget = pod.redis.budget();
    assert_eq!(pod.redis.run(&SCRIPT, &[LOW], &[], &mut budget).await, Err(Unavailable::NotSent));
    assert!(budget.left() > Duration::from_secs(4), "it was waited: {:?}", budget.left());
}

#[tokio::test]
async fn a_key_that_is_on_its_way_to_who_is_gone_is_waited_for_by_nobody() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let to = redirected("ASK", &there);
    let _fake = here.listen(told.and(move |_| Some(to.clone())));
    let pod = Pod::patient(Duration::from_secs(5), &[&here]);
    eventually("asked for there", async || !pod.works(LOW).await && pod.is_open(&there)).await;
    let mut budget = pod.redis.budget();
    assert_eq!(pod.redis.get(LOW, &mut budget).await, Err(Unavailable::NotSent));
    assert!(budget.left() > Duration::from_secs(4), "it was waited for: {:?}", budget.left());
    assert!(!pod.is_open(&here));
}

#[tokio::test]
async fn a_key_that_is_on_its_way_is_asked_for_there_and_the_map_stays() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let to = redirected("ASK", &there);
    let first = here.listen(told.and(move |_| Some(to.clone())));
    let second = there.listen(told.and(|_| Some(bulk("found"))));
    let pod = Pod::cluster(&[&here]);
    pod.attaches(LOW).await;
    for _ in 0..10 {
        assert_eq!(pod.get(LOW).await, said("found"));
    }
    assert_eq!((second.count("ASKING"), second.count("GET")), (first.count("GET"), first.count("GET")));
    assert_eq!(pod.shared.home().map(|home| home.address.clone()), Some(here.address()));
}

#[tokio::test]
async fn who_only_redirections_name_stays_the_same_from_one_look_to_the_next() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let to = redirected("ASK", &there);
    let first = here.listen(told.and(move |_| Some(to.clone())));
    let second = there.listen(told.and(|_| Some(bulk("found"))));
    let pod = Pod::cluster(&[&here]);
    pod.attaches(LOW).await;
    let (node, looks) = (pod.shared.topology.named(&there.address()).id, first.count("CLUSTER"));
    eventually("it was looked three times", async || {
        assert_eq!(pod.get(LOW).await, said("found"));
        first.count("CLUSTER") >= looks + 3
    })
    .await;
    assert_eq!(pod.shared.topology.named(&there.address()).id, node);
    assert_eq!(second.count("PING"), 1, "connections");
}

#[tokio::test]
async fn servers_that_send_on_to_each_other_are_left_within_the_budget_and_blamed_for_nothing() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let (one, other) = (redirected("MOVED", &there), redirected("MOVED", &here));
    let first = here.listen(told.and(move |_| Some(one.clone())));
    let _second = there.listen(told.and(move |_| Some(other.clone())));
    let pod = Pod::cluster(&[&here]);
    eventually("the map", async || pod.shared.home().is_some()).await;
    // The connections are opened in the first requests' time.
    eventually("all are reached", async || pod.get(LOW).await == Err(Unavailable::Refused("MOVED".to_owned()))).await;
    let (watch, before) = (Stopwatch::start(), first.count("GET"));
    assert_eq!(pod.get(LOW).await, Err(Unavailable::Refused("MOVED".to_owned())));
    assert!(watch.elapsed() < DEADLINE + SLACK, "{:?}", watch.elapsed());
    assert_eq!(first.count("GET") - before, REDIRECTS / 2);
    assert!(!pod.is_open(&here) && !pod.is_open(&there));
}

#[tokio::test]
async fn a_slot_that_nobody_has_costs_nothing_and_the_others_are_used() {
    let (told, here) = (Told::default(), Place::free());
    told.say(&[(&here, "0-8191")]);
    let server = here.listen(told.and(|_| Some(NIL.to_owned())));
    let pod = Pod::cluster(&[&here]);
    pod.attaches(LOW).await;
    let before = server.count("GET");
    for _ in 0..50 {
        let watch = Stopwatch::start();
        assert_eq!(pod.get(HIGH).await, Err(Unavailable::NotSent));
        assert!(watch.elapsed() < Duration::from_millis(20), "{:?}", watch.elapsed());
    }
    assert_eq!(server.count("GET"), before);
    assert!(pod.works(LOW).await && !pod.shared.is_away());
}

#[tokio::test]
async fn a_slot_that_nobody_has_any_more_keeps_no_others_from_their_server() {
    const UNSERVED: &str = "-CLUSTERDOWN Hash slot not served\r\n";
    let (told, here) = (Told::default(), Place::free());
    told.say(&[(&here, "0-16383")]);
    // The map is late, as it is for a second; the probe's own slot may be among the lost ones.
    let high = String::from_utf8_lossy(HIGH).into_owned();
    let _server = here.listen(told.and(move |key| Some(if key == high { UNSERVED } else { NIL }.to_owned())));
    let pod = Pod::cluster(&[&here]);
    pod.attaches(LOW).await;
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(300) {
        assert!(pod.get(HIGH).await.is_err());
        assert!(pod.works(LOW).await, "its server has the other keys still");
    }
    assert!(!pod.is_open(&here));
}

/// A pod that knows two masters, of which one, with [`LOW`], has stopped answering.
struct OneFrozen {
    pod: Pod,
    frozen: Place,
    well: Place,
    _servers: [Fake; 2],
}

impl OneFrozen {
    async fn new() -> Self {
        let (told, frozen, well, (freeze, is_frozen)) = (Told::default(), Place::free(), Place::free(), flag());
        told.say(&[(&frozen, "0-8191"), (&well, "8192-16383")]);
        let silent = move |_: &str| (!is_frozen.load(Ordering::SeqCst)).then(|| NIL.to_owned());
        let servers = [frozen.listen(told.and(silent)), well.listen(told.and(|_| Some(NIL.to_owned())))];
        let pod = Pod::cluster(&[&well]);
        pod.attaches(LOW).await;
        pod.attaches(HIGH).await;
        freeze.store(true, Ordering::SeqCst);
        Self { pod, frozen, well, _servers: servers }
    }
}

#[tokio::test]
async fn a_frozen_master_costs_its_own_keys_a_deadline_and_the_others_nothing() {
    let OneFrozen { pod, frozen, well, _servers } = OneFrozen::new().await;
    let (mut waited, since) = (0, Stopwatch::start());
    while !pod.is_open(&frozen) {
        let watch = Stopwatch::start();
        assert_eq!(pod.get(LOW).await, Err(Unavailable::Timeout));
        assert!(watch.elapsed() < DEADLINE + SLACK, "{:?}", watch.elapsed());
        let watch = Stopwatch::start();
        assert_eq!(pod.get(HIGH).await, Ok(None));
        assert!(watch.elapsed() < SLACK, "{:?}", watch.elapsed());
        waited += 1;
    }
    assert!(waited <= 5, "{waited} waited for {:?}", since.elapsed());
    let watch = Stopwatch::start();
    assert_eq!(pod.get(LOW).await, Err(Unavailable::NotSent));
    assert!(watch.elapsed() < SLACK && !pod.is_open(&well));
}

#[tokio::test]
async fn who_has_no_time_left_for_one_server_because_of_another_says_nothing_of_it() {
    let OneFrozen { pod, frozen, well, _servers } = OneFrozen::new().await;
    // A limit here and a look-up there, at several requests' hands.
    while !pod.is_open(&frozen) {
        let requests = (0..8).map(|_| {
            let redis = pod.redis.clone();
            tokio::spawn(async move {
                let mut budget = redis.budget();
                let _ = redis.get(LOW, &mut budget).await;
                redis.get(HIGH, &mut budget).await
            })
        });
        for request in requests.collect::<Vec<_>>() {
            let _ = request.await.unwrap();
        }
    }
    assert!(!pod.is_open(&well), "it answers");
    assert!(pod.works(HIGH).await);
}

#[tokio::test]
async fn a_frozen_copy_costs_no_answer_and_its_master_is_not_blamed() {
    let (told, master, copy, (freeze, is_frozen)) = (Told::default(), Place::free(), Place::free(), flag());
    told.say(&[(&master, "0-16383")]);
    told.replica_too(&copy, 0);
    let first = master.listen(told.and(|_| Some(bulk("the master's"))));
    let silent = move |_: &str| (!is_frozen.load(Ordering::SeqCst)).then(|| bulk("the copy's"));
    let second = copy.listen(told.and(silent));
    let pod = Pod::of(config::Servers::Cluster { seeds: vec![master.address()] }, ReadFrom::Replica);
    eventually("read from the copy", async || pod.get(LOW).await == said("the copy's")).await;
    assert!(second.count("READONLY") >= 1);
    let before = first.count("GET");
    for _ in 0..20 {
        assert_eq!(pod.get(LOW).await, said("the copy's"));
    }
    assert_eq!(first.count("GET"), before);
    freeze.store(true, Ordering::SeqCst);
    while !pod.is_open(&copy) {
        let watch = Stopwatch::start();
        assert_eq!(pod.get(LOW).await, said("the master's"), "it has time enough to say so itself");
        assert!(watch.elapsed() < DEADLINE + SLACK, "{:?}", watch.elapsed());
    }
    assert!(!pod.is_open(&master));
    let watch = Stopwatch::start();
    assert_eq!(pod.get(LOW).await, said("the master's"));
    assert!(watch.elapsed() < DEADLINE / 2, "{:?}", watch.elapsed());
}

#[tokio::test]
async fn one_seed_that_is_there_is_enough() {
    let (told, here) = (Told::default(), Place::free());
    told.say(&[(&here, "0-16383")]);
    let _server = here.listen(told.and(|_| Some(NIL.to_owned())));
    let mut seeds: Vec<Place> = (0..7).map(|_| Place::free()).collect();
    seeds.push(here);
    for _ in 0..5 {
        let took = Pod::cluster(&seeds.iter().collect::<Vec<_>>()).attaches(LOW).await;
        assert!(took < ATTACHED, "{took:?}");
    }
}

#[tokio::test]
async fn servers_that_are_all_down_at_start_are_used_soon_after_they_come_up() {
    let (told, here, there) = (Told::default(), Place::free(), Place::free());
    told.say(&[(&here, "0-8191"), (&there, "8192-16383")]);
    let pod = Pod::cluster(&[&here, &there]);
    let watch = Stopwatch::start();
    // One who comes meanwhile is not kept waiting.
    while watch.elapsed() < Duration::from_millis(700) {
        let one = Stopwatch::start();
        assert_eq!(pod.get(LOW).await, Err(Unavailable::NotSent));
        assert!(one.elapsed() < SLACK && pod.shared.is_away());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _one = here.listen(told.and(|_| Some(NIL.to_owned())));
    assert!(pod.attaches(LOW).await < ATTACHED);
    // The other is dead from the start, and refuses: who asks first waits for an heir.
    let _ = pod.get(HIGH).await;
    assert!(!pod.works(HIGH).await && pod.is_open(&there) && pod.works(LOW).await);
    let _other = there.listen(told.and(|_| Some(NIL.to_owned())));
    assert!(pod.attaches(HIGH).await < ATTACHED);
}

/// What one Sentinel says: that `master` is it, since the failover `epoch`.
fn naming(master: &Place, epoch: u64) -> impl Fn(&[String]) -> Option<String> + Send + Sync + 'static {
    let port = master.port();
    move |words| match (words[0].as_str(), words.get(1).map(String::as_str)) {
        ("SENTINEL", Some("GET-MASTER-ADDR-BY-NAME")) => Some(list(&["127.0.0.1", &port])),
        ("SENTINEL", _) => Some(list(&["name", "shop", "config-epoch", &epoch.to_string()])),
        _ => Some(OK.to_owned()),
    }
}

/// A server that says that it is this, and has what is asked for.
fn server(place: &Place, role: &'static str) -> Fake {
    let answers = move |words: &[String]| match words[0].as_str() {
        "ROLE" => Some(list(&[role, "0"])),
        "GET" => Some(bulk(role)),
        _ => Some(OK.to_owned()),
    };
    place.listen(answers)
}

#[tokio::test]
async fn a_server_that_is_no_master_is_not_believed_to_be_one_whoever_says_so() {
    let [wrong, right, one, other, nobody] = [(); 5].map(|()| Place::free());
    let (copy, _master) = (server(&wrong, "slave"), server(&right, "master"));
    let late = one.listen(naming(&wrong, 3));
    let pod = Pod::sentinel(&[&one, &other]);
    eventually("it was asked", async || copy.count("ROLE") >= 2).await;
    assert_eq!((pod.get(LOW).await, copy.count("GET")), (Err(Unavailable::NotSent), 0));
    // Another Sentinel knows of a later failover, and is believed whoever of them answers first.
    let told = other.listen(naming(&right, 4));
    assert!(pod.attaches(LOW).await < ATTACHED);
    assert_eq!(pod.get(LOW).await, said("master"));
    // What is alone and behind changes nothing, even where it names somebody who says that he is a master.
    told.end().await;
    late.end().await;
    let old = one.listen(naming(&nobody, 3));
    let split = server(&nobody, "master");
    eventually("it was asked", async || old.count("SENTINEL") >= 6).await;
    assert_eq!((pod.get(LOW).await, split.count("GET")), (said("master"), 0));
}

#[tokio::test]
async fn a_master_that_cannot_be_reached_is_used_once_it_can() {
    let [place, sentinel] = [(); 2].map(|()| Place::free());
    let told = sentinel.listen(naming(&place, 1));
    let pod = Pod::sentinel(&[&sentinel]);
    eventually("it is asked for", async || told.count("SENTINEL") >= 4).await;
    let watch = Stopwatch::start();
    assert_eq!(pod.get(LOW).await, Err(Unavailable::NotSent));
    assert!(watch.elapsed() < SLACK);
    let _master = server(&place, "master");
    assert!(pod.attaches(LOW).await < ATTACHED);
}

#[tokio::test]
async fn sentinels_that_are_all_down_at_start_are_asked_until_one_is_there() {
    let [place, one, other] = [(); 3].map(|()| Place::free());
    let master = server(&place, "master");
    let pod = Pod::sentinel(&[&one, &other]);
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(700) {
        assert_eq!(pod.get(LOW).await, Err(Unavailable::NotSent));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(master.count("GET"), 0);
    let told = other.listen(naming(&place, 1));
    assert!(pod.attaches(LOW).await < ATTACHED);
    // Once they have said who it is, it does not take them to use it.
    told.end().await;
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(700) {
        assert_eq!(pod.get(LOW).await, said("master"));
    }
}
