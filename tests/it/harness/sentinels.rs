//! A real Redis with two copies, and three sentinels that watch over it, of one test's own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::redis::{is_before_7, poll, poll_or_say, redis_of_file};
use super::{Clock, Flaky, Identity, Redis, clock, flaky};

/// Sentinels, of which two must agree.
const SENTINELS: usize = 3;

/// Servers, one of them the master.
const SERVERS: usize = 3;

/// What the master is called.
const NAME: &str = "shop";

/// Settings of each server, which it keeps over a restart, with whom it copies.
const SERVER: &str = "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\nrepl-ping-replica-period 1\n";

/// A master, two replicas and three sentinels, all of whom know one another.
pub fn sentinels() -> Sentinels {
    sentinels_with(None, None)
}

/// The same, where each server goes by a clock of its own.
pub fn sentinels_by_clocks() -> Sentinels {
    made(None, None, (0..SERVERS).map(|_| clock()).collect())
}

/// The same, where all speak TLS only, by these certificates of servers and sentinels, and the sentinels ask everybody for this
/// password.
pub fn sentinels_with(identities: Option<[&Identity; 2]>, password: Option<&str>) -> Sentinels {
    made(identities, password, Vec::new())
}

fn made(identities: Option<[&Identity; 2]>, password: Option<&str>, clocks: Vec<Clock>) -> Sentinels {
    let of_file = |lines: &str, is_sentinel, clock: Option<&Clock>| {
        let redis = redis_of_file(lines, is_sentinel);
        let redis = match identities.map(|both| both[usize::from(is_sentinel)]) {
            Some(identity) => redis.over_tls(identity),
            None => redis,
        };
        let redis = match password.filter(|_| is_sentinel) {
            Some(password) => redis.with_password(password),
            None => redis,
        };
        let redis = clock.into_iter().fold(redis, Redis::by);
        redis.start();
        redis
    };
    let relays = [(); SERVERS].map(|()| relay());
    let port = relays[0].address().port();
    let mut servers = Vec::new();
    for (relay, clock) in relays.iter().zip(clocks.iter().map(Some).chain(std::iter::repeat(None))) {
        let announced = relay.address().port();
        let follows = if announced == port { String::new() } else { format!("replicaof 127.0.0.1 {port}\n") };
        let server = of_file(&format!("{SERVER}replica-announce-port {announced}\n{follows}"), false, clock);
        relay.lead_to(server.address());
        servers.push(server);
    }
    let linked = |redis: &Redis| redis.cli(&["INFO", "replication"]).contains("master_link_status:up");
    poll("the replicas have everything", || servers[1..].iter().all(linked));
    let settings = format!(
        "sentinel monitor {NAME} 127.0.0.1 {port} 2\n\
         sentinel down-after-milliseconds {NAME} 1000\n\
         sentinel failover-timeout {NAME} 4000\n\
         sentinel parallel-syncs {NAME} 2\n\
         {}\n",
        password.map_or_else(String::new, |password| format!("requirepass {password}"))
    );
    let sentinels: Vec<Redis> = (0..SENTINELS).map(|_| of_file(&settings, true, None)).collect();
    sentinels.iter().for_each(hasten);
    let here = [(); SERVERS + SENTINELS].map(|()| AtomicBool::new(true));
    let all = Sentinels { servers, clocks, relays, sentinels, here };
    all.know_one_another();
    all
}

/// One that leads nowhere yet.
fn relay() -> Flaky {
    flaky(SocketAddr::from(([127, 0, 0, 1], 1)))
}

/// It looks at servers, and speaks to its like, several times a second, and not every ten and every two.
fn hasten(sentinel: &Redis) {
    for (period, ms) in [("info-period", "500"), ("publish-period", "250"), ("ping-period", "200")] {
        // Before Redis 7 there is no such command, and all takes longer.
        let said = sentinel.try_cli(&["SENTINEL", "DEBUG", period, ms]);
        assert!(said.is_ok() || is_before_7(), "{said:?}");
    }
}

