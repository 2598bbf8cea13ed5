//! Ways to Redis: TLS with an authority of its own, users and passwords, unix sockets, RESP3; and what is not Redis at all.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{
    Authority, Issued, PATIENCE, Redis, Scratch, Setup, Upstream, Weir, free_port, redis, redis_with, reply, upstream,
    weir, within_async,
};

const ROUTE: &str = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.ttl = '60s'\n";

/// The password of every user here.
pub const SECRET: &str = "s3cret";

const PAGE: &str = include_str!("../../docs/redis.md");

/// A user whose password is [`SECRET`], with the permissions that the documentation names.
pub fn add_user(redis: &Redis, name: &str) {
    add_user_by_line(redis, name, 0);
}

/// The same at a Sentinel.
pub fn add_user_of_sentinel(sentinel: &Redis, name: &str) {
    add_user_by_line(sentinel, name, 1);
}

fn add_user_by_line(redis: &Redis, name: &str, line: usize) {
    let line = PAGE.split("ACL SETUSER weir on >password ").nth(1 + line).expect("the page has the line");
    let line = line.split("```").next().expect("the block ends").replace("shop-prod", "it");
    let password = format!(">{SECRET}");
    let mut words = vec!["ACL", "SETUSER", name, "on", &password];
    words.extend(line.split_whitespace());
    redis.cli(&words);
}

/// What the page allows in addition, behind these words: `a Cluster`.
pub fn more_rights(of: &str) -> Vec<&'static str> {
    let words = PAGE.split(&format!("{of} `+")).nth(1).and_then(|rest| rest.split('`').next());
    let words = words.unwrap_or_else(|| panic!("the page has more rights for {of}"));
    words.split(" +").collect()
}

/// Allows a user more.
pub fn allow(redis: &Redis, name: &str, rights: &[&str]) {
    for right in rights {
        redis.cli(&["ACL", "SETUSER", name, &format!("+{right}")]);
    }
}

/// Answers with what was asked for.
pub fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    up
}

