//! Servers of the tests' own that answer as a test says, in the protocol of Redis.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::bus::probe;
use super::follow::follow;
use super::tests::eventually;
use super::{Redis, Shared, Unavailable};
use crate::clock::{Clock, Stopwatch};
use crate::config::{self, Address, ReadFrom};
use crate::metrics::Metrics;

/// What a request may wait for Redis, where a test says nothing else.
pub(super) const DEADLINE: Duration = Duration::from_millis(100);

/// Says for a command's words what is answered, whole; nothing: silence, for as long as the connection lasts.
type Answers = dyn Fn(&[String]) -> Option<String> + Send + Sync;

/// What every server says to what it was told nothing of.
pub(super) const OK: &str = "+OK\r\n";

pub(super) const NIL: &str = "$-1\r\n";

/// A port that is ours, and refuses while nobody listens there.
pub(super) struct Place {
    port: u16,
    held: Mutex<Option<TcpSocket>>,
}

/// A server; ends when dropped, with its connections.
pub(super) struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

/// What all servers of a cluster say of it.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<String>>);

impl Told {
    /// These masters have these slots.
    pub(super) fn say(&self, masters: &[(&Place, &str)]) {
        let line = |(i, (place, slots)): (usize, &(&Place, &str))| {
            format!("id{i} {}@1 master - 0 0 {} connected {slots}\n", place.text(), i + 1)
        };
        *self.0.lock().unwrap() = masters.iter().enumerate().map(line).collect();
    }

    pub(super) fn replica_too(&self, place: &Place, of: usize) {
        *self.0.lock().unwrap() += &format!("copy {}@1 slave id{of} 0 0 1 connected\n", place.text());
    }

    /// Answers what everybody answers alike, and leaves GET to `get`.
    pub(super) fn and(
        &self,
        get: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> impl Fn(&[String]) -> Option<String> + Send + Sync + 'static {
        let told = self.clone();
        move |words| match words[0].as_str() {
            "CLUSTER" => Some(bulk(&told.0.lock().unwrap())),
            "GET" => get(&words[1]),
            _ => Some(OK.to_owned()),
        }
    }
}

/// A pod's way to a Redis, followed and probed for as long as this lasts.
pub(super) struct Pod {
    pub(super) shared: Arc<Shared>,
    pub(super) redis: Redis,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Pod {
    pub(super) fn of(servers: config::Servers, read_from: ReadFrom) -> Self {
        Self::within(DEADLINE, servers, read_from)
    }

    pub(super) fn within(deadline: Duration, servers: config::Servers, read_from: ReadFrom) -> Self {
        let config = config::Redis {
            servers,
            database: 0,
            protocol: config::Resp::Resp2,
            access: config::Access::default(),
            namespace: "shop-prod".to_owned(),
            deadline,
            startup_wait: Duration::from_secs(5),
            bus: config::Bus::Publish,
            max_value: 1 << 18,
            key_secret: config::Secret::new("secret"),
            replicas: 1,
            read_from,
            expected_entries: 0,
            expected_body: 0,
            expected_identities: 0,
        };
        let shared = Shared::new(&config, Metrics::new(prometheus::Registry::new()), Clock::system());
        let redis = Redis::new(Arc::clone(&shared));
        let tasks = [tokio::spawn(follow(Arc::clone(&shared))), tokio::spawn(probe(Arc::clone(&shared)))];
        Self { shared, redis, tasks }
    }

    pub(super) fn cluster(seeds: &[&Place]) -> Self {
        Self::patient(DEADLINE, seeds)
    }

    pub(super) fn patient(deadline: Duration, seeds: &[&Place]) -> Self {
        let seeds = seeds.iter().map(|seed| seed.address()).collect();
        Self::within(deadline, config::Servers::Cluster { seeds }, ReadFrom::Master)
    }

    pub(super) fn sentinel(sentinels: &[&Place]) -> Self {
        let sentinels = sentinels.iter().map(|sentinel| sentinel.address()).collect();
        Self::of(config::Servers::Sentinel { sentinels, master: "shop".to_owned() }, ReadFrom::Master)
    }

    pub(super) async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Unavailable> {
        self.redis.get(key, &mut self.redis.budget()).await
    }

    pub(super) async fn works(&self, key: &[u8]) -> bool {
        self.get(key).await.is_ok()
    }

    pub(super) async fn attaches(&self, key: &[u8]) -> Duration {
        let watch = Stopwatch::start();
        eventually("attached", async || self.works(key).await).await;
        watch.elapsed()
    }

    pub(super) fn is_open(&self, place: &Place) -> bool {
        self.shared.topology.node(&place.address()).breaker.is_open()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// A text as a string of any length.
pub(super) fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// A list of texts.
pub(super) fn list(texts: &[&str]) -> String {
    let items: String = texts.iter().map(|text| bulk(text)).collect();
    format!("*{}\r\n{items}", texts.len())
}

impl Place {
    /// A free one.
    pub(super) fn free() -> Self {
        let socket = bound(0);
        Self { port: socket.local_addr().unwrap().port(), held: Mutex::new(Some(socket)) }
    }

    pub(super) fn address(&self) -> Address {
        Address::Tcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// As Redis writes it.
    pub(super) fn text(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn port(&self) -> String {
        self.port.to_string()
    }

    /// Answers there from now on.
    pub(super) fn listen(&self, answers: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static) -> Fake {
        let socket = self.held.lock().unwrap().take().unwrap_or_else(|| bound(self.port));
        let listener = socket.listen(64).unwrap();
        let (asked, answers): (_, Arc<Answers>) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(answers));
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, Arc::clone(&answers), Arc::clone(&seen)));
            }
        });
        Fake { asked, task }
    }
}

impl Fake {
    /// Nobody listens there any more once this returns.
    pub(super) async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// How many commands came that begin with this.
    pub(super) fn count(&self, start: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|words| words.starts_with(start)).count()
    }
}

fn bound(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    socket
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, answers: Arc<Answers>, asked: Arc<Mutex<Vec<String>>>) {
    let (read, mut write) = client.into_split();
    let mut read = BufReader::new(read);
    while let Some(words) = command(&mut read).await {
        asked.lock().unwrap().push(words.join(" "));
        let Some(answer) = answers(&words) else { continue };
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn command(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<String>> {
    let count = number(read).await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(read).await? + 2];
        read.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Some(words)
}

/// What stands in a line behind its first character.
async fn number(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    line.trim_end().get(1..)?.parse().ok()
}
