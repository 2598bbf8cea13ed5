//! Weir itself: the real binary, with a configuration of the test's.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit, setrlimit};
use tokio::time::Instant;

use super::client::{Answer, Request, get, request};
use super::{Clock, PATIENCE, Redis, RedisCluster, Scratch, Sentinels, within};

/// Last lines of a Weir's output that a failing test shows.
const SHOWN: usize = 40;

/// A Weir with this configuration; what is not said in it is filled in: free ports, a JSON log, no lame duck.
pub fn weir(config: &str) -> Setup {
    let config = config.parse().unwrap_or_else(|error| panic!("the test's own TOML: {error}"));
    allow_many_files();
    Setup { config, env: Vec::new(), files: None, beside: Vec::new() }
        .or_set("server.listen", "127.0.0.1:0")
        .or_set("server.lame_duck", "0s")
        .or_set("admin.listen", "127.0.0.1:0")
        .or_set("log.format", "json")
}

/// Hundreds of connections at once, here and in the children, are more files than a process usually may open.
fn allow_many_files() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // Where that is forbidden, the tests that need it say so themselves.
        let _ = setrlimit(Resource::Nofile, limit);
    });
}

/// A Weir to be started.
#[derive(Clone)]
pub struct Setup {
    config: toml::Table,
    env: Vec<(String, String)>,
    files: Option<u64>,
    beside: Vec<(String, String)>,
}

impl Setup {
    /// In front of the service at this URL.
    pub fn to(self, upstream_url: impl Into<String>) -> Self {
        self.set("upstream.url", upstream_url.into())
    }

    /// With this Redis.
    pub fn redis(self, redis: &Redis) -> Self {
        self.redis_at(redis.address())
    }

    /// With the Redis that is reached here.
    pub fn redis_at(self, address: SocketAddr) -> Self {
        self.set("redis.url", format!("redis://{address}/0")).or_set("redis.namespace", "it")
    }

    /// With this cluster, of which it is told two nodes.
    pub fn redis_cluster(self, cluster: &RedisCluster) -> Self {
        self.redis_nodes("cluster", &cluster.addresses()[..2])
    }

    /// With the Redis that these sentinels name.
    pub fn sentinels(self, sentinels: &Sentinels) -> Self {
        self.redis_nodes("sentinel", &sentinels.addresses()).set("redis.master", sentinels.master_name())
    }

    fn redis_nodes(self, mode: &str, nodes: &[SocketAddr]) -> Self {
        let nodes: Vec<String> = nodes.iter().map(SocketAddr::to_string).collect();
        self.set("redis.mode", mode).set("redis.nodes", nodes).or_set("redis.namespace", "it")
    }

    /// With this setting, by its dotted name.
    pub fn set(mut self, name: &str, value: impl Into<toml::Value>) -> Self {
        let (table, key) = self.place(name);
        table.insert(key, value.into());
        self
    }

    /// With this setting where nothing else is said.
    fn or_set(mut self, name: &str, value: impl Into<toml::Value>) -> Self {
        let (table, key) = self.place(name);
        table.entry(key).or_insert_with(|| value.into());
        self
    }

    /// The table that holds a dotted name, and the name's last part.
    fn place(&mut self, name: &str) -> (&mut toml::Table, String) {
        let (path, key) = name.rsplit_once('.').expect("a dotted name");
        let mut table = &mut self.config;
        for part in path.split('.') {
            let inner = table.entry(part).or_insert_with(|| toml::Table::new().into());
            table = inner.as_table_mut().unwrap_or_else(|| panic!("{name}: {part} is no table"));
        }
        (table, key.to_owned())
    }

    /// With this environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Going by this clock.
    pub fn by(mut self, clock: &Clock) -> Self {
        self.env.extend(clock.env().iter().cloned());
        self
    }

    /// Where it may have no more files open than this.
    pub fn files(mut self, most: u64) -> Self {
        self.files = Some(most);
        self
    }

    /// With this file beside its configuration.
    pub fn beside(mut self, name: &str, text: &str) -> Self {
        self.beside.push((name.into(), text.into()));
        self
    }