/// Two pods are one cache: what one has fetched, the other has from Redis, as soon as both are there.
pub async fn are_one(one: &Weir, other: &Weir, up: &Upstream) {
    let turn = AtomicUsize::new(up.total());
    within_async(PATIENCE, "they are one cache", async || {
        let path = format!("/{}", turn.fetch_add(1, Ordering::Relaxed));
        let stored = async || one.metric(r#"weir_redis_commands_total{command="store",result="ok"}"#).await;
        let before = stored().await;
        assert_eq!(one.get(&path).await.status, 200);
        let is_stored = async {
            while stored().await == before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(1), is_stored).await.is_err() {
            return false;
        }
        other.get(&path).await.header("cache-status").is_some_and(|status| status.contains("hit"))
    })
    .await;
}

/// Two pods that are one cache.
pub async fn two(setup: &Setup, up: &Upstream) -> (Weir, Weir) {
    let (one, other) = (setup.start().await, setup.start().await);
    are_one(&one, &other, up).await;
    (one, other)
}

struct Secured {
    redis: Redis,
    port: u16,
    scratch: Scratch,
    ca_file: String,
    authority: Authority,
}

/// A Redis that speaks TLS with this certificate, and wants one of its clients.
fn secured(certificate: impl Fn(&Authority) -> Issued) -> Secured {
    let (authority, scratch, port) = (Authority::new(), Scratch::new(), free_port());
    let ca_file = authority.put(&scratch);
    let (cert, key) = certificate(&authority).put(&scratch, "redis");
    let port_text = port.to_string();
    let redis = redis_with(&[
        "--tls-port",
        &port_text,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca_file,
        "--tls-auth-clients",
        "yes",
    ]);
    Secured { redis, port, scratch, ca_file, authority }
}

impl Secured {
    /// A pod that shows no certificate.
    fn nobody(&self, up: &Upstream, host: &str) -> Setup {
        weir(ROUTE)
            .to(up.url())
            .set("redis.url", format!("rediss://{host}:{}/0", self.port))
            .set("redis.namespace", "it")
            .set("redis.deadline", "500ms")
            .set("redis.tls.ca_file", self.ca_file.as_str())
    }

    fn client(&self, up: &Upstream, host: &str) -> Setup {
        let (cert, key) = self.authority.issue(&["weir"]).put(&self.scratch, "weir");
        self.nobody(up, host).set("redis.tls.cert", cert).set("redis.tls.key", key)
    }
}

#[tokio::test]
async fn over_tls_by_certificate_user_and_password_pods_are_one_cache() {
    let up = service();
    let secured = secured(|authority| authority.issue(&["localhost", "127.0.0.1"]));
    add_user(&secured.redis, "weir");
    secured.redis.cli(&["ACL", "SETUSER", "default", "-@all", "+xadd", "+xlen", "+info", "+acl", "+client", "+ping"]);
    let password = secured.scratch.write("password", &format!("{SECRET}\n")).display().to_string();
    let setup = secured.client(&up, "localhost").set("redis.user", "weir").set("redis.password_file", password);
    for protocol in ["resp2", "resp3"] {
        let (one, other) = two(&setup.clone().set("redis.protocol", protocol), &up).await;
        assert_eq!(other.get("/a").await.status, 200);
        assert_eq!(one.invalidate(r#"{"all": true}"#).await.status, 200);
        let before = up.total();
        within_async(PATIENCE, "the other knows", async || other.get("/a").await.status == 200 && up.total() > before)
            .await;
        let before = up.total();
        secured.redis.cli(&["XADD", "it:invalidate:in", "*", "all", "1"]);
        within_async(PATIENCE, "a foreign program is heard", async || {
            other.get("/a").await.status == 200 && up.total() > before
        })
        .await;
        within_async(PATIENCE, "it is drained", async || {
            secured.redis.cli(&["XLEN", "it:invalidate:in"]).trim() == "0"
        })
        .await;
        let reads = secured.redis.cli(&["INFO", "commandstats"]);
        let reads =
            reads.lines().find_map(|line| line.strip_prefix("cmdstat_xread:calls=")?.split(',').next()?.parse().ok());
        assert!(reads.unwrap_or(0) < 100, "{reads:?} questions to the door");
        are_one(&one, &other, &up).await;
    }
    assert_eq!(secured.redis.cli(&["ACL", "LOG"]).trim(), "", "nothing was refused");
}

/// The cause is named, requests are answered, and Redis is not asked.
#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named() {
    let other_name = |authority: &Authority| authority.issue(&["redis.example"]);
    let stranger = |_: &Authority| Authority::new().issue(&["localhost"]);
    let expired = |authority: &Authority| authority.issue_expired(&["localhost"]);
    let right = |authority: &Authority| authority.issue(&["localhost"]);
    type Certificate = Box<dyn Fn(&Authority) -> Issued>;
    let all: [(Certificate, &str, bool); 4] = [
        (Box::new(other_name), "not valid for name", true),
        (Box::new(stranger), "UnknownIssuer", true),
        (Box::new(expired), "expired", true),
        // Redis does not know who Weir is.
        (Box::new(right), "CertificateRequired", false),
    ];
    for (certificate, cause, has_own) in all {
        let up = service();
        let secured = secured(&*certificate);
        let setup = if has_own { secured.client(&up, "localhost") } else { secured.nobody(&up, "localhost") };
        let weir = setup.set("redis.startup_wait", "50ms").start().await;
        within_async(PATIENCE, cause, async || weir.output().iter().any(|line| line.contains(cause))).await;
        assert_eq!(weir.get("/a").await.status, 200);
        assert_eq!(weir.metric(r#"weir_redis_commands_total{result="ok"}"#).await, 0.0, "{cause}");
    }
}

#[tokio::test]
async fn a_name_that_the_certificate_has_may_be_said() {
    let up = service();
    let secured = secured(|authority| authority.issue(&["redis.example"]));
    two(&secured.client(&up, "127.0.0.1").set("redis.tls.server_name", "redis.example"), &up).await;
}

/// Whoever listens where Redis is meant to be, speaks no TLS, and notes what it hears.
pub struct Eavesdropper {
    /// Where it listens.
    pub at: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Eavesdropper {
    /// A new one.
    pub fn new() -> Self {
        let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at: SocketAddr = listener.local_addr().expect("an address");
        let notes = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || {
                    let _ = std::io::Write::write_all(&mut &stream, b"-ERR this is no TLS\r\n");
                    let mut all = Vec::new();
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let _ = (&stream).read_to_end(&mut all);
                    notes.lock().expect("no panic while held").push(all);
                });
            }
        });
        Self { at, heard }
    }

    /// Waits until it was called several times, and sees that nothing but the beginning of a handshake was heard.
    pub async fn heard_nothing(&self) {
        within_async(PATIENCE, "it tries again and again", async || {
            self.heard.lock().expect("no panic while held").len() >= 3
        })
        .await;
        for said in self.heard.lock().expect("no panic while held").iter() {
            // A record of TLS that says hello (RFC 8446 section 5.1), and in it no word of Redis'.
            assert_eq!(said.first(), Some(&0x16));
            let text = String::from_utf8_lossy(said);
            let words = ["AUTH", "HELLO", "PING", "CLUSTER", "SENTINEL", SECRET];
            assert!(words.iter().all(|word| !text.contains(word)));
        }
    }
}

#[tokio::test]
async fn nothing_is_said_in_plain_text_to_whom_speaks_no_tls() {
    let (up, ear, authority, scratch) = (service(), Eavesdropper::new(), Authority::new(), Scratch::new());
    let weir = weir(ROUTE)
        .to(up.url())
        .set("redis.url", format!("rediss://user:{SECRET}@{}/0", ear.at))
        .set("redis.namespace", "it")
        .set("redis.startup_wait", "50ms")
        .set("redis.tls.ca_file", authority.put(&scratch))
        .start()
        .await;
    ear.heard_nothing().await;
    assert_eq!(weir.get("/a").await.status, 200);
    assert!(weir.output().iter().any(|line| line.contains("there is no TLS with it")), "{:?}", weir.output());
}

#[tokio::test]
async fn over_a_unix_socket_pods_are_one_cache() {
    let (up, scratch) = (service(), Scratch::new());
    let socket = scratch.path().join("redis.sock").display().to_string();
    let _redis = redis_with(&["--unixsocket", &socket]);
    let setup = weir(ROUTE).to(up.url()).set("redis.url", format!("unix://{socket}")).set("redis.namespace", "it");
    two(&setup.set("redis.deadline", "500ms"), &up).await;
}

/// A password is changed while Weir runs: a reload is enough.
#[tokio::test]
async fn a_new_password_is_for_new_connections() {
    let (up, redis, scratch) = (service(), redis(), Scratch::new());
    add_user(&redis, "weir");
    let password = scratch.write("password", SECRET);
    let setup = weir(ROUTE)
        .to(up.url())
        .redis(&redis)
        .set("redis.deadline", "500ms")
        .set("redis.user", "weir")
        .set("redis.password_file", password.display().to_string());
    let (one, other) = two(&setup, &up).await;
    redis.cli(&["ACL", "SETUSER", "weir", "resetpass", ">another"]);
    redis.cli(&["CLIENT", "KILL", "USER", "weir"]);
    let refused = async || one.output().iter().any(|line| line.contains("WRONGPASS"));
    within_async(PATIENCE, "the old one is refused", refused).await;
    std::fs::write(&password, "another").unwrap();
    are_one(&one, &other, &up).await;
}
