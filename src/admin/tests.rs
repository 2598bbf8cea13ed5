use std::io::{Read, Write};
use std::net::TcpStream as Tcp;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::Registry;
use serde_json::{Value, json};

use super::client::{Client, ClientError, Form, Wait};
use super::*;
use crate::invalidation::Position;
use crate::limit::view::Who;

/// Keeps what it is told, and answers as it is set.
#[derive(Default)]
struct Doors {
    orders: Mutex<Vec<Order>>,
    unlogged: AtomicBool,
}

impl Invalidate for Doors {
    fn confirmed(&self, _: Position, wait: Option<Duration>) -> Confirming<'_> {
        let silent = if wait.is_some() { vec!["web-1".to_owned()] } else { Vec::new() };
        Box::pin(std::future::ready(Confirmation { is_complete: silent.is_empty(), pods: 2, silent }))
    }

    fn submit<'a>(&'a self, order: &'a Order) -> Submission<'a> {
        Box::pin(async move {
            if order.tags.is_empty() {
                return Err(SyntaxError::new("the order names nothing", "name a tag"));
            }
            let mut orders = self.orders.lock().unwrap();
            orders.push(order.clone());
            let position = Position { incarnation: 0xab, seq: orders.len() as u64 };
            Ok(Receipt { position, logged: !self.unlogged.load(Ordering::Relaxed) })
        })
    }
}

/// Says what it was asked.
struct Echo;

impl Explain for Echo {
    fn explain<'a>(&'a self, question: &'a Question, json: bool) -> Explanation<'a> {
        Box::pin(async move {
            if question.url == "?" {
                return Err(SyntaxError::new("url: it is none", "write one"));
            }
            Ok(format!("{} {} {json}\n", question.method, question.url))
        })
    }
}

impl Limits for Echo {
    fn list(&self) -> Value {
        json!({ "limits": [] })
    }

    fn state<'a>(&'a self, asked: &'a Asked) -> Viewed<'a> {
        let why = SyntaxError::new("as it was asked", "ask otherwise");
        Box::pin(std::future::ready(match &*asked.limit {
            "unknown" => Err(Problem::Unknown(why)),
            "wrong" => Err(Problem::Wrong(why)),
            "away" => Err(Problem::Redis(why)),
            name => Ok(json!({ "limit": name, "who": format!("{:?}", asked.who) })),
        }))
    }

    fn reset<'a>(&'a self, asked: &'a Asked) -> Viewed<'a> {
        Box::pin(std::future::ready(Ok(json!({ "reset": asked.limit }))))
    }
}

struct Port {
    address: SocketAddr,
    doors: Arc<Doors>,
    token: Token,
    readiness: Readiness,
    drained: watch::Receiver<bool>,
    serving: Serving,
}

impl Port {
    fn open() -> Self {
        let bound = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = bound.address();
        let (drain, drained) = watch::channel(false);
        let (doors, token, readiness) = (Arc::new(Doors::default()), Token::default(), Readiness::new());
        let state = AdminState {
            metrics: Metrics::new(Registry::new()),
            clock: Clock::fixed(1_000_000),
            invalidation: Arc::clone(&doors) as Arc<dyn Invalidate>,
            explain: Arc::new(Echo),
            limits: Arc::new(Echo),
            config: Arc::new(ArcSwap::from_pointee(String::from("[upstream]\n"))),
            token: Arc::clone(&token),
            readiness: readiness.clone(),
            condition: Box::new(|| vec!["[!] redis bus: cut".to_owned()]),
            drain,
        };
        Self { address, doors, token, readiness, drained, serving: bound.serve(state).unwrap() }
    }

    /// Status, head and body of one exchange; `head` are further field lines.
    fn ask(&self, line: &str, head: &str, body: &str) -> (u16, String, String) {
        let mut stream = Tcp::connect(self.address).unwrap();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let host = if head.to_ascii_lowercase().contains("host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        write!(stream, "{line} HTTP/1.1\r\n{host}{head}{length}Connection: close\r\n\r\n{body}").unwrap();
        read_answer(&mut stream)
    }

    fn get(&self, target: &str) -> (u16, String, String) {
        self.ask(&format!("GET {target}"), "", "")
    }

    fn order(&self, body: &Value) -> (u16, Value) {
        let (status, _, answer) = self.ask("POST /invalidate", "", &body.to_string());
        (status, serde_json::from_str(&answer).unwrap())
    }

    fn client(&self, token: Option<&str>) -> Client {
        Client::new(&format!("http://{}", self.address), token.map(Secret::new).as_ref()).unwrap()
    }
}

fn read_answer(stream: &mut Tcp) -> (u16, String, String) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
}