    /// The configuration's text.
    pub fn toml(&self) -> String {
        toml::to_string(&self.config).expect("TOML")
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) -> Weir {
        let weir = self.launch().await;
        weir.ready().await;
        weir
    }

    /// Starts it and waits until it listens, ready or not.
    pub async fn launch(&self) -> Weir {
        let scratch = Scratch::new();
        for (name, text) in &self.beside {
            scratch.write(name, text);
        }
        let config = scratch.write("weir.toml", &self.toml());
        let began = Instant::now();
        let mut child = command(&self.env, self.files)
            .args([Path::new("run"), Path::new("--config"), &config])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = Lines::default();
        let readers =
            [lines.collect(child.stdout.take().expect("piped")), lines.collect(child.stderr.take().expect("piped"))];
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut weir = Weir {
            child,
            proxy: nowhere,
            admin: nowhere,
            listening_after: Duration::ZERO,
            config,
            lines,
            readers: Some(readers),
            _scratch: scratch,
        };
        let listening = loop {
            if let Some(addresses) = weir.output().iter().find_map(|line| addresses(line)) {
                break addresses;
            }
            assert!(weir.status().is_none(), "Weir ended before it listened");
            assert!(began.elapsed() < PATIENCE, "Weir does not listen");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        weir.listening_after = began.elapsed();
        (weir.proxy, weir.admin) = listening;
        weir
    }

    /// Starts `n` with the same configuration and waits until they are ready.
    pub async fn fleet(&self, n: usize) -> Vec<Weir> {
        let mut weirs = Vec::with_capacity(n);
        for _ in 0..n {
            weirs.push(self.start().await);
        }
        weirs
    }

    /// Starts it, expecting that it ends by itself.
    pub fn run_to_end(&self) -> Ended {
        let scratch = Scratch::new();
        let path = scratch.write("weir.toml", &self.toml());
        Ended::of(&["run", "--config", &path.display().to_string()])
    }
}

/// The binary, with no setting of the developer's own environment.
fn command(env: &[(String, String)], files: Option<u64>) -> Command {
    const BINARY: &str = env!("CARGO_BIN_EXE_weir");
    let mut command = match files {
        None => Command::new(BINARY),
        Some(most) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), BINARY]);
            shell
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("WEIR_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).envs(env.iter().cloned());
    command
}

/// What the line that says "listening" names: proxy and admin.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != "listening" {
        return None;
    }
    let address = |name: &str| fields.get(name)?.as_str()?.parse().ok();
    Some((address("proxy")?, address("admin")?))
}

/// What a process has written, both streams together.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = Arc::clone(&self.0);
        let read = move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                lines.lock().expect("no panic while held").push(String::from_utf8_lossy(&line).into_owned());
            }
        };
        std::thread::spawn(read)
    }
}

/// A running Weir; ended when dropped. A panic anywhere in it fails the test.
pub struct Weir {
    child: Child,
    /// Where requests go.
    pub proxy: SocketAddr,
    /// The operator's port.
    pub admin: SocketAddr,
    /// From the start of the process to its listening.
    pub listening_after: Duration,
    /// Its configuration file.
    pub config: PathBuf,
    lines: Lines,
    readers: Option<[JoinHandle<()>; 2]>,
    _scratch: Scratch,
}

impl Weir {
    /// A GET, over a connection of its own.
    pub async fn get(&self, target: &str) -> Answer {
        get(target).send(self.proxy).await
    }

    /// Any request, over a connection of its own.
    pub async fn send(&self, request: Request) -> Answer {
        request.send(self.proxy).await
    }

    /// A GET to the operator's port.
    pub async fn admin(&self, target: &str) -> Answer {
        get(target).header("host", &self.admin.to_string()).send(self.admin).await
    }

    /// A POST to the operator's port.
    pub async fn post(&self, target: &str, json: &str) -> Answer {
        let request = request("POST", target).header("host", &self.admin.to_string());
        request.header("content-type", "application/json").body(json.to_owned()).send(self.admin).await
    }

    /// Invalidates by the admin door; it must be taken.
    pub async fn invalidate(&self, json: &str) -> Answer {
        let answer = self.post("/invalidate", json).await;
        assert!((200..300).contains(&answer.status), "{json}: {answer:?}");
        answer
    }

