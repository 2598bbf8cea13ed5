//! The composition root: builds every part, binds every listener, runs, reloads and drains. Nothing else constructs what
//! it depends on.

mod chores;
mod descriptors;
mod explain;
mod limits;
mod panics;
mod reloader;
mod warm;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::{Request, StatusCode};
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

pub use explain::explain;
use reloader::Reloader;

use crate::admin::readiness::Readiness;
use crate::admin::{self, AdminState};
use crate::cache::Cache;
use crate::cache::shared::SharedTier;
use crate::clock::Clock;
use crate::config::{Config, Loaded, Overrides, Report, Secret, ServerLimits};
use crate::fleet::Fleet;
use crate::invalidation::{Bounds, Invalidation};
use crate::kv;
use crate::limit::{self, Limiter};
use crate::log;
use crate::message::interim::Interim;
use crate::message::{Answer, Body, Peer};
use crate::metrics::{Metrics, Reload};
use crate::proxy::Proxy;
use crate::proxy::exchange::Books;
use crate::proxy::state::{Live, Shared, Worker};
use crate::proxy::upstream::{Connections, Upstream};
use crate::server::{self, Entrance, Service};

/// How often gauges are set and unused connections are closed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Longest wait for the last log lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where a configuration comes from, now and at each reload.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// One route in front of this URL.
    Upstream(String),
    /// Text from inside the program.
    Text {
        /// What reports call it.
        name: String,
        /// TOML.
        text: String,
    },
}

impl Source {
    /// Loads and checks it.
    ///
    /// # Errors
    /// Every problem, each with its place and a remedy.
    pub fn load(&self, overrides: &Overrides) -> Result<Loaded, Report> {
        match self {
            Self::File(path) => Config::load(path, overrides),
            Self::Upstream(url) => Config::for_upstream(url, overrides),
            Self::Text { name, text } => Config::from_toml(name, text, overrides),
        }
    }
}

