//! Open-loop load: requests start when they are due, whatever became of those before, and their time counts from then.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::background::Background;
use super::client::{Connection, Request};
use super::{Answer, PATIENCE};

/// Longest that one request of a load may take.
const LONGEST: Duration = Duration::from_secs(10);

/// A connection that nobody used for so long is not used again: the other side may be about to end it.
const IDLE: Duration = Duration::from_secs(2);

/// What is to be sent, how fast and how long.
pub struct Load {
    rate: u32,
    length: Duration,
    target: Box<dyn Fn(usize) -> SocketAddr + Send>,
    make: Box<dyn Fn(usize) -> Request + Send>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    /// `rate` requests a second for `length`, the i-th being `make(i)`.
    pub fn new(rate: u32, length: Duration, make: impl Fn(usize) -> Request + Send + 'static) -> Self {
        let nowhere = |_| panic!("a load wants a target");
        Self { rate, length, target: Box::new(nowhere), make: Box::new(make), is_over: Arc::default() }
    }

    /// Sends to these in turn.
    pub fn to(self, targets: &[SocketAddr]) -> Self {
        let targets = targets.to_vec();
        self.choosing(move |i| targets[i % targets.len()])
    }

    /// Sends each where `target` says when it is due, as a balancer would.
    pub fn choosing(mut self, target: impl Fn(usize) -> SocketAddr + Send + 'static) -> Self {
        self.target = Box::new(target);
        self
    }

    /// Begins, on a thread of its own.
    pub fn start(self) -> Running {
        let (send, report) = oneshot::channel();
        let (length, is_over) = (self.length, Arc::clone(&self.is_over));
        let background = Background::run("load", move || async move {
            let _ = send.send(self.drive().await);
        });
        Running { report, length, is_over, _background: background }
    }

    /// Runs it to its end.
    pub async fn run(self) -> Report {
        self.start().finish().await
    }

    async fn drive(self) -> Report {
        let total = (f64::from(self.rate) * self.length.as_secs_f64()) as usize;
        let began = Instant::now();
        let mut pools = BTreeMap::<SocketAddr, Pool>::new();
        let mut tasks = Vec::with_capacity(total);
        for i in 0..total {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let due = began + self.length.mul_f64(i as f64 / total as f64);
            sleep_until(due).await;
            let (request, target) = ((self.make)(i), (self.target)(i));
            let pool = pools.entry(target).or_insert_with(|| Pool::new(target)).clone();
            tasks.push(tokio::spawn(async move { one(&pool, &request, began, due).await }));
        }
        let mut samples = Vec::with_capacity(total);
        for task in tasks {
            samples.push(task.await.expect("a request does not panic"));
        }
        Report { samples }
    }
}

/// A load under way.
pub struct Running {
    report: oneshot::Receiver<Report>,
    length: Duration,
    is_over: Arc<AtomicBool>,
    _background: Background,
}

impl Running {
    /// Sends no more, and waits for what was sent.
    pub async fn stop(self) -> Report {
        self.is_over.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits for its end.
    pub async fn finish(self) -> Report {
        let longest = self.length + LONGEST + PATIENCE;
        timeout(longest, self.report).await.expect("the load ends").expect("the load reports")
    }
}

/// Idle connections to one target.
#[derive(Clone)]
struct Pool {
    target: SocketAddr,
    idle: Arc<Mutex<Vec<(Connection, Instant)>>>,
}

impl Pool {
    fn new(target: SocketAddr) -> Self {
        Self { target, idle: Arc::default() }
    }

    async fn exchange(&self, request: &Request) -> std::io::Result<Answer> {
        let idle = self.idle.lock().expect("no panic while held").pop();
        let mut connection = match idle {
            Some((connection, since)) if since.elapsed() < IDLE => connection,
            _ => Connection::try_open(self.target).await?,
        };
        let answer = connection.try_send(request).await?;
        if connection.reusable {
            self.idle.lock().expect("no panic while held").push((connection, Instant::now()));
        }
        Ok(answer)
    }
}

async fn one(pool: &Pool, request: &Request, began: Instant, due: Instant) -> Sample {
    let late = due.elapsed();
    let result = match timeout(LONGEST, pool.exchange(request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("timeout after {LONGEST:?}")),
    };
    Sample { at: due - began, late, took: due.elapsed(), result }
}

/// One request of a load.
pub struct Sample {
    /// When it was due, from the load's beginning.
    pub at: Duration,
    /// From then until its client came to send it.
    pub late: Duration,
    /// From when it was due to its answer's last byte.
    pub took: Duration,
    /// Its answer, or what went wrong.
    pub result: Result<Answer, String>,
}

/// What came of a load.
pub struct Report {
    /// Every request, in order.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Requests sent.
    pub fn sent(&self) -> usize {
        self.samples.len()
    }

    /// Requests answered with `status`.
    pub fn count(&self, status: u16) -> usize {
        self.answers().filter(|answer| answer.status == status).count()
    }

    /// Every answer.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.samples.iter().filter_map(|sample| sample.result.as_ref().ok())
    }

    /// What clients would call an error: no answer, or a status of 500 and above.
    pub fn errors(&self) -> Vec<String> {
        let error = |sample: &Sample| match &sample.result {
            Ok(answer) if answer.status < 500 => None,
            Ok(answer) => {
                Some(format!("at {:?}: {} {}", sample.at, answer.status, String::from_utf8_lossy(&answer.body)))
            }
            Err(error) => Some(format!("at {:?}: {error}", sample.at)),
        };
        self.samples.iter().filter_map(error).collect()
    }

    /// The time below which this share of the requests stayed.
    pub fn quantile(&self, share: f64) -> Duration {
        self.quantile_between(share, Duration::ZERO, Duration::MAX)
    }

    /// The same, of those due between `from` and `to`.
    pub fn quantile_between(&self, share: f64, from: Duration, to: Duration) -> Duration {
        let due = |sample: &&Sample| sample.at >= from && sample.at < to;
        let mut times: Vec<Duration> = self.samples.iter().filter(due).map(|sample| sample.took).collect();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        times.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut statuses = BTreeMap::<u16, usize>::new();
        for answer in self.answers() {
            *statuses.entry(answer.status).or_default() += 1;
        }
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0));
        write!(
            f,
            "{} sent, {statuses:?}, {} errors, p50 {p50:?}, p99 {p99:?}, max {max:?}",
            self.sent(),
            self.errors().len()
        )
    }
}