    /// Everything under `/metrics`.
    pub async fn metrics(&self) -> String {
        self.admin("/metrics").await.text().to_owned()
    }

    /// The sum of all series with this name and at least these labels: `name{a="b"}`.
    pub async fn metric(&self, wanted: &str) -> f64 {
        sum(&self.metrics().await, wanted)
    }

    /// Waits until the sum of the series is at least `least`.
    pub async fn metric_reaches(&self, wanted: &str, least: f64) {
        let began = Instant::now();
        loop {
            let now = self.metric(wanted).await;
            if now >= least {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{wanted} is {now}, not {least}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) -> Duration {
        super::within_async(PATIENCE, "ready", async || self.admin("/readyz").await.status == 200).await
    }

    /// Asks it to end.
    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to read its configuration again.
    pub fn sighup(&self) {
        self.signal(Signal::HUP);
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Stops it where it stands, as a starved node does.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child");
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid")
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for its end; gives the exit code.
    pub async fn ended(&mut self, longest: Duration) -> Option<i32> {
        within(longest, "Weir's end", || self.status().is_some()).await;
        self.status().and_then(|status| status.code())
    }

    /// What it has written so far, line by line.
    pub fn output(&self) -> Vec<String> {
        self.lines.0.lock().expect("no panic while held").clone()
    }

    /// Bytes of memory that it holds.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Files that it has open.
    pub fn files(&self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running process").count() as u64
    }

    /// Lets it have so many files open from now on, and returns how many it could have.
    pub fn allow_files(&self, count: u64) -> u64 {
        let limit =
            prlimit(Some(self.pid()), Resource::Nofile, Rlimit { current: Some(count), ..getrlimit(Resource::Nofile) });
        limit.expect("a running process of ours").current.expect("a limit")
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.take().into_iter().flatten() {
            let _ = reader.join();
        }
        let output = self.output();
        let tail = output[output.len().saturating_sub(SHOWN)..].join("\n");
        if std::thread::panicking() {
            eprintln!("-- Weir at {} said last:\n{tail}", self.proxy);
        } else if output.iter().any(|line| line.contains("panicked at")) {
            panic!("Weir panicked:\n{}", output.join("\n"));
        }
    }
}

/// The sum of all series in `metrics` with this name and at least these labels.
pub fn sum(metrics: &str, wanted: &str) -> f64 {
    let (name, labels) = series(wanted);
    let matches = |line: &&str| {
        let (found, has) = series(line.rsplit_once(' ').map_or("", |(series, _)| series));
        found == name && labels.iter().all(|label| has.contains(label))
    };
    let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok()).unwrap_or(0.0);
    metrics.lines().filter(|line| !line.starts_with('#')).filter(matches).map(value).fold(0.0, |sum, value| sum + value)
}

fn series(text: &str) -> (&str, Vec<&str>) {
    let Some((name, labels)) = text.split_once('{') else { return (text, Vec::new()) };
    (name, labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect())
}

/// A run of the binary that is over.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// What it wrote to its output.
    pub out: String,
    /// What it wrote to its error output.
    pub err: String,
}

impl Ended {
    /// Runs the binary with these arguments to its end.
    pub fn of(args: &[&str]) -> Self {
        Self::run(Path::new(env!("CARGO_MANIFEST_DIR")), &[], args)
    }

    /// The same, in a directory and with environment variables.
    pub fn run(directory: &Path, env: &[(String, String)], args: &[&str]) -> Self {
        let mut child = command(env, None)
            .args(args)
            .current_dir(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (out, err) = (Lines::default(), Lines::default());
        let readers =
            [out.collect(child.stdout.take().expect("piped")), err.collect(child.stderr.take().expect("piped"))];
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                break status;
            }
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("weir {} does not end", args.join(" "));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in readers {
            reader.join().expect("a reader");
        }
        let text = |lines: &Lines| lines.0.lock().expect("no panic while held").join("\n");
        let ended = Self { code: status.code(), out: text(&out), err: text(&err) };
        assert!(!ended.err.contains("panicked at"), "{ended:?}");
        ended
    }

    /// Both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}