/// Why Weir could not start.
#[derive(Debug)]
pub enum StartError {
    /// A listener's address cannot be taken.
    Bind {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A thread, a runtime or a signal handler is not to be had.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { key, address, error } => {
                write!(
                    f,
                    "error: {key}: {address} cannot be taken: {error}\nhelp: end what listens there, or choose another: --set {key}=127.0.0.1:0 takes a free port"
                )
            }
            Self::System(error) => write!(f, "error: the system gave no thread, runtime or signal handler: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Where a Weir listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Clients.
    pub proxy: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// A Weir whose addresses are taken and that does not run yet.
pub struct App {
    addresses: Addresses,
    loaded: Loaded,
    source: Source,
    overrides: Overrides,
    proxy: server::Bound,
    admin: admin::Bound,
}

impl App {
    /// Takes the addresses.
    ///
    /// # Errors
    /// One of them is taken, or not this host's.
    pub fn bind(loaded: Loaded, source: Source, overrides: Overrides) -> Result<Self, StartError> {
        let bind = |key, address| move |error| StartError::Bind { key, address, error };
        let config = &loaded.config;
        let proxy = server::bind(config.server.listen).map_err(bind("server.listen", config.server.listen))?;
        let admin = admin::bind(config.admin.listen).map_err(bind("admin.listen", config.admin.listen))?;
        let addresses = Addresses { proxy: proxy.address, admin: admin.address() };
        Ok(Self { addresses, loaded, source, overrides, proxy, admin })
    }

    /// The addresses that were taken.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until a signal ends it and the drain is over.
    ///
    /// # Errors
    /// A part could not be started.
    pub fn run(self) -> Result<(), StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Self { addresses, loaded, source, overrides, proxy, admin } = self;
        let sink = log::init(loaded.config.log);
        for warning in &loaded.warnings.problems {
            tracing::warn!(place = %warning.place, remedy = warning.remedy, "{}", warning.text);
        }
        let ended = runtime.block_on(async {
            // Both before anybody is told that Weir is there: who knows it may end it, or change its files.
            let mut signals = Signals::new()?;
            let parts = Parts::build(&loaded, &sink, &runtime);
            panics::count(parts.metrics.panics.clone());
            let mut reloader = Reloader::new(loaded, source, overrides)?;
            let running = parts.serve(proxy, &reloader.config).await?;
            let (drain, _) = watch::channel(false);
            let serving = admin.serve(AdminState {
                metrics: Arc::clone(&parts.metrics),
                clock: parts.clock.clone(),
                invalidation: Arc::clone(&parts.shared.invalidation) as Arc<dyn admin::Invalidate>,
                explain: Arc::new(explain::Door::new(&parts)),
                limits: Arc::new(limits::Door::new(Arc::clone(&parts.shared), parts.kv.clone())),
                config: Arc::clone(&parts.shown),
                token: Arc::clone(&parts.token),
                readiness: parts.readiness.clone(),
                condition: condition(parts.kv.clone()),
                drain,
            })?;
            tracing::info!(
                proxy = %addresses.proxy,
                admin = %addresses.admin,
                version = env!("CARGO_PKG_VERSION"),
                "listening"
            );
            parts.attend(&mut reloader, &mut signals).await;
            parts.end(running, &reloader.config).await;
            drop(serving);
            Ok(())
        });
        sink.flush(LAST_LINES);
        ended
    }
}

/// Everything that lives as long as the process.
struct Parts {
    metrics: Arc<Metrics>,
    clock: Clock,
    readiness: Readiness,
    token: admin::Token,
    shown: admin::Shown,
    limits: Arc<ArcSwap<ServerLimits>>,
    /// Connections of clients for which there are descriptors.
    most_clients: usize,
    entrance: Arc<ArcSwap<Entrance>>,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    kv: Option<Arc<kv::Shared>>,
    fleet: Option<Fleet>,
    secret: Secret,
    sink: log::Sink,
}

impl Parts {
    fn build(loaded: &Loaded, sink: &log::Sink, runtime: &Runtime) -> Self {
        let config = &loaded.config;
        let most_clients = descriptors::allow(config);
        let metrics = Metrics::new(Registry::new());
        metrics.adopt(sink.dropped_total());
        let clock = Clock::system();
        let readiness = Readiness::new();
        let (kv, invalidation) = match &config.redis {
            None => (None, Invalidation::local(clock.clone(), Arc::clone(&metrics))),
            Some(redis) => {
                let kv = kv::Shared::new(redis, Arc::clone(&metrics), clock.clone());
                let (invalidation, follow) = Invalidation::shared(Arc::clone(&kv), Bounds::over(config.bounds()));
                runtime.spawn(follow);
                runtime.spawn(kv::bus::probe(Arc::clone(&kv)));
                runtime.spawn(kv::follow::follow(Arc::clone(&kv)));
                runtime.spawn(kv::inspect::watch(Arc::clone(&kv), kv::inspect::Needs::of(config, redis)));
                runtime.spawn(unblock(Arc::clone(&invalidation), readiness.block("invalidations"), redis.startup_wait));
                (Some(kv), invalidation)
            }
        };
        let secret = key_secret(config);
        let cache = Cache::new(&config.cache, Arc::clone(&invalidation), clock.clone(), &metrics);
        let tier = kv.as_ref().zip(config.redis.as_ref());
        let tier = tier.map(|(kv, redis)| Arc::new(SharedTier::new(Arc::clone(kv), redis, &config.cache)));
        if let Some((kv, tier)) = kv.as_ref().zip(tier.as_ref()) {
            runtime.spawn(chores::tell_ended(Arc::clone(tier), Arc::clone(kv)));
        }
        warm::start(runtime, &readiness, &cache, tier.as_ref().zip(kv.as_ref()));
        let limiter = Arc::new(Limiter::new(
            clock.clone(),
            limit::Settings {
                secret: secret.clone(),
                replicas: config.redis.as_ref().map_or(1, |redis| redis.replicas),
            },
        ));
        if let Some(kv) = &kv {
            runtime.spawn(chores::renew(Arc::clone(&limiter), Arc::clone(kv)));
            runtime.spawn(chores::repay(Arc::clone(&limiter), Arc::clone(kv)));
            limiter.follow(config.routes.iter().flat_map(|route| &route.limits).map(|limit| &**limit));
            runtime.spawn(chores::read_tiers(Arc::clone(&limiter), Arc::clone(kv)));
        }
        let fleet = config.redis.as_ref().map(|redis| Fleet::new(Arc::clone(&invalidation), redis.replicas));
        let workers = config.server.workers.get();
        Self {
            token: Arc::new(ArcSwapOption::from_pointee(config.admin.token.clone())),
            shown: Arc::new(ArcSwap::from_pointee(loaded.shown.clone())),
            limits: Arc::new(ArcSwap::from_pointee(descriptors::capped(config.server.limits, most_clients))),
            most_clients,
            entrance: Arc::new(ArcSwap::from_pointee(entrance(config))),
            connections: Connections::new(config.upstream.clone(), workers, &metrics),
            shared: Shared::new(
                Live::new(Arc::new(config.clone()), &secret, &metrics),
                cache,
                tier,
                limiter,
                invalidation,
            ),
            metrics,
            clock,
            readiness,
            kv,
            fleet,
            secret,
            sink: sink.clone(),
        }
    }

    async fn serve(&self, bound: server::Bound, config: &Config) -> io::Result<server::Running> {
        let settings = server::Settings {
            limits: Arc::clone(&self.limits),
            entrance: Arc::clone(&self.entrance),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
        };
        let (shared, connections, kv) = (Arc::clone(&self.shared), Arc::clone(&self.connections), self.kv.clone());
        let (metrics, clock, sink) = (Arc::clone(&self.metrics), self.clock.clone(), self.sink.clone());
        let make = move |index| {
            let worker = Worker {
                shared: Arc::clone(&shared),
                upstream: Upstream::new(Arc::clone(&connections), index),
                redis: kv.clone().map(kv::Redis::new),
                books: Arc::new(Books {
                    metrics: Arc::clone(&metrics),
                    clock: clock.clone(),
                    access: sink.for_worker(),
                }),
                behind: TaskTracker::new(),
            };
            std::future::ready(Front(Proxy::new(worker)))
        };
        server::start(bound, config.server.workers, settings, make).await
    }

    /// Signals, changed files and the clock, until a signal says to end.
    async fn attend(&self, reloader: &mut Reloader, signals: &mut Signals) {
        let mut tick = interval(HOUSEKEEPING);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = signals.hangup.recv() => self.reload(reloader),
                () = reloader.changed() => self.reload(reloader),
                _ = tick.tick() => {
                    self.connections.sweep();
                    if let Some(fleet) = &self.fleet {
                        self.shared.limiter.set_replicas(fleet.pods());
                    }
                }
            }
        }
    }

