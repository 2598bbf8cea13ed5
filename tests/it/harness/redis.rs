//! A real redis-server of one test's own.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{Clock, PATIENCE, Scratch};

/// Ports are taken from below the range that outgoing connections use, so that a server can come back to its own.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Longest that a frozen or dead server is waited for by the harness' own commands.
const ANSWER: Duration = Duration::from_secs(5);

/// A running server.
pub fn redis() -> Redis {
    let redis = redis_not_started();
    redis.start();
    redis
}

/// A server that is to be started later; until then its port refuses.
pub fn redis_not_started() -> Redis {
    Redis {
        port: free_port(),
        env: Vec::new(),
        more: Vec::new(),
        file: None,
        child: Mutex::new(None),
        scratch: Scratch::new(),
    }
}

/// A running server with more settings, such as `--tls-port`; of the test's own clients it asks nothing.
pub fn redis_with(more: &[&str]) -> Redis {
    let redis = redis_not_started().with(more);
    redis.start();
    redis
}

/// A running server that goes by this clock.
pub fn redis_by(clock: &Clock) -> Redis {
    let mut redis = redis_not_started();
    redis.env = clock.env().to_vec();
    redis.start();
    redis
}

/// A running server that keeps its settings, and what it is told to be, in a file; `more` are lines of it.
pub(super) fn redis_of_file(more: &str, is_sentinel: bool) -> Redis {
    let mut redis = redis_not_started();
    let directory = redis.scratch.path().display();
    let lines = format!("port {}\nbind 127.0.0.1\ndir {directory}\n{more}\n", redis.port);
    redis.file = Some(redis.scratch.write("redis.conf", &lines));
    redis.more = if is_sentinel { vec!["--sentinel".to_owned()] } else { Vec::new() };
    redis.start();
    redis
}

/// Waits, on this very thread, until `condition` holds.
pub(super) fn poll(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A redis-server, ended when dropped.
pub struct Redis {
    port: u16,
    env: Vec<(String, String)>,
    more: Vec<String>,
    file: Option<PathBuf>,
    child: Mutex<Option<Child>>,
    scratch: Scratch,
}

impl Redis {
    /// With more settings, before it is started.
    pub(super) fn with(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts it, empty, and waits until it answers.
    pub fn start(&self) {
        let began = Instant::now();
        loop {
            let mut command = Command::new("redis-server");
            match &self.file {
                Some(file) => command.arg(file),
                None => command
                    .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
                    .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
                    .arg(self.scratch.path()),
            };
            let mut child = command
                .args(&self.more)
                .envs(self.env.iter().cloned())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server is installed (make test sees to it)");
            while child.try_wait().expect("a child").is_none() {
                if self.call(&["PING"], Duration::from_millis(200)).is_ok() {
                    *self.child.lock().expect("no panic while held") = Some(child);
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "redis-server does not answer");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(began.elapsed() < PATIENCE, "redis-server does not start on port {}", self.port);
        }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().expect("no panic while held").take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// It accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// It comes back without its data.
    pub fn restart_empty(&self) {
        self.kill();
        self.start();
    }

    /// Becomes a copy of `master`, and waits until it has everything.
    pub fn follow(&self, master: &Self) {
        let port = master.port.to_string();
        self.cli(&["REPLICAOF", "127.0.0.1", &port]);
        poll("the replica catches up", || self.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    }

    /// Is a master from now on. With `planned`, `master` takes no more writes, and all that it took has come over first.
    pub fn take_over(&self, master: &Self, planned: bool) {
        if planned {
            master.cli(&["CLIENT", "PAUSE", "10000", "WRITE"]);
            let began = Instant::now();
            let offset = |redis: &Self, name: &str| {
                let told = redis.cli(&["INFO", "replication"]);
                told.lines().find_map(|line| line.trim().strip_prefix(name).map(str::to_owned))
            };
            while offset(self, "slave_repl_offset:") != offset(master, "master_repl_offset:") {
                assert!(began.elapsed() < PATIENCE, "the replica does not catch up");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.cli(&["REPLICAOF", "NO", "ONE"]);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.lock().expect("no panic while held");
        let child = child.as_ref().expect("the server runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("our own child");
    }

    /// Runs a command and gives its reply as text, lists one item a line.
    pub fn cli(&self, words: &[&str]) -> String {
        self.call(words, ANSWER).unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")))
    }

    /// The same, of a server that may be away.
    ///
    /// # Errors
    /// It does not answer, or by an error.
    pub fn try_cli(&self, words: &[&str]) -> std::io::Result<String> {
        self.call(words, ANSWER)
    }

    /// A connection that is kept, to say more by it when nobody else is let in.
    pub fn line(&self) -> Line {
        self.connect(ANSWER).expect("it accepts")
    }

    fn call(&self, words: &[&str], longest: Duration) -> std::io::Result<String> {
        self.connect(longest)?.say(words)
    }

    fn connect(&self, longest: Duration) -> std::io::Result<Line> {
        let stream = TcpStream::connect_timeout(&self.address(), longest)?;
        stream.set_read_timeout(Some(longest))?;
        Ok(Line(BufReader::new(stream)))
    }
}

/// A connection to a Redis.
pub struct Line(BufReader<TcpStream>);

impl Line {
    /// A command, and what it answers.
    ///
    /// # Errors
    /// It does not answer, or by an error.
    pub fn say(&mut self, words: &[&str]) -> std::io::Result<String> {
        self.begin(words)?;
        self.answer()
    }

    /// What the next command that was begun answers.
    ///
    /// # Errors
    /// It does not answer, or by an error.
    pub fn answer(&mut self) -> std::io::Result<String> {
        read_reply(&mut self.0)
    }

    /// Another to the same.
    ///
    /// # Errors
    /// It is not let in.
    pub fn another(&self) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&self.0.get_ref().peer_addr()?, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// A command that is not answered soon.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn begin(&mut self, words: &[&str]) -> std::io::Result<()> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_ref().write_all(command.as_bytes())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_reply(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let size = |text: &str| text.parse::<i64>().ok().and_then(|size| usize::try_from(size).ok());
    match line.split_at_checked(1) {
        Some((":" | "+", value)) => Ok(value.to_owned()),
        Some(("$", len)) => {
            let Some(len) = size(len) else { return Ok(String::new()) };
            let mut bytes = vec![0; len + 2];
            from.read_exact(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
        }
        Some(("*", count)) => {
            let items: std::io::Result<Vec<_>> = (0..size(count).unwrap_or(0)).map(|_| read_reply(from)).collect();
            Ok(items?.join("\n"))
        }
        _ => Err(std::io::Error::other(format!("Redis says: {line}"))),
    }
}

/// A port that nothing listens on and no outgoing connection takes.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 997).expect("below 997");
    for _ in 0..PORTS.len() {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + spread.wrapping_mul(19).wrapping_add(step) % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}
