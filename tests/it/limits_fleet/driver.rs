//! Load as a fleet's clients make it: each request is due at its time, whatever became of those before, on a bounded number of
//! connections; written down is when it was sent, when it was answered, and how.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::check::{Admitted, Nanos};
use super::pods::Pod;
use crate::fleet::dice::Dice;
use crate::harness::{Background, PATIENCE};

/// Connections to each pod.
const CONNECTIONS: usize = 24;

/// A request that finds no connection free for so long is not sent: its client has given up.
const LATE: Duration = Duration::from_millis(250);

/// Longest that one is waited for: longer than any pod stands still.
const LONGEST: Duration = Duration::from_secs(10);

/// Room for an answer.
const ANSWER: usize = 4096;

/// Part of a load: so many requests a second over all pods for so long.
pub type Phase = (f64, Duration);

/// A request that is to be sent.
#[derive(Clone, Copy)]
struct Due {
    at: Nanos,
    who: u32,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// To which pod.
    pub pod: usize,
    /// By whom.
    pub who: u32,
    /// When it was due.
    pub due: Nanos,
    /// Before its first byte was written.
    pub sent: Nanos,
    /// After its answer's last byte was read.
    pub answered: Nanos,
    /// The answer's status; 0 if there was none.
    pub status: u16,
}

/// Everything that was sent.
pub struct Log {
    /// In no order.
    pub seen: Vec<Seen>,
    /// Requests that found no connection in time.
    pub late: usize,
}

/// Sends what is due in these phases to the pods in turn, `who` choosing each one's identity; begins at once, on a thread of
/// its own.
pub fn drive(pods: &Arc<[Pod]>, phases: &[Phase], mut who: impl FnMut() -> u32) -> Running {
    let mut plans = vec![Vec::new(); pods.len()];
    let mut begin = Duration::ZERO;
    let mut nth = 0;
    for &(rate, length) in phases {
        let count = (rate * length.as_secs_f64()) as usize;
        for i in 0..count {
            let at = (begin + length.mul_f64(i as f64 / count as f64)).as_nanos() as Nanos;
            plans[nth % pods.len()].push(Due { at, who: who() });
            nth += 1;
        }
        begin += length;
    }
    let (send, log) = oneshot::channel();
    let (pods, began) = (Arc::clone(pods), Instant::now());
    let background = Background::run("drive", move || async move {
        let mut clients = JoinSet::new();
        for (pod, plan) in plans.into_iter().enumerate() {
            let line = Arc::new(Line { pods: Arc::clone(&pods), pod, plan, next: AtomicUsize::new(0), began });
            for _ in 0..CONNECTIONS {
                clients.spawn(client(Arc::clone(&line)));
            }
        }
        let mut log = Log { seen: Vec::new(), late: 0 };
        for (seen, late) in clients.join_all().await {
            log.seen.extend(seen);
            log.late += late;
        }
        let _ = send.send(log);
    });
    Running { log, longest: begin + LONGEST + PATIENCE, began, _background: background }
}

/// A load under way.
pub struct Running {
    log: oneshot::Receiver<Log>,
    longest: Duration,
    began: Instant,
    _background: Background,
}

impl Running {
    /// Waits for its end.
    pub async fn finish(self) -> Log {
        timeout(self.longest, self.log).await.expect("the load ends").expect("the load reports")
    }

    /// How long it has been going on.
    pub fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }
}

/// What is to be sent to one pod.
struct Line {
    pods: Arc<[Pod]>,
    pod: usize,
    plan: Vec<Due>,
    next: AtomicUsize,
    began: Instant,
}

