use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use prometheus::Registry;

use super::*;
use crate::clock::{Clock, Stopwatch};
use crate::config;
use crate::metrics::Metrics;

/// A redis-server of the test's own, on a socket in a directory of its own; ended and removed on drop.
pub(crate) struct Server {
    directory: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// Not yet running.
    pub(crate) fn down() -> Self {
        let directory = std::env::temp_dir().join(format!("weir-{:016x}", random()));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory, child: None }
    }

    /// Running and answering.
    pub(crate) async fn up() -> Self {
        let mut server = Self::down();
        server.start().await;
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// Starts it, empty.
    pub(crate) async fn start(&mut self) {
        // Another version of it, where one is named (`make redis-versions`).
        let program = std::env::var_os("WEIR_REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let child = Command::new(program)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(&self.directory)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let shared = self.shared();
        eventually("redis-server answers", async || Dedicated::open(&shared).await.is_ok()).await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = std::fs::remove_file(self.socket());
    }

    /// SIGSTOP, or SIGCONT.
    pub(crate) fn freeze(&self, freeze: bool) {
        let signal = if freeze { "-STOP" } else { "-CONT" };
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The process' part, for a pod that uses this server.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared_with(&self.config())
    }

    /// The same, as if this server were a Cluster: scripts touch the keys of one slot only.
    pub(crate) fn sharded(&self) -> Arc<Shared> {
        self.sharded_with(&self.config())
    }

    pub(crate) fn sharded_with(&self, config: &config::Redis) -> Arc<Shared> {
        let mut shared = self.shared_with(config);
        Arc::get_mut(&mut shared).expect("nobody else has it").is_sharded = true;
        shared
    }

    pub(crate) fn shared_with(&self, config: &config::Redis) -> Arc<Shared> {
        Shared::new(config, Metrics::new(Registry::new()), Clock::system())
    }

    fn shared_within(&self, deadline: Duration) -> Arc<Shared> {
        self.shared_with(&config::Redis { deadline, ..self.config() })
    }

    pub(crate) fn config(&self) -> config::Redis {
        config::Redis {
            servers: config::Servers::Standalone(config::Address::Unix(self.socket())),
            database: 0,
            protocol: config::Resp::Resp2,
            access: config::Access::default(),
            namespace: "shop-prod".to_owned(),
            deadline: Duration::from_millis(100),
            startup_wait: Duration::from_secs(5),
            bus: config::Bus::Publish,
            max_value: 1 << 18,
            key_secret: config::Secret::new("secret"),
            replicas: 1,
            read_from: config::ReadFrom::Master,
            expected_entries: 0,
            expected_body: 0,
            expected_identities: 0,
        }
    }

    /// Sends a command as a foreign program would.
    pub(crate) async fn command(&self, parts: &[&str]) -> Reply {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        self.command_bytes(&parts).await
    }

    pub(crate) async fn connection(&self) -> Dedicated {
        Dedicated::open(&self.shared()).await.unwrap()
    }

    pub(crate) async fn command_bytes(&self, parts: &[&[u8]]) -> Reply {
        self.connection().await.command(parts, Duration::from_secs(5)).await.unwrap()
    }
}

/// As if `server` had taken the place of the one that was known.
pub(crate) fn turn_to(shared: &Shared, server: &Server) {
    let address = config::Address::Unix(server.socket());
    shared.topology.adopt(&topology::Found { masters: vec![(address, Vec::new())], ..topology::Found::default() });
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Waits until `holds`, up to ten seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let watch = Stopwatch::start();
    while !holds().await {
        assert!(watch.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

use super::bus::{Dedicated, Subscription, probe};

static ECHO: Script = Script { name: "echo", source: "return {KEYS[1], ARGV[1], tonumber(ARGV[2]), false}" };
static FAIL: Script = Script { name: "fail", source: "return redis.error_reply('OOM no room')" };

async fn works(redis: &Redis) -> bool {
    redis.get(b"absent", &mut Budget::new(Duration::from_millis(50))).await == Ok(None)
}

#[tokio::test]
async fn scripts_are_loaded_when_redis_does_not_have_them() {
    let server = Server::up().await;
    let redis = Redis::new(server.shared());
    let expected = Reply::Array(vec![
        Reply::Bytes(Bytes::from_static(b"k")),
        Reply::Bytes(Bytes::from_static(b"a")),
        Reply::Int(7),
        Reply::Nil,
    ]);
    for flush in [false, true, false] {
        if flush {
            server.command(&["SCRIPT", "FLUSH"]).await;
        }
        let reply = redis.run(&ECHO, &[b"k"], &[b"a", b"7"], &mut Budget::new(Duration::from_secs(2))).await;
        assert_eq!(reply, Ok(expected.clone()));
    }
    let refused = redis.run(&FAIL, &[b"k"], &[], &mut Budget::new(Duration::from_secs(2))).await;
    assert_eq!(refused, Err(Unavailable::Refused("OOM".to_owned())));
}

#[tokio::test]
async fn down_at_start_costs_nothing_and_is_attached_when_it_comes_up() {
    let mut server = Server::down();
    let shared = server.shared();
    let redis = Redis::new(Arc::clone(&shared));
    let task = tokio::spawn(probe(Arc::clone(&shared)));
    assert_eq!(redis.get(b"k", &mut redis.budget()).await, Err(Unavailable::NotSent));
    assert!(shared.is_away(), "a refused connection says enough");
    server.start().await;
    let watch = Stopwatch::start();
    eventually("attached", async || works(&redis).await).await;
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    task.abort();
}

#[tokio::test]
async fn a_frozen_redis_opens_the_breaker_within_a_second_and_is_back_within_two() {
    let server = Server::up().await;
    let shared = server.shared_within(Duration::from_millis(20));
    let redis = Redis::new(Arc::clone(&shared));
    let task = tokio::spawn(probe(Arc::clone(&shared)));
    eventually("works", async || works(&redis).await).await;
    server.freeze(true);
    let watch = Stopwatch::start();
    eventually("open", async || {
        let one = Stopwatch::start();
        let _ = redis.get(b"k", &mut redis.budget()).await;
        assert!(one.elapsed() < Duration::from_millis(200), "far beyond its budget: {:?}", one.elapsed());
        shared.is_away()
    })
    .await;
    assert!(watch.elapsed() < Duration::from_secs(1), "{:?}", watch.elapsed());
    let one = Stopwatch::start();
    assert_eq!(redis.get(b"k", &mut redis.budget()).await, Err(Unavailable::NotSent));
    assert!(one.elapsed() < Duration::from_millis(20), "an open breaker costs nothing");
    server.freeze(false);
    let watch = Stopwatch::start();
    eventually("back", async || works(&redis).await).await;
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    task.abort();
}

#[tokio::test]
async fn an_answer_that_this_process_was_too_busy_to_look_for_is_no_trouble_of_redis() {
    let server = Server::up().await;
    let shared = server.shared_within(Duration::from_millis(150));
    let redis = Redis::new(Arc::clone(&shared));
    eventually("works", async || works(&redis).await).await;
    // More of them, and for longer, than would open it.
    let mut missed = 0;
    for _ in 0..8 {
        let redis = redis.clone();
        let asking = async move {
            let mut budget = redis.budget();
            let busy = async {
                // The question is on its way by then, and hardly ever answered.
                tokio::task::yield_now().await;
                std::thread::sleep(Duration::from_millis(200));
            };
            let (answer, ()) = tokio::join!(redis.get(b"k", &mut budget), busy);
            assert_eq!(answer, Ok(None));
            if budget.was_missed() {
                assert_eq!(redis.get(b"k", &mut budget).await, Err(Unavailable::Timeout), "nothing is left");
            }
            budget.was_missed()
        };
        missed += usize::from(tokio::spawn(asking).await.unwrap());
    }
    assert!(missed >= 4, "only {missed} were missed");
    assert!(!shared.is_away());
}

#[tokio::test]
async fn a_connection_that_ends_while_nobody_uses_it_is_noticed_and_costs_no_request_its_answer() {
    let mut server = Server::up().await;
    let shared = server.shared_within(Duration::from_secs(5));
    let redis = Redis::new(Arc::clone(&shared));
    let echo = async || redis.run(&ECHO, &[b"k"], &[b"v", b"1"], &mut redis.budget()).await.is_ok();
    eventually("works", echo).await;
    server.kill();
    let noticed = tokio::time::timeout(Duration::from_secs(2), shared.topology.doubted()).await;
    assert_eq!(noticed, Ok(()), "who has what is looked at");
    server.start().await;
    assert!(echo().await, "by another connection");
}

#[tokio::test]
async fn a_killed_redis_is_used_again_when_it_is_back() {
    let mut server = Server::up().await;
    let shared = server.shared();
    let redis = Redis::new(Arc::clone(&shared));
    let task = tokio::spawn(probe(Arc::clone(&shared)));
    eventually("works", async || works(&redis).await).await;
    server.kill();
    eventually("open", async || !works(&redis).await && shared.is_away()).await;
    server.start().await;
    let watch = Stopwatch::start();
    eventually("back", async || works(&redis).await).await;
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    let reply = redis.run(&ECHO, &[b"k"], &[b"a", b"7"], &mut Budget::new(Duration::from_secs(2))).await;
    assert!(reply.is_ok(), "its scripts are gone, and loaded again: {reply:?}");
    task.abort();
}

#[tokio::test]
async fn a_client_that_leaves_is_no_trouble() {
    let server = Server::up().await;
    let shared = server.shared();
    let redis = Redis::new(Arc::clone(&shared));
    eventually("works", async || works(&redis).await).await;
    server.freeze(true);
    let until = Stopwatch::start();
    while until.elapsed() < Duration::from_millis(300) {
        let mut budget = redis.budget();
        let left = tokio::time::timeout(Duration::from_millis(1), redis.get(b"k", &mut budget)).await;
        assert!(left.is_err());
    }
    assert!(!shared.is_away());
    server.freeze(false);
}

#[tokio::test]
async fn a_subscription_delivers_in_order_and_says_when_it_ended() {
    let server = Server::up().await;
    let shared = server.shared();
    let mut subscription = Subscription::open(&shared, &["a".to_owned(), "b".to_owned()], None).await.unwrap();
    for (channel, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
        server.command(&["PUBLISH", channel, text]).await;
        let message = subscription.next().await.unwrap();
        assert_eq!((&message.channel[..], &message.payload[..]), (channel.as_bytes(), text.as_bytes()));
    }
    assert!(subscription.is_alive(Duration::from_secs(2)).await);
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert!(subscription.next().await.is_none());
}

/// Stands between client and server; `swallow` ends the forwarding on every connection that there is, and closes none.
struct Relay {
    address: std::net::SocketAddr,
    swallow: tokio::sync::watch::Sender<u32>,
}

impl Relay {
    async fn before(server: &Server) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (swallow, seen) = tokio::sync::watch::channel(0);
        let socket = server.socket();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut swallowed = seen.clone();
                swallowed.mark_unchanged();
                let mut server = tokio::net::UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        Ok(()) = swallowed.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, swallow }
    }
}

#[tokio::test]
async fn connections_whose_packets_are_swallowed_are_replaced() {
    let server = Server::up().await;
    let relay = Relay::before(&server).await;
    let mut config = server.config();
    let (host, port) = (relay.address.ip().to_string(), relay.address.port());
    config.servers = config::Servers::Standalone(config::Address::Tcp { host, port });
    config.deadline = Duration::from_millis(20);
    let shared = server.shared_with(&config);
    let redis = Redis::new(Arc::clone(&shared));
    let task = tokio::spawn(probe(Arc::clone(&shared)));
    for round in 1..4 {
        eventually("works", async || works(&redis).await).await;
        relay.swallow.send_replace(round);
        assert_eq!(redis.get(b"k", &mut redis.budget()).await, Err(Unavailable::Timeout));
        let watch = Stopwatch::start();
        eventually("works again", async || works(&redis).await).await;
        assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    }
    task.abort();
}

#[test]
fn keys_lie_together_unless_they_are_spread_over_slots() {
    let server = Server::down();
    let keys: [&[u8]; 3] = [b"a:{1}", b"a:{2}", b"b:{1}"];
    assert_eq!(server.shared().groups(&keys), None);
    let sharded = server.sharded();
    let mut groups = sharded.groups(&keys).unwrap();
    groups.sort();
    assert_eq!(groups, [vec![0, 2], vec![1]]);
    assert_eq!(sharded.groups(&keys[..1]), None);
    assert_eq!(sharded.groups(&[b"a:{1}", b"b:{1}"]), None, "one identity");
    assert!(sharded.apart(Metrics::new(Registry::new())).groups(&keys).is_some());
}