/// What a sentinel says of the master by this name.
fn said_of_master(sentinel: &Redis, name: &str) -> Option<String> {
    let told = sentinel.try_cli(&["SENTINEL", "MASTER", NAME]).ok()?;
    let (names, values) = (told.lines().step_by(2), told.lines().skip(1).step_by(2));
    names.zip(values).find_map(|(own, value)| (own == name).then(|| value.to_owned()))
}

/// Servers and those who watch over them.
pub struct Sentinels {
    servers: Vec<Redis>,
    /// What they go by, if it is not the machine's.
    clocks: Vec<Clock>,
    /// By which everybody knows them, one another among them.
    relays: [Flaky; SERVERS],
    sentinels: Vec<Redis>,
    /// Servers, then sentinels: neither killed nor frozen.
    here: [AtomicBool; SERVERS + SENTINELS],
}

impl Sentinels {
    /// None takes over but by command: a machine that stands still for a second is no reason.
    pub fn without_failovers(self) -> Self {
        let settings = ["SENTINEL", "SET", NAME, "down-after-milliseconds", "60000"];
        self.sentinels.iter().for_each(|sentinel| drop(sentinel.cli(&settings)));
        self
    }

    /// What the master is called.
    pub fn master_name(&self) -> &'static str {
        NAME
    }

    /// Where the sentinels listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sentinels.iter().map(Redis::address).collect()
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Waits until all that are there have what the master has.
    pub fn is_well(&self) {
        let follows = |server: usize| {
            let told = self.servers[server].try_cli(&["INFO", "replication"]).unwrap_or_default();
            told.contains("master_link_status:up")
        };
        // Who that is may change meanwhile.
        let all_follow = || {
            self.agreed_master().is_some_and(|master| {
                (0..SERVERS).filter(|server| *server != master && self.is_here(*server)).all(follows)
            })
        };
        poll_or_say("all follow the master", all_follow, || self.told());
    }

    /// What each server and sentinel says of itself and the others.
    fn told(&self) -> String {
        let servers = self.servers.iter().enumerate().map(|(server, redis)| {
            let ahead = self.clocks.get(server).map(Clock::ahead);
            format!("\nserver {server} at {}, its clock ahead by {ahead:?}:{}", redis.address(), redis.story())
        });
        let sentinels = self.sentinels.iter().map(|sentinel| format!("\na sentinel:{}", sentinel.story()));
        servers.chain(sentinels).collect()
    }

    /// A sentinel.
    pub fn sentinel(&self, sentinel: usize) -> &Redis {
        &self.sentinels[sentinel]
    }

    /// The way to a server, for clients, for those who copy it and for the sentinels.
    pub fn relay(&self, server: usize) -> &Flaky {
        &self.relays[server]
    }

    /// Waits until no sentinel takes the master for dead, or is about to have a replica take over.
    pub fn is_calm(&self) {
        let is_content = |sentinel: &usize| {
            said_of_master(&self.sentinels[*sentinel], "flags").is_some_and(|flags| flags == "master")
        };
        let is_calm = || self.agreed_master().is_some() && self.sentinels_here().iter().all(is_content);
        poll_or_say("no failover", is_calm, || self.told());
    }

    /// A server.
    pub fn server(&self, server: usize) -> &Redis {
        &self.servers[server]
    }

    /// What a server goes by.
    pub fn clock(&self, server: usize) -> &Clock {
        &self.clocks[server]
    }

    /// Which server this sentinel takes for the master.
    pub fn named_by(&self, sentinel: usize) -> Option<usize> {
        let told = self.sentinels[sentinel].try_cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
        let port: u16 = told.lines().nth(1)?.parse().ok()?;
        self.relays.iter().position(|relay| relay.address().port() == port)
    }

    /// The server that is the master, by its own word and that of all sentinels that are there; waits until they agree.
    pub fn master(&self) -> usize {
        let mut master = None;
        let is_known = || {
            master = self.agreed_master();
            master.is_some()
        };
        poll_or_say("one master", is_known, || self.told());
        master.expect("it was found")
    }

    fn agreed_master(&self) -> Option<usize> {
        let here = self.sentinels_here();
        let named = here.first().and_then(|first| self.named_by(*first))?;
        let all_agree = here.iter().all(|sentinel| self.named_by(*sentinel) == Some(named));
        (all_agree && self.is_here(named) && self.is_master(named)).then_some(named)
    }

    fn is_master(&self, server: usize) -> bool {
        self.servers[server].try_cli(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
    }

    /// The servers that are there and copy the master.
    pub fn replicas(&self) -> Vec<usize> {
        (0..SERVERS).filter(|server| self.is_here(*server) && !self.is_master(*server)).collect()
    }

    /// A sentinel has a replica take over from a master that is well; says which it was.
    pub fn fail_over(&self) -> usize {
        let before = self.master();
        let sentinel = *self.sentinels_here().first().expect("a sentinel");
        let begins = || self.sentinels[sentinel].try_cli(&["SENTINEL", "FAILOVER", NAME]).is_ok();
        poll_or_say("the sentinel begins", begins, || self.told());
        self.taken_over(before)
    }

    /// Waits until another server than this is the master, and says which.
    pub fn taken_over(&self, before: usize) -> usize {
        let mut master = before;
        let is_over = || {
            master = self.agreed_master().unwrap_or(before);
            master != before
        };
        poll_or_say("a replica takes over", is_over, || self.told());
        master
    }

    /// Ends a server at once.
    pub fn kill(&self, server: usize) {
        self.leaves(server);
        self.servers[server].kill();
    }

    /// A server accepts connections and answers nothing.
    pub fn freeze(&self, server: usize) {
        self.leaves(server);
        self.servers[server].freeze();
    }

    /// It goes on, as what it was until a sentinel tells it otherwise.
    pub fn thaw(&self, server: usize) {
        self.servers[server].thaw();
        self.is_back(server);
    }

    /// One that was killed comes back without its data, as what it was until a sentinel tells it otherwise.
    pub fn restart(&self, server: usize) {
        self.servers[server].start();
        self.is_back(server);
    }

    /// Ends a sentinel at once.
    pub fn kill_sentinel(&self, sentinel: usize) {
        self.leaves(SERVERS + sentinel);
        self.sentinels[sentinel].kill();
    }

    /// A sentinel hears and says nothing.
    pub fn freeze_sentinel(&self, sentinel: usize) {
        self.leaves(SERVERS + sentinel);
        self.sentinels[sentinel].freeze();
    }

    /// It goes on with what it knew.
    pub fn thaw_sentinel(&self, sentinel: usize) {
        self.sentinels[sentinel].thaw();
        self.is_back(SERVERS + sentinel);
    }

    /// It comes back with what it had written down.
    pub fn restart_sentinel(&self, sentinel: usize) {
        self.sentinels[sentinel].start();
        hasten(&self.sentinels[sentinel]);
        self.is_back(SERVERS + sentinel);
    }

    /// Waits until every sentinel knows the other sentinels and the replicas.
    fn know_one_another(&self) {
        let knows = |sentinel: &Redis| {
            let number = |name: &str| said_of_master(sentinel, name).and_then(|number| number.parse::<usize>().ok());
            number("num-slaves") == Some(SERVERS - 1) && number("num-other-sentinels") == Some(SENTINELS - 1)
        };
        poll_or_say("the sentinels know one another", || self.sentinels.iter().all(knows), || self.told());
    }

    fn sentinels_here(&self) -> Vec<usize> {
        (0..SENTINELS).filter(|sentinel| self.is_here(SERVERS + sentinel)).collect()
    }

    /// Whether a server was neither killed nor frozen.
    pub fn is_here(&self, one: usize) -> bool {
        self.here[one].load(Ordering::SeqCst)
    }

    fn leaves(&self, one: usize) {
        self.here[one].store(false, Ordering::SeqCst);
    }

    fn is_back(&self, one: usize) {
        self.here[one].store(true, Ordering::SeqCst);
    }
}