/// Sends what is next whenever it is due, over one connection at a time.
async fn client(line: Arc<Line>) -> (Vec<Seen>, usize) {
    let (mut seen, mut late) = (Vec::new(), 0);
    let mut open: Option<(Wire, SocketAddr)> = None;
    let mut request = Vec::with_capacity(ANSWER);
    let now = || line.began.elapsed().as_nanos() as Nanos;
    while let Some(&Due { at, who }) = line.plan.get(line.next.fetch_add(1, Ordering::Relaxed)) {
        sleep_until(line.began + Duration::from_nanos(at)).await;
        let sent = now();
        if sent - at > LATE.as_nanos() as Nanos {
            late += 1;
            continue;
        }
        let address = line.pods[line.pod].at();
        request.clear();
        write_request(&mut request, who);
        let asked = async {
            let mut wire = match open.take().filter(|(_, there)| *there == address) {
                Some((wire, _)) => wire,
                None => Wire::open(address).await?,
            };
            wire.send(&request).await?;
            let (status, stays) = wire.answer().await?;
            Ok::<_, std::io::Error>((status, stays.then_some((wire, address))))
        };
        let (status, next) = match timeout(LONGEST, asked).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) | Err(_) => (0, None),
        };
        open = next;
        seen.push(Seen { pod: line.pod, who, due: at, sent, answered: now(), status });
    }
    (seen, late)
}

/// One connection, and what was read of it ahead.
pub struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Wire {
    /// A new one.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn open(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, bytes: Vec::with_capacity(ANSWER) })
    }

    /// Sends these requests.
    ///
    /// # Errors
    /// It is closed.
    pub async fn send(&mut self, requests: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(requests).await
    }

    /// The next answer's status, and whether the connection stays open. All answers here have a length.
    ///
    /// # Errors
    /// It is closed, or what came is no such answer.
    pub async fn answer(&mut self) -> std::io::Result<(u16, bool)> {
        let end = loop {
            match memmem::find(&self.bytes, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.read().await?,
            }
        };
        let head = String::from_utf8_lossy(&self.bytes[..end]).to_ascii_lowercase();
        let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).map(str::trim);
        let malformed = || std::io::Error::other(format!("not an answer: {head}"));
        let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
        let length: usize = field("content-length:").and_then(|length| length.parse().ok()).ok_or_else(malformed)?;
        let stays = field("connection:") != Some("close");
        while self.bytes.len() < end + length {
            self.read().await?;
        }
        self.bytes.drain(..end + length);
        Ok((status, stays))
    }

    async fn read(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.bytes).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A request of `who`, behind what is there.
pub fn write_request(into: &mut Vec<u8>, who: u32) {
    into.extend_from_slice(b"GET /hot HTTP/1.1\r\nhost: fleet.test\r\nx-id: ");
    into.extend_from_slice(who.to_string().as_bytes());
    into.extend_from_slice(b"\r\n\r\n");
}

/// Identities of which the first is asked for most, the n-th a n-th of that (Zipf).
pub fn popular(count: u32, mut dice: Dice) -> impl FnMut() -> u32 {
    const STEPS: usize = 1 << 40;
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=count)
        .map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        })
        .collect();
    move || {
        let at = dice.below(STEPS) as f64 / STEPS as f64 * sum;
        sums.partition_point(|sum| *sum <= at).min(sums.len() - 1) as u32
    }
}

impl Log {
    /// Those of `who` that were let through.
    pub fn admitted(&self, who: u32) -> Vec<Admitted> {
        let admitted = |seen: &&Seen| seen.who == who && seen.status == 200;
        self.seen.iter().filter(admitted).map(|seen| Admitted { from: seen.sent, to: seen.answered }).collect()
    }

    /// How many had this status.
    pub fn count(&self, status: u16) -> usize {
        self.seen.iter().filter(|seen| seen.status == status).count()
    }

    /// The time, from when it was due to its answer, below which this share of those stayed that were due between the two.
    pub fn quantile(&self, share: f64, from: Nanos, to: Nanos) -> Duration {
        let answered = self.seen.iter().filter(|seen| seen.status != 0 && seen.due >= from && seen.due < to);
        let mut times: Vec<Nanos> = answered.map(|seen| seen.answered - seen.due).collect();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        Duration::from_nanos(times.get((last as f64 * share).round() as usize).copied().unwrap_or_default())
    }

    /// Of each pod, which share of what it answered it let through.
    pub fn shares(&self, pods: usize) -> Vec<f64> {
        let of = |pod: usize| {
            let answered = || self.seen.iter().filter(move |seen| seen.pod == pod && seen.status != 0);
            answered().filter(|seen| seen.status == 200).count() as f64 / answered().count().max(1) as f64
        };
        (0..pods).map(of).collect()
    }
}
