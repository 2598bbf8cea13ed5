//! Requests that wait for their turn, on a clock that only waits move.

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::config::Delay;

/// One request every 100 ms, one at once.
fn slow(name: &str, longest_ms: u64, places: usize, on: Stage) -> config::Limit {
    let delay = Some(Delay { longest: Duration::from_millis(longest_ms), places });
    config::Limit { delay, ..limit(name, (10, 1000), 1, on) }
}

/// How a request ended: after how many ms, and for how many more it was denied.
type Ended = (u64, Result<(), Option<u64>>);

struct Crowd {
    pod: Arc<Pod>,
    began: Instant,
}

impl Crowd {
    /// A pod whose clock goes with tokio's.
    fn new(limits: Vec<config::Limit>) -> Self {
        Self::of(Pod::new(limits))
    }

    fn of(pod: Pod) -> Self {
        let pod = Arc::new(pod);
        let clock = pod.clock.clone();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(1)).await;
                clock.advance(Duration::from_millis(1));
            }
        });
        Self { pod, began: Instant::now() }
    }

    /// A request of the client `192.0.2.last`, up to `stage`.
    fn send(&self, last: u8, stage: Stage) -> JoinHandle<Ended> {
        let (pod, began) = (Arc::clone(&self.pod), self.began);
        tokio::spawn(async move {
            let ended = pod.come([192, 0, 2, last].into(), stage).await;
            let wait = ended.map_err(|denial| denial.retry_after.map(|wait| wait.as_millis() as u64));
            (began.elapsed().as_millis() as u64, wait)
        })
    }

    fn come(&self, last: u8) -> JoinHandle<Ended> {
        self.send(last, Stage::Request)
    }

    fn waiting(&self) -> u64 {
        self.sum("limit_waiting")
    }

    fn sum(&self, series: &str) -> u64 {
        let text = self.pod.metrics.render(0);
        let wanted = format!("_{series}{{");
        let lines = text.lines().filter(|line| line.find(&wanted) == Some("weir".len()));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Pod {
    /// Comes as the proxy's requests do.
    async fn come(&self, ip: IpAddr, last: Stage) -> Result<(), Box<Denial>> {
        let headers = HeaderMap::new();
        let facts =
            Facts { ip, headers: &headers, query: None, route: "catalog", host: "shop.example", method: &Method::GET };
        let (mut charged, mut budget) = (Charged::default(), Budget::new(Duration::from_secs(5)));
        for stage in STAGES.into_iter().filter(|stage| *stage <= last) {
            let taking = Taking { redis: self.redis.as_ref(), limits: &self.limits, stage, facts: &facts };
            match self.limiter.admit(&taking, &mut charged, &mut budget).await {
                Ok(()) => {}
                Err(Halt::Denied(denial)) => return Err(denial),
                Err(Halt::Wait(denial)) => self.limiter.delay(&taking, &mut charged, &mut budget, denial).await?,
            }
        }
        Ok(())
    }
}

/// Within a millisecond, the clock's step, for each question.
fn about(ended: &Ended, expected: u64) -> bool {
    (expected..=expected + 3).contains(&ended.0) && ended.1.is_ok()
}

#[tokio::test(start_paused = true)]
async fn whoever_may_wait_goes_on_in_its_turn_and_whoever_may_not_hears_when() {
    let crowd = Crowd::new(vec![slow("slow", 250, 100, Stage::Request)]);
    let all = [1; 5].map(|last| crowd.come(last));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(crowd.waiting(), 2);
    let mut ended = Vec::new();
    for one in all {
        ended.push(one.await.unwrap());
    }
    assert!(about(&ended[0], 0) && about(&ended[1], 100) && about(&ended[2], 200), "{ended:?}");
    // Their turn would have come after 300 ms, and those of no places are not in the way.
    for denied in &ended[3..] {
        assert!(matches!(denied, (0..=1, Err(Some(300..=301)))), "{ended:?}");
    }
    assert_eq!(crowd.waiting(), 0);
    assert_eq!(crowd.pod.counted("slow", Decision::Delayed, Source::Local), 2);
    assert_eq!(crowd.pod.counted("slow", Decision::Allowed, Source::Local), 3);
    assert_eq!(crowd.pod.counted("slow", Decision::Denied, Source::Local), 2);
    assert_eq!(crowd.sum("limit_delay_seconds_count"), 2);
}

/// What comes back then is the pod's part of the limit, one request every 200 ms here.
#[tokio::test(start_paused = true)]
async fn without_redis_nobody_waits_in_vain() {
    let redis = kv::Redis::new(Server::down().shared());
    let crowd = Crowd::of(Pod::of(2, Some(redis), vec![slow("slow", 500, 100, Stage::Request)]));
    let mut ended = Vec::new();
    for one in [1; 8].map(|last| crowd.come(last)) {
        ended.push(one.await.unwrap());
    }
    assert!(about(&ended[0], 0) && about(&ended[1], 200) && about(&ended[2], 400), "{ended:?}");
    for denied in &ended[3..] {
        assert!(matches!(denied, (0..=1, Err(Some(600..=601)))), "{ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_stands_behind_those_who_wait() {
    let crowd = Crowd::new(vec![slow("slow", 1000, 100, Stage::Request)]);
    let first = [1; 3].map(|last| crowd.come(last));
    // A token is there by then, and its owner was not woken yet.
    sleep(Duration::from_millis(99)).await;
    crowd.pod.clock.advance(Duration::from_millis(100));
    let late = crowd.come(1);
    let late = late.await.unwrap();
    for one in first {
        let ended = one.await.unwrap();
        assert!(ended.1.is_ok() && ended.0 <= late.0, "{ended:?} before {late:?}");
    }
    assert!(late.1.is_ok() && late.0 >= 190, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_leaves_places_to_others() {
    let crowd = Crowd::new(vec![slow("slow", 1000, 4, Stage::Request)]);
    let flood = [1; 9].map(|last| crowd.come(last));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(crowd.waiting(), 4, "one was admitted, four are denied");
    // What they have, then one more each.
    let others = [2, 2, 3, 3].map(|last| crowd.come(last));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(crowd.waiting(), 4);
    for other in others {
        assert!(other.await.unwrap().1.is_ok());
    }
    let mut admitted = Vec::new();
    for one in flood {
        let ended = one.await.unwrap();
        match ended.1 {
            Ok(()) => admitted.push(ended.0),
            Err(wait) => assert!(wait.is_some_and(|wait| (100..=501).contains(&wait)), "{ended:?}"),
        }
    }
    assert_eq!(admitted.len(), 3, "the first, and two that kept their places: {admitted:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_gives_its_place_up_at_once() {
    let crowd = Crowd::new(vec![slow("slow", 1000, 100, Stage::Request)]);
    let [first, second, third, fourth] = [1; 4].map(|last| crowd.come(last));
    sleep(Duration::from_millis(10)).await;
    // The first of the line, and one in it.
    second.abort();
    assert!(second.await.is_err());
    assert_eq!(crowd.waiting(), 2);
    let (first, third) = (first.await.unwrap(), third.await.unwrap());
    assert!(about(&first, 0) && about(&third, 100), "{first:?} {third:?}");
    let fifth = crowd.come(1);
    sleep(Duration::from_millis(10)).await;
    fourth.abort();
    assert!(fourth.await.is_err());
    let fifth = fifth.await.unwrap();
    assert!(about(&fifth, 200), "{fifth:?}");
    assert_eq!(crowd.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_charged_while_somebody_waits_nor_if_it_was_in_vain() {
    let limits = vec![hourly("wide", 3, Stage::Request), slow("slow", 250, 100, Stage::Miss)];
    let crowd = Crowd::new(limits);
    assert!(about(&crowd.send(1, Stage::Miss).await.unwrap(), 0));
    let waits = crowd.send(1, Stage::Miss);
    sleep(Duration::from_millis(10)).await;
    // One of three is spent; the one who waits has none yet.
    assert_eq!(crowd.pod.admitted(3, Stage::Request).await, 2);
    let ended = waits.await.unwrap();
    assert!(matches!(ended, (_, Err(Some(3_500_000..)))), "what it was to have is gone: {ended:?}");
    let other = [2; 5].map(|last| crowd.send(last, Stage::Miss));
    let mut admitted = 0;
    for one in other {
        admitted += usize::from(one.await.unwrap().1.is_ok());
    }
    assert_eq!(admitted, 3, "by both limits; two were denied by the slow one, and charged nothing");
    let left = Arc::clone(&crowd.pod);
    let mut charged = Charged::default();
    assert!(matches!(left.take_as([192, 0, 2, 2].into(), Stage::Request, &mut charged).await, Verdict::Deny(_)));
}

#[tokio::test(start_paused = true)]
async fn of_several_limits_the_one_that_binds_says_whether_to_wait() {
    let longer = |delay| config::Limit { delay, ..limit("longer", (1, 1000), 1, Stage::Request) };
    let crowd = Crowd::new(vec![slow("slow", 250, 100, Stage::Request), longer(None)]);
    assert!(about(&crowd.come(1).await.unwrap(), 0));
    let denied = crowd.come(1).await.unwrap();
    assert!(matches!(denied, (0..=3, Err(Some(1000)))), "{denied:?}");
    let delay = Some(Delay { longest: Duration::from_secs(2), places: 1 });
    let crowd = Crowd::new(vec![slow("slow", 250, 100, Stage::Request), longer(delay)]);
    assert!(about(&crowd.come(1).await.unwrap(), 0));
    assert!(about(&crowd.come(1).await.unwrap(), 1000));
}

#[tokio::test(start_paused = true)]
async fn the_whole_delay_is_bounded_over_all_limits() {
    let crowd = Crowd::new(vec![slow("a", 150, 100, Stage::Request), slow("b", 150, 100, Stage::Miss)]);
    // The second limit is spent by those whom the first one lets through.
    assert!(about(&crowd.send(1, Stage::Miss).await.unwrap(), 0));
    let late = crowd.send(1, Stage::Miss);
    sleep(Duration::from_millis(95)).await;
    // What the second gains is gone just before.
    let headers = HeaderMap::new();
    let facts = Facts {
        ip: [192, 0, 2, 1].into(),
        headers: &headers,
        query: None,
        route: "catalog",
        host: "shop.example",
        method: &Method::GET,
    };
    crowd.pod.clock.advance(Duration::from_millis(6));
    let (mut charged, mut budget) = (Charged::default(), Budget::new(Duration::from_secs(5)));
    let taken = crowd.pod.limiter.take(None, &crowd.pod.limits, Stage::Miss, &facts, &mut charged, &mut budget).await;
    assert!(matches!(taken, Verdict::Allow));
    let ended = late.await.unwrap();
    assert!(matches!(ended, (100..=110, Err(Some(80..=100)))), "waited for 100 ms, and may for 50 more: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_only_counts_delays_nobody() {
    let dry = config::Limit { dry_run: true, ..slow("dry", 1000, 100, Stage::Request) };
    let crowd = Crowd::new(vec![dry]);
    for _ in 0..5 {
        assert!(about(&crowd.come(1).await.unwrap(), 0));
    }
    assert_eq!(crowd.pod.counted("dry", Decision::DryRun, Source::Local), 4);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_comes_behind_those_who_wait() {
    let crowd = Crowd::new(vec![slow("slow", 1000, 100, Stage::Origin)]);
    let is_awaited = |last: u8| {
        let headers = HeaderMap::new();
        let ip = [192, 0, 2, last].into();
        let facts =
            Facts { ip, headers: &headers, query: None, route: "catalog", host: "shop.example", method: &Method::GET };
        crowd.pod.limiter.is_awaited(&crowd.pod.limits, Stage::Origin, &facts)
    };
    assert!(crowd.send(1, Stage::Origin).await.unwrap().1.is_ok());
    assert!(!is_awaited(1));
    let waits = crowd.send(1, Stage::Origin);
    sleep(Duration::from_millis(10)).await;
    assert!(is_awaited(1) && !is_awaited(2));
    assert!(waits.await.unwrap().1.is_ok());
    assert!(!is_awaited(1));
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_from_the_longest_line_to_a_shorter_one_only() {
    let crowd = Crowd::new(vec![slow("slow", 2000, 9, Stage::Request)]);
    // One of each client is served at once; five, three and one wait.
    let all = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3].map(|last| crowd.come(last));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(crowd.waiting(), 9);
    let gets_one = crowd.come(2);
    sleep(Duration::from_millis(10)).await;
    let denied = crowd.come(2).await.unwrap();
    assert!(matches!(denied, (_, Err(Some(470..=490)))), "four and four wait: {denied:?}");
    // Four, three and two: nobody is shorter of a place than who would lose one.
    let gets_another = crowd.come(3);
    sleep(Duration::from_millis(10)).await;
    for last in [1, 2] {
        assert!(crowd.come(last).await.unwrap().1.is_err(), "{last}");
    }
    assert!(gets_another.await.unwrap().1.is_ok());
    let mut lost = 0;
    for one in all.into_iter().chain([gets_one]) {
        lost += usize::from(one.await.unwrap().1.is_err());
    }
    assert_eq!(lost, 2, "the last of the five, and that of one of the fours");
}

#[tokio::test(start_paused = true)]
async fn what_it_has_waited_before_counts() {
    let crowd = Crowd::new(vec![slow("slow", 150, 100, Stage::Request)]);
    assert!(crowd.come(1).await.unwrap().1.is_ok());
    let headers = HeaderMap::new();
    let ip = [192, 0, 2, 1].into();
    let facts =
        Facts { ip, headers: &headers, query: None, route: "catalog", host: "shop.example", method: &Method::GET };
    let (mut charged, mut budget) = (Charged::default(), Budget::new(Duration::from_secs(5)));
    let pod = &crowd.pod;
    let taking = Taking { redis: None, limits: &pod.limits, stage: Stage::Request, facts: &facts };
    let Err(Halt::Wait(denial)) = pod.limiter.admit(&taking, &mut charged, &mut budget).await else {
        panic!("it may wait for 100 ms")
    };
    // At other stages, say.
    charged.waited = Some(Duration::from_millis(60));
    let ended = pod.limiter.delay(&taking, &mut charged, &mut budget, denial).await;
    assert!((90..=93).contains(&crowd.began.elapsed().as_millis()), "{:?}", crowd.began.elapsed());
    assert!(ended.is_err_and(|denial| denial.retry_after.is_some_and(|wait| wait.as_millis() <= 12)));
}