    /// Takes a new configuration, or keeps the old one and says why. Requests in flight keep the one they began with;
    /// cache and buckets stay.
    fn reload(&self, reloader: &mut Reloader) {
        let loaded = match reloader.source.load(&reloader.overrides) {
            Ok(loaded) => loaded,
            Err(report) => {
                self.metrics.reloaded(Reload::Rejected);
                return tracing::error!(problems = %report, "the new configuration is not taken; the old one stays");
            }
        };
        for warning in &loaded.warnings.problems {
            tracing::warn!(place = %warning.place, remedy = warning.remedy, "{}", warning.text);
        }
        let restart = reloader.config.restart_needed(&loaded.config);
        if !restart.is_empty() {
            tracing::warn!(keys = ?restart, "these settings change at the next start only");
        }
        let mut shown = String::new();
        for key in &restart {
            shown += &format!("# {key}: what is shown here begins with the next start\n");
        }
        self.shown.store(Arc::new(shown + &loaded.shown));
        let config = loaded.config.keeping(&reloader.config);
        self.limits.store(Arc::new(descriptors::capped(config.server.limits, self.most_clients)));
        self.entrance.store(Arc::new(entrance(&config)));
        self.connections.renew(&config.upstream);
        if let (Some(kv), Some(redis)) = (&self.kv, &config.redis) {
            kv.set_access(&redis.access);
        }
        self.token.store(config.admin.token.clone().map(Arc::new));
        self.sink.set_access(config.log.access);
        self.shared.invalidation.set_bounds(Bounds::over(config.bounds()));
        self.shared.limiter.follow(config.routes.iter().flat_map(|route| &route.limits).map(|limit| &**limit));
        self.shared.replace(Live::new(Arc::new(config.clone()), &self.secret, &self.metrics));
        reloader.take(config, loaded.files);
        self.metrics.reloaded(Reload::Applied);
        tracing::info!("the configuration was reloaded");
    }

