//! G8 under load: rolling restarts and reloads, over HTTP/1 and HTTP/2 at once, fail no request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::caching::stored;
use crate::harness::{Connection, H2, PATIENCE, get, scale, within_async};
use crate::life::{service, setup};

/// Clients of each protocol; each asks for one thing after the other.
const CLIENTS: usize = 8;

/// Requests that must be answered between one event and the next, so that every event meets some under way.
const BETWEEN: usize = 100;

/// Clients that ask without a pause, each on its connection for as long as that is kept, and open the next where new ones go.
struct Crowd {
    shared: Arc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    over: AtomicBool,
    answered: AtomicUsize,
    opened: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Crowd {
    fn begin(target: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            over: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            failed: Mutex::default(),
        });
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            clients.push(tokio::spawn(Arc::clone(&shared).over_http1(client)));
            clients.push(tokio::spawn(Arc::clone(&shared).over_http2(client)));
        }
        Self { shared, clients }
    }

    /// New connections go there from now on.
    fn aim(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("no panic while held") = target;
    }

    /// Waits until some more requests were answered.
    async fn works(&self) {
        let before = self.shared.answered.load(Ordering::SeqCst);
        within_async(PATIENCE, "the clients are answered", async || {
            self.shared.answered.load(Ordering::SeqCst) >= before + BETWEEN
                || !self.shared.failed.lock().expect("no panic while held").is_empty()
        })
        .await;
    }

    /// Ends it and says what came of it.
    async fn end(self, what: &str) {
        self.shared.over.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        let answered = self.shared.answered.load(Ordering::SeqCst);
        let failed = self.shared.failed.lock().expect("no panic while held");
        let opened = self.shared.opened.load(Ordering::SeqCst);
        eprintln!("{what}: {answered} answered over {opened} connections, {} failed", failed.len());
        assert!(failed.is_empty(), "{failed:?}");
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || !self.failed.lock().expect("no panic while held").is_empty()
    }

    fn target(&self) -> SocketAddr {
        self.opened.fetch_add(1, Ordering::SeqCst);
        *self.target.lock().expect("no panic while held")
    }

    /// One path of two is answered from the cache.
    fn path(&self, client: usize, number: usize) -> String {
        if number.is_multiple_of(2) { format!("/cached/{}", number % 50) } else { format!("/{client}/{number}") }
    }

    fn count(&self, what: &str, status: u16) {
        self.answered.fetch_add(1, Ordering::SeqCst);
        if status != 200 {
            self.failed.lock().expect("no panic while held").push(format!("{what}: {status}"));
        }
    }

    async fn over_http1(self: Arc<Self>, client: usize) {
        let mut kept: Option<Connection> = None;
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match Connection::try_open(self.target()).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        return self
                            .failed
                            .lock()
                            .expect("no panic while held")
                            .push(format!("HTTP/1 connect: {error}"));
                    }
                },
            };
            match connection.try_send(&get(&self.path(client, number))).await {
                Ok(answer) => self.count("HTTP/1", answer.status),
                Err(error) => self.failed.lock().expect("no panic while held").push(format!("HTTP/1: {error}")),
            }
            kept = Some(connection).filter(|connection| connection.reusable);
        }
    }

    async fn over_http2(self: Arc<Self>, client: usize) {
        let mut connection = H2::open(self.target()).await;
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let path = self.path(client, number);
            // What was not sent because the connection said goodbye belongs to the next (RFC 9113 section 6.8).
            let answer = loop {
                match connection.try_get(&path).await {
                    Ok(Some(answer)) => break Ok(answer),
                    Ok(None) => connection = H2::open(self.target()).await,
                    Err(error) => break Err(error),
                }
            };
            match answer {
                Ok(answer) => self.count("HTTP/2", answer.status),
                Err(error) => self.failed.lock().expect("no panic while held").push(format!("HTTP/2: {error}")),
            }
        }
    }
}

