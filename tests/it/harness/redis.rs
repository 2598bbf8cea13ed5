//! A real redis-server of one test's own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{Clock, PATIENCE, Scratch};

/// Ports are taken from below the range that outgoing connections use, so that a server can come back to its own.
const PORTS: std::ops::Range<u16> = 12_000..22_000;

/// Those of a cluster's servers of which the port for each other cannot be chosen: it is [`BUS`] further up.
const PORTS_WITH_BUS: std::ops::Range<u16> = 22_000..22_768;

/// See [`PORTS_WITH_BUS`].
pub(super) const BUS: u16 = 10_000;

/// Among a server's files: its log.
const LOG: &str = "log";

/// So many of its last lines tell what went wrong.
const LAST_LINES: usize = 40;

/// Longest that a frozen or dead server is waited for by the harness' own commands.
const ANSWER: Duration = Duration::from_secs(5);

/// The program: `redis-server`, or another version of it (`make redis-versions`).
fn program() -> OsString {
    std::env::var_os("WEIR_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// Whether it is older than Redis 7.
pub fn is_before_7() -> bool {
    static SAID: OnceLock<String> = OnceLock::new();
    let said = SAID.get_or_init(|| {
        let told = Command::new(program()).arg("--version").output().expect("redis-server is installed");
        String::from_utf8_lossy(&told.stdout).into_owned()
    });
    said.contains("v=6.")
}

/// A running server.
pub fn redis() -> Redis {
    let redis = redis_not_started();
    redis.start();
    redis
}

/// A server that is to be started later; until then its port refuses.
pub fn redis_not_started() -> Redis {
    redis_on(free_port())
}

/// The same, on this port.
pub(super) fn redis_on(port: u16) -> Redis {
    Redis {
        port,
        socket: None,
        password: None,
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

/// The same, going by this clock.
pub fn redis_with_by(more: &[&str], clock: &Clock) -> Redis {
    let redis = redis_not_started().with(more).by(clock);
    redis.start();
    redis
}

/// A running server that goes by this clock.
pub fn redis_by(clock: &Clock) -> Redis {
    let redis = redis_not_started().by(clock);
    redis.start();
    redis
}

/// A server that keeps its settings, and what it is told to be, in a file; `more` are lines of it.
pub(super) fn redis_of_file(more: &str, is_sentinel: bool) -> Redis {
    let mut redis = redis_not_started();
    let directory = redis.scratch.path().display();
    let lines = format!("port {}\nbind 127.0.0.1\ndir {directory}\n{more}\n", redis.port);
    redis.file = Some(redis.scratch.write("redis.conf", &lines));
    redis.more = if is_sentinel { vec!["--sentinel".to_owned()] } else { Vec::new() };
    redis
}

/// Waits, on this very thread, until `condition` holds.
pub fn poll(what: &str, condition: impl FnMut() -> bool) {
    poll_every(Duration::from_millis(5), what, condition, String::new);
}

/// The same of several servers, each of which is asked anew; and if it does not hold, says what is wrong.
pub fn poll_or_say(what: &str, condition: impl FnMut() -> bool, told: impl FnOnce() -> String) {
    poll_every(Duration::from_millis(20), what, condition, told);
}

fn poll_every(often: Duration, what: &str, mut condition: impl FnMut() -> bool, told: impl FnOnce() -> String) {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() >= PATIENCE {
            panic!("{what}: not within {PATIENCE:?} {}", told());
        }
        std::thread::sleep(often);
    }
}

/// What a server shows of itself, and whose certificates it believes; files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its certificate.
    pub cert: String,
    /// The key.
    pub key: String,
    /// Who signs what others show.
    pub authority: String,
}

impl Identity {
    /// In the words of Redis' configuration.
    fn settings(&self) -> [(&str, &str); 4] {
        [
            ("tls-cert-file", &self.cert),
            ("tls-key-file", &self.key),
            ("tls-ca-cert-file", &self.authority),
            ("tls-auth-clients", "yes"),
        ]
    }
}

/// A redis-server, ended when dropped.
pub struct Redis {
    port: u16,
    /// Where the harness speaks to it, if not where everybody does.
    socket: Option<PathBuf>,
    password: Option<String>,
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

    /// Going by this clock, before it is started.
    pub(super) fn by(mut self, clock: &Clock) -> Self {
        self.env = clock.env().to_vec();
        self
    }

    /// Speaking TLS only, with this certificate, wanting one of its clients; but to the harness.
    pub(super) fn over_tls(mut self, identity: &Identity) -> Self {
        let socket = self.scratch.path().join("redis.sock");
        let port = self.port.to_string();
        let socket_text = socket.display().to_string();
        let this = [("port", "0"), ("tls-port", &port), ("unixsocket", &socket_text), ("tls-replication", "yes")];
        let settings = this.into_iter().chain(identity.settings()).map(|(name, value)| format!("{name} {value}"));
        match &self.file {
            Some(file) => {
                let lines = std::fs::read_to_string(file).expect("its file");
                let lines = settings.fold(lines, |lines, line| lines + &line + "\n");
                std::fs::write(file, lines).expect("its file");
            }
            None => self.more.extend(settings.flat_map(|line| {
                let (name, value) = line.split_once(' ').expect("a name and a value");
                [format!("--{name}"), value.to_owned()]
            })),
        }
        self.socket = Some(socket);
        self
    }

    /// Known to ask everybody for this password.
    pub(super) fn with_password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
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
            let mut command = Command::new(program());
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
                .stdout(self.log().expect("our own file"))
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

    /// Its log, which outlives it.
    fn log(&self) -> std::io::Result<File> {
        File::options().create(true).append(true).open(self.scratch.path().join(LOG))
    }

    /// What it says of itself, and what it said last: for who looks for what went wrong.
    pub fn story(&self) -> String {
        let ask = |what: &&str| self.try_cli(&["INFO", what]).unwrap_or_else(|error| error.to_string());
        let asked: String = ["server", "replication"].iter().map(ask).collect();
        let log = std::fs::read_to_string(self.scratch.path().join(LOG)).unwrap_or_default();
        let is_known =
            |line: &&str| ["uptime_in_s", "role", "master_", "slave"].iter().any(|name| line.starts_with(name));
        let asked = asked.lines().filter(is_known);
        let last = log.lines().skip(log.lines().count().saturating_sub(LAST_LINES));
        asked.chain(last).fold(String::new(), |story, line| story + "\n  " + line.trim())
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
    pub fn try_cli(&self, words: &[&str]) -> io::Result<String> {
        self.call(words, ANSWER)
    }

    /// A connection that is kept, to say more by it when nobody else is let in.
    pub fn line(&self) -> Line {
        self.connect(ANSWER).expect("it accepts")
    }

    fn call(&self, words: &[&str], longest: Duration) -> io::Result<String> {
        self.connect(longest)?.say(words)
    }

    fn connect(&self, longest: Duration) -> io::Result<Line> {
        let mut line = Line::to(
            match &self.socket {
                Some(socket) => Peer::Unix(socket.clone()),
                None => Peer::Tcp(self.address()),
            },
            longest,
        )?;
        if let Some(password) = &self.password {
            line.say(&["AUTH", password])?;
        }
        Ok(line)
    }
}

/// A connection to a Redis.
pub struct Line {
    stream: BufReader<Stream>,
    peer: Peer,
}

#[derive(Clone)]
enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Line {
    fn to(peer: Peer, longest: Duration) -> io::Result<Self> {
        let stream = match &peer {
            Peer::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, longest)?;
                stream.set_read_timeout(Some(longest))?;
                Stream::Tcp(stream)
            }
            Peer::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(longest))?;
                Stream::Unix(stream)
            }
        };
        Ok(Self { stream: BufReader::new(stream), peer })
    }

    /// A command, and what it answers.
    ///
    /// # Errors
    /// It does not answer, or by an error.
    pub fn say(&mut self, words: &[&str]) -> io::Result<String> {
        self.begin(words)?;
        self.answer()
    }

    /// What the next command that was begun answers.
    ///
    /// # Errors
    /// It does not answer, or by an error.
    pub fn answer(&mut self) -> io::Result<String> {
        read_reply(&mut self.stream)
    }

    /// Another to the same.
    ///
    /// # Errors
    /// It is not let in.
    pub fn another(&self) -> io::Result<Self> {
        Self::to(self.peer.clone(), ANSWER)
    }

    /// A command that is not answered soon.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn begin(&mut self, words: &[&str]) -> io::Result<()> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        match self.stream.get_mut() {
            Stream::Tcp(stream) => stream.write_all(command.as_bytes()),
            Stream::Unix(stream) => stream.write_all(command.as_bytes()),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_reply(from: &mut impl BufRead) -> io::Result<String> {
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
            let items: io::Result<Vec<_>> = (0..size(count).unwrap_or(0)).map(|_| read_reply(from)).collect();
            Ok(items?.join("\n"))
        }
        _ => Err(io::Error::other(format!("Redis says: {line}"))),
    }
}

/// A port that nothing listens on and no outgoing connection takes.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    free_one(PORTS, &NEXT, is_free)
}

/// One [`BUS`] above which is another.
pub(super) fn free_port_with_bus() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    free_one(PORTS_WITH_BUS, &NEXT, |port| is_free(port) && is_free(port + BUS))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn free_one(ports: std::ops::Range<u16>, next: &AtomicU16, is_free: impl Fn(u16) -> bool) -> u16 {
    let spread = u16::try_from(std::process::id() % 997).expect("below 997");
    for _ in 0..ports.len() {
        let step = next.fetch_add(1, Ordering::Relaxed);
        let port = ports.start + spread.wrapping_mul(19).wrapping_add(step) % (ports.end - ports.start);
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port in {ports:?}");
}