#[test]
fn metrics_are_open_and_promtool_accepts_them() {
    let port = Port::open();
    let (status, head, page) = port.get("/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(page.contains("# HELP weir_build_info ") && page.contains("process_cpu_seconds_total"), "{page}");
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else { return };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success());
}

#[test]
fn probes_tell_live_from_ready() {
    let port = Port::open();
    let blocker = port.readiness.block("redis");
    assert_eq!(port.get("/livez").0, 200);
    let (status, _, body) = port.get("/readyz");
    assert_eq!((status, body.as_str()), (503, "not ready: redis\n"));
    drop(blocker);
    assert_eq!(port.get("/readyz").2, "ok\n");
    let listener = port.readiness.block("listener");
    assert_eq!(
        port.get("/readyz?verbose").2,
        "not ready: listener\n[+] redis\n[-] listener\n[+] not draining\n[!] redis bus: cut\n"
    );
    drop(listener);
    assert_eq!(port.ask("HEAD /readyz", "", "").0, 200);
}

#[test]
fn the_version_is_json() {
    let (status, _, body) = Port::open().get("/version");
    let version: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &version["version"]), (200, &json!(env!("CARGO_PKG_VERSION"))));
}

#[test]
fn drain_makes_unready_and_tells_the_process() {
    let port = Port::open();
    assert_eq!(port.ask("PUT /drain", "", "").0, 405);
    assert!(port.readiness.ready());
    assert_eq!(port.ask("POST /drain", "", "").0, 200);
    assert!(*port.drained.borrow());
    let (status, _, body) = port.get("/readyz");
    assert_eq!((status, body.as_str()), (503, "not ready: draining\n"));
    assert_eq!(port.get("/livez").0, 200);
    assert_eq!(port.get("/drain").0, 200, "a hook that can only GET, and twice is once");
}

#[test]
fn an_order_is_submitted_and_its_place_told() {
    let port = Port::open();
    let (status, answer) = port.order(&json!({ "tags": ["product:7"], "soft": true, "wait": "all" }));
    let place = |seq| json!({ "seq": seq, "incarnation": "00000000000000ab", "logged": true });
    let mut expected = place(1);
    (expected["complete"], expected["pods"], expected["silent"]) = (json!(true), json!(2), json!([]));
    assert_eq!((status, answer), (200, expected));
    let order = Order { tags: vec!["product:7".to_owned()], soft: true, ..Order::default() };
    assert_eq!(*port.doors.orders.lock().unwrap(), [order]);
    let (status, answer) = port.order(&json!({ "tags": ["product:7"] }));
    assert_eq!((status, answer), (200, place(2)));
    let (status, answer) = port.order(&json!({ "tags": ["product:7"], "wait": "all", "timeout": "1s" }));
    assert_eq!((status, &answer["complete"], &answer["silent"]), (202, &json!(false), &json!(["web-1"])));
    port.doors.unlogged.store(true, Ordering::Relaxed);
    let (status, answer) = port.order(&json!({ "tags": ["product:8"], "wait": "all" }));
    assert_eq!((status, &answer["logged"]), (202, &json!(false)), "applied here, and being retried");
}