    /// Unready but accepting, then no new connections, then what is in flight.
    async fn end(&self, running: server::Running, config: &Config) {
        self.readiness.drain();
        tracing::info!(lame_duck = ?config.server.lame_duck, drain = ?config.server.drain, "ending");
        running.leave();
        let mut again = AnySignal::new();
        tokio::select! {
            () = tokio::time::sleep(config.server.lame_duck) => {}
            () = again.recv() => tracing::info!("asked twice: the lame duck's time is cut short"),
        }
        let drained = running.drain(config.server.drain).await;
        if let Some(kv) = &self.kv {
            self.shared.limiter.repay(&kv::Redis::control(Arc::clone(kv)), true).await;
        }
        self.shared.invalidation.leave().await;
        tracing::info!(cut = drained.cut, "ended");
    }
}

/// What stands in front of HTTP.
fn entrance(config: &Config) -> Entrance {
    Entrance::new(config.server.tls.as_ref(), config.server.proxy_protocol.clone())
}

/// The key of the HMACs: shared by the fleet, or this process's own where there is none.
fn key_secret(config: &Config) -> Secret {
    match &config.redis {
        Some(redis) => redis.key_secret.clone(),
        None => Secret::new([kv::random(), kv::random(), kv::random(), kv::random()].map(u64::to_be_bytes).concat()),
    }
}

async fn unblock(invalidation: Arc<Invalidation>, item: admin::readiness::Blocker, wait: Duration) {
    if !invalidation.ready().await && !wait.is_zero() {
        tracing::warn!(
            ?wait,
            "it is not known in time what was invalidated before the start: what others stored is not used until it is"
        );
    }
    drop(item);
}

/// What works only in part.
fn condition(kv: Option<Arc<kv::Shared>>) -> admin::Condition {
    Box::new(move || kv.as_ref().map(|kv| kv.condition()).unwrap_or_default())
}

/// What an operator says to the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// A second signal while the first is obeyed.
struct AnySignal(Option<(Signal, Signal)>);

impl AnySignal {
    fn new() -> Self {
        Self(signal(SignalKind::terminate()).ok().zip(signal(SignalKind::interrupt()).ok()))
    }

    async fn recv(&mut self) {
        match &mut self.0 {
            None => std::future::pending().await,
            Some((terminate, interrupt)) => {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            }
        }
    }
}

/// Joins the proxy to the server.
#[derive(Clone)]
struct Front(Proxy);

impl Service for Front {
    fn call(&self, request: Request<Body>, peer: Peer, interim: Interim<'_>) -> impl Future<Output = Answer> + Send {
        self.0.handle(request, peer, interim)
    }

    fn refuse(&self, status: StatusCode, why: &'static str) -> Answer {
        self.0.refuse(status, why)
    }

    fn settle(&self) -> impl Future<Output = ()> + Send {
        self.0.settle()
    }
}