#[tokio::test]
async fn rolling_restarts_fail_no_request() {
    let up = service();
    let setup = setup(&up);
    let setup = setup.set("server.lame_duck", "300ms");
    let mut old = setup.start().await;
    let crowd = Crowd::begin(old.proxy);
    let rounds = scale("WEIR_RESTARTS", 3);
    for _ in 0..rounds {
        let new = setup.start().await;
        crowd.works().await;
        old.sigterm();
        within_async(PATIENCE, "unready", async || old.admin("/readyz").await.status == 503).await;
        crowd.aim(new.proxy);
        assert_eq!(old.ended(PATIENCE).await, Some(0));
        old = new;
    }
    crowd.works().await;
    crowd.end(&format!("{rounds} rolling restarts")).await;
}

#[tokio::test]
async fn reloads_keep_requests_cache_and_buckets() {
    let up = service();
    let setup = setup(&up);
    let weir = setup.start().await;
    stored(&weir, "/cached/keep").await;
    for _ in 0..2 {
        assert_eq!(weir.get("/limited").await.status, 200);
    }
    let good = std::fs::read_to_string(&weir.config).unwrap();
    let crowd = Crowd::begin(weir.proxy);
    let rounds = scale("WEIR_RELOADS", 12);
    let (mut rejected, mut in_force) = (0.0, String::new());
    for round in 0..rounds {
        let bad = match round % 4 {
            1 => Some(format!("{good}\n[[route]]\nname = 'broken'\npath = 'no slash'\nnonsense = 1\n")),
            // Larger than any configuration may be.
            3 => Some(format!("{good}\n{}", "# a comment\n".repeat(800_000))),
            _ => None,
        };
        let is_bad = bad.is_some();
        let text = bad.unwrap_or_else(|| {
            in_force = round.to_string();
            format!("{good}\n[[route]]\nname = 'extra'\npath = '/extra'\nresponse.set = {{ x-round = '{round}' }}\n")
        });
        std::fs::write(&weir.config, text).unwrap();
        weir.sighup();
        if is_bad {
            rejected += 1.0;
            weir.metric_reaches("weir_config_reloads_total{result=\"rejected\"}", rejected).await;
        }
        within_async(PATIENCE, "the last good file is in force", async || {
            weir.get("/extra").await.header("x-round") == Some(in_force.as_str())
        })
        .await;
        crowd.works().await;
    }
    crowd.end(&format!("{rounds} reloads")).await;
    assert!(weir.get("/cached/keep").await.is_hit(), "the cache was kept");
    assert_eq!(up.count("/cached/keep"), 1);
    assert_eq!(weir.get("/limited").await.status, 200, "the third of three");
    assert_eq!(weir.get("/limited").await.status, 429, "the bucket was kept");
    let log = weir.output().join("\n");
    assert!(log.contains("no slash") && log.contains("larger than"), "the log says what was wrong");
}

#[tokio::test]
async fn the_configuration_in_force_is_shown_without_secrets() {
    let up = service();
    let setup = setup(&up);
    let setup = setup.set("admin.token_file", "token").env("WEIR__SERVER__DRAIN", "7s");
    let weir = setup.beside("token", "s3cret\n").start().await;
    assert_eq!(weir.admin("/config").await.status, 401, "it needs the token");
    let asked = get("/config").header("host", "localhost").header("authorization", "Bearer s3cret");
    let shown = asked.send(weir.admin).await.text().to_owned();
    let table: toml::Table = shown.parse().expect("TOML");
    assert_eq!(table["server"]["drain"].as_str(), Some("7s"));
    assert_eq!(table["route"][0]["name"].as_str(), Some("cached"));
    assert!(!shown.contains("s3cret"), "{shown}");
    let good = std::fs::read_to_string(&weir.config).unwrap();
    std::fs::write(&weir.config, good.replace("10m", "11m").replace("[upstream]", "[upstream]\nretries = 2")).unwrap();
    weir.sighup();
    within_async(PATIENCE, "the new one is shown", async || {
        let shown = asked.send(weir.admin).await.text().to_owned();
        shown.contains("11m") && shown.contains("# upstream.retries: what is shown here begins with the next start")
    })
    .await;
}