#[test]
fn a_bad_order_says_why_and_what_to_write() {
    let port = Port::open();
    let cases = [
        (json!({ "tag": ["x"] }), 400, "unknown field `tag`"),
        (json!({ "tags": "x" }), 400, "expected a sequence"),
        (json!({ "tags": ["x"], "wait": "some" }), 400, "`wait`"),
        (json!({ "tags": ["x"], "wait": 1 }), 400, "`wait`"),
        (json!({ "tags": ["x"], "timeout": 5 }), 400, "`timeout`"),
        (json!({ "tags": ["x"], "wait": "all", "timeout": "61s" }), 400, "`timeout`"),
        (json!({ "tags": [] }), 400, "names nothing"),
        (json!([]), 400, "no JSON object"),
    ];
    for (order, status, problem) in cases {
        let (answered, answer) = port.order(&order);
        assert_eq!(answered, status, "{order}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(problem), "{order}: {answer}");
        assert!(!answer["remedy"].as_str().unwrap().is_empty(), "{order}");
    }
    assert_eq!(port.ask("POST /invalidate", "", "tags=x").0, 400);
    assert!(port.doors.orders.lock().unwrap().is_empty());
}

#[test]
fn bodies_are_bounded() {
    let port = Port::open();
    let (status, _, body) = port.ask("POST /invalidate", "Content-Length: 1048577\r\n", "");
    assert!(status == 413 && body.contains("1 MiB"), "announced: {body}");
    // Nothing is sent behind the byte that is too many: unread bytes would turn the close into a reset.
    let chunk = format!("100001\r\n{}", " ".repeat((1 << 20) + 1));
    let mut stream = Tcp::connect(port.address).unwrap();
    write!(stream, "POST /invalidate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}")
        .unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413", "grown");
}

#[test]
fn what_changes_things_is_guarded_and_the_rest_is_open() {
    let port = Port::open();
    port.token.store(Some(Arc::new(Secret::new("s3cret\n"))));
    let body = json!({ "tags": ["x"] }).to_string();
    for path in ["/metrics", "/livez", "/readyz", "/version"] {
        assert_eq!(port.ask(&format!("GET {path}"), "Host: weir.example\r\n", "").0, 200, "{path}");
    }
    let (status, head, answer) = port.ask("POST /invalidate", "", &body);
    assert!(
        status == 401 && head.contains("www-authenticate: Bearer") && !answer.contains("s3cret"),
        "{head} {answer}"
    );
    assert_eq!(port.ask("POST /drain", "", "").0, 401);
    assert_eq!(port.get("/drain").0, 401);
    let bearer = "Authorization: Bearer s3cret\r\n";
    assert_eq!(port.ask("POST /invalidate", bearer, &body).0, 200);
    assert_eq!(port.ask("POST /invalidate", &format!("{bearer}Origin: http://evil.example\r\n"), &body).0, 403);
    assert_eq!(port.ask("POST /invalidate", &format!("{bearer}Host: evil.example\r\n"), &body).0, 403);
    port.token.store(Some(Arc::new(Secret::new("other"))));
    assert_eq!(port.ask("POST /invalidate", bearer, &body).0, 401, "a reload changes the token");
    port.token.store(None);
    assert_eq!(port.ask("POST /invalidate", "", &body).0, 200, "without a token a loopback peer may");
    assert_eq!(port.ask("POST /invalidate", "Host: evil.example\r\n", &body).0, 403);
    assert_eq!(port.doors.orders.lock().unwrap().len(), 2);
}

#[test]
fn unknown_paths_and_methods_are_told_what_there_is() {
    let port = Port::open();
    let (status, _, body) = port.get("/metricz");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert!(status == 404 && answer["paths"].as_array().unwrap().contains(&json!("POST /invalidate")), "{body}");
    let (status, head, _) = port.ask("DELETE /metrics", "", "");
    assert!(status == 405 && head.contains("allow: GET, HEAD"), "{head}");
    let (status, head, _) = port.get("/invalidate");
    assert!(status == 405 && head.contains("allow: POST"), "{head}");
}

#[test]
fn whoever_holds_every_connection_does_not_keep_probes_out() {
    let port = Port::open();
    let held: Vec<_> = (0..2 * CONNECTIONS).map(|_| Tcp::connect(port.address).unwrap()).collect();
    assert_eq!(port.get("/livez").0, 200);
    let closed = held.iter().filter(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        matches!((&mut &**stream).read(&mut [0]), Ok(0))
    });
    assert!(closed.count() >= CONNECTIONS, "the oldest made room");
}

#[test]
fn the_client_drains_and_invalidates() {
    let port = Port::open();
    port.token.store(Some(Arc::new(Secret::new("s3cret"))));
    let order = Order { tags: vec!["x".to_owned()], ..Order::default() };
    let answer = port.client(Some("s3cret\n")).invalidate(&order, Wait::None).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["seq"], 1);
    port.client(Some("s3cret")).invalidate(&order, Wait::All(None)).unwrap();
    let incomplete =
        port.client(Some("s3cret")).invalidate(&order, Wait::All(Some(Duration::from_secs(1)))).unwrap_err();
    assert!(incomplete.to_string().contains("\"silent\":[\"web-1\"]"), "{incomplete}");
    let refused = port.client(None).drain().unwrap_err().to_string();
    assert!(refused.contains("401") && refused.contains("--token-file"), "{refused}");
    port.client(Some("s3cret")).drain().unwrap();
    assert!(port.readiness.draining());
}

#[test]
fn the_client_names_the_place_and_the_remedy() {
    let port = Port::open();
    let (client, address) = (port.client(None), port.address.to_string());
    drop(port.serving);
    let said = client.drain().unwrap_err().to_string();
    assert!(said.contains(&address) && said.contains("refused") && said.contains("[admin] listen"), "{said}");
    for url in ["https://127.0.0.1:9901", "/x", "http://127.0.0.1:9901/metrics", "http://a@b", "http://", ""] {
        assert!(matches!(Client::new(url, None), Err(ClientError::Unusable { .. })), "{url}");
    }
    for url in ["127.0.0.1:9901", "localhost", "http://[::1]:9901/"] {
        assert!(Client::new(url, None).is_ok(), "{url}");
    }
    let secret = Secret::new("two words");
    let said = Client::new("http://127.0.0.1:9901", Some(&secret)).unwrap_err().to_string();
    assert!(said.contains("token") && !said.contains("two words"), "{said}");
}

#[test]
fn the_client_tells_weir_from_something_else() {
    let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let said = Client::new(&url, None).unwrap().drain().unwrap_err();
    assert!(matches!(said, ClientError::Answer { .. }), "{said}");
    answering.join().unwrap();
}

#[test]
fn limits_are_shown_and_reset_with_the_token_only() {
    let port = Port::open();
    let list = port.get("/limits");
    assert_eq!((list.0, &*list.2), (200, "{\"limits\":[]}\n"));
    let (status, _, state) = port.get("/limits/a/b%20c?ip=::1&header:x=1%262");
    let who = r#"Parts([(\"ip\", \"::1\"), (\"header:x\", \"1&2\")])"#;
    assert_eq!((status, state), (200, format!("{{\"limit\":\"a/b c\",\"who\":\"{who}\"}}\n")));
    let (status, _, reset) = port.ask("DELETE /limits/a?id=00", "", "");
    assert_eq!((status, &*reset), (200, "{\"reset\":\"a\"}\n"));
    for (name, status) in [("unknown", 404), ("wrong", 400), ("away", 503)] {
        let (answered, _, body) = port.get(&format!("/limits/{name}?ip=::1"));
        assert!(answered == status && body.contains("ask otherwise"), "{name}: {answered} {body}");
    }
    assert_eq!(port.get("/limits/a?id=00&ip=::1").0, 400);
    assert_eq!(port.ask("POST /limits", "", "").0, 405);
    let (status, head, _) = port.ask("PUT /limits/a?id=00", "", "");
    assert!(status == 405 && head.contains("GET, HEAD, DELETE"), "{head}");
    port.token.store(Some(Arc::new(Secret::new("t0ken"))));
    for line in ["GET /limits", "GET /limits/a?ip=::1", "DELETE /limits/a?ip=::1"] {
        assert_eq!(port.ask(line, "", "").0, 401, "{line}");
        assert_eq!(port.ask(line, "Host: evil.example\r\nAuthorization: Bearer t0ken\r\n", "").0, 403, "{line}");
        assert_eq!(port.ask(line, "Authorization: Bearer t0ken\r\n", "").0, 200, "{line}");
    }
    let asked = |who| Asked { limit: "a/b c".to_owned(), who };
    let parts = asked(Who::Parts(vec![("ip".to_owned(), "::1".to_owned()), ("header:x".to_owned(), "1&2".to_owned())]));
    let seen: Value =
        serde_json::from_str(&port.client(Some("t0ken")).limit(&parts, false, Form::Json).unwrap()).unwrap();
    assert_eq!(seen["who"], r#"Parts([("ip", "::1"), ("header:x", "1&2")])"#);
    assert_eq!(seen["limit"], "a/b c");
    let reset = port.client(Some("t0ken")).limit(&asked(Who::Id("00".to_owned())), true, Form::Json).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&reset).unwrap(), json!({ "reset": "a/b c" }));
    assert!(port.client(Some("t0ken")).limits(Form::Text).unwrap().contains("nobody so far"));
    assert!(matches!(port.client(None).limits(Form::Json), Err(ClientError::Refused { .. })));
}
