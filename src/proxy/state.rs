//! What a worker shares with the others, and what of it a reload replaces.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{HeaderMap, Method, header};
use tokio_util::task::TaskTracker;

use super::exchange::Books;
use super::respond::Forward;
use super::route::Router;
use super::target::Target;
use super::upstream::Upstream;
use crate::cache::key::{self, KeyBuilder};
use crate::cache::policy::{self, Bypass};
use crate::cache::search::Search;
use crate::cache::shared::SharedTier;
use crate::cache::{Ask, Cache};
use crate::config::{CacheRule, Config, FieldEdits, Route, Secret, Unmatched};
use crate::invalidation::{Invalidation, Subject};
use crate::kv;
use crate::limit::{Limiter, RouteLimits};
use crate::metrics::{Metrics, RouteMetrics};
use crate::syntax::pattern::{Captures, Pattern};
use crate::syntax::selector::check_tag;

/// Name under which requests are counted that no route takes.
pub const UNMATCHED: &str = "-";

/// Longest silence in a tunnel that no route has a word on: the default of `tunnel_idle`.
const UNMATCHED_TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// Room for a key of the usual length.
const USUAL_KEY_BYTES: usize = 256;

/// What all workers share.
pub struct Shared {
    live: ArcSwap<Live>,
    /// The cache.
    pub cache: Arc<Cache>,
    /// Redis' side of it.
    pub tier: Option<Arc<SharedTier>>,
    /// The limiter.
    pub limiter: Arc<Limiter>,
    /// What has been invalidated.
    pub invalidation: Arc<Invalidation>,
}

impl Shared {
    /// Joins the parts under a first configuration.
    pub fn new(
        live: Live,
        cache: Arc<Cache>,
        tier: Option<Arc<SharedTier>>,
        limiter: Arc<Limiter>,
        invalidation: Arc<Invalidation>,
    ) -> Arc<Self> {
        Arc::new(Self { live: ArcSwap::from_pointee(live), cache, tier, limiter, invalidation })
    }

    /// The configuration of this moment; a request keeps the one that it began with.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another in its place, for the requests that come.
    pub fn replace(&self, live: Live) {
        self.live.store(Arc::new(live));
    }
}

/// One worker's own.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's connections to the upstream.
    pub upstream: Upstream,
    /// This worker's connections to Redis.
    pub redis: Option<kv::Redis>,
    /// Where requests are accounted for.
    pub books: Arc<Books>,
    /// Fetches and writes that go on behind their answers.
    pub behind: TaskTracker,
}

/// A configuration in use: routes resolved to their metrics and limits.
pub struct Live {
    /// The configuration.
    pub config: Arc<Config>,
    /// Longest that one request waits for Redis.
    pub redis_deadline: Duration,
    router: Router,
    routes: Vec<Arc<RouteState>>,
    unmatched: Arc<RouteState>,
}

/// A route in use.
pub struct RouteState {
    /// Name, as labels and lines have it.
    pub name: Arc<str>,
    /// Its configuration.
    pub rule: Arc<Route>,
    /// Its handles.
    pub metrics: Arc<RouteMetrics>,
    /// What makes its keys, where it caches.
    pub keys: Option<KeyBuilder>,
    /// Its limits by stage.
    pub limits: RouteLimits,
    /// Longest silence in a body.
    pub body_idle: Duration,
    /// Stands for the requests that no route takes, where those are refused.
    pub is_not_found: bool,
}

impl Live {
    /// Resolves a configuration.
    pub fn new(config: Arc<Config>, secret: &Secret, metrics: &Metrics) -> Self {
        let generation = &config.cache.generation;
        let state = |rule: &Arc<Route>, is_not_found| {
            Arc::new(RouteState {
                name: rule.name.as_str().into(),
                metrics: metrics.route(&rule.name),
                limits: RouteLimits::new(metrics, &rule.name, &rule.limits),
                keys: rule.cache.as_ref().map(|cache| KeyBuilder::new(generation, &rule.name, cache, secret.expose())),
                body_idle: rule.body_idle,
                rule: Arc::clone(rule),
                is_not_found,
            })
        };
        let unmatched = Arc::new(unmatched(&config));
        Self {
            redis_deadline: config.redis.as_ref().map_or(Duration::ZERO, |redis| redis.deadline),
            router: Router::new(&config.routes),
            routes: config.routes.iter().map(|rule| state(rule, false)).collect(),
            unmatched: state(&unmatched, config.server.unmatched == Unmatched::NotFound),
            config,
        }
    }

    /// The route that takes a request; a path without one form is matched as it came.
    pub fn route(&self, target: &Target, parts: &Parts) -> &Arc<RouteState> {
        // PURGE names what a GET would fetch.
        let method = if parts.method.as_str() == "PURGE" { &Method::GET } else { &parts.method };
        let found = self.router.find(target.host(), method, target.path(), &parts.headers);
        found.and_then(|index| self.routes.get(index)).unwrap_or(&self.unmatched)
    }

    /// Every route in its order.
    pub fn routes(&self) -> impl Iterator<Item = &RouteState> {
        self.routes.iter().map(|route| &**route)
    }

    /// What stands for the requests that no route takes.
    pub fn unmatched(&self) -> &RouteState {
        &self.unmatched
    }

    /// The route that answers a GET of the target from the cache, and its rule, if one does.
    pub fn cached(&self, target: &Target, headers: &HeaderMap) -> Option<(&Arc<RouteState>, &CacheRule)> {
        let found = self.router.find(target.host(), &Method::GET, target.path(), headers);
        let route = self.routes.get(found?)?;
        Some((route, route.rule.cache.as_ref()?))
    }
}

/// Why a request goes past the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// The route stores nothing.
    NoCache,
    /// The path has no one form, and so no key.
    Ambiguous,
    /// Something about the request.
    Request(Bypass),
}

impl Past {
    /// What `Cache-Status` says of it.
    pub fn forward(self) -> Forward {
        match self {
            Self::Request(Bypass::Method) => Forward::Method,
            Self::NoCache | Self::Ambiguous | Self::Request(_) => Forward::Bypass,
        }
    }
}

impl RouteState {
    /// Whether a request may be answered from the cache at all, where it is of this method to the cache.
    ///
    /// # Errors
    /// Why it goes past it.
    pub fn may_use_cache(&self, target: &Target, method: &Method, parts: &Parts, has_body: bool) -> Result<(), Past> {
        let rule = self.rule.cache.as_ref().ok_or(Past::NoCache)?;
        if target.ambiguity().is_some() {
            return Err(Past::Ambiguous);
        }
        // What reads by its body is no GET, whose conditions mean 304 (RFC 9110 sections 13.1.2 and 13.1.3).
        if *method != parts.method && parts.headers.contains_key(header::IF_NONE_MATCH) {
            return Err(Past::Request(Bypass::Precondition));
        }
        let honoured = super::honoured(rule, parts);
        policy::request_may_use_cache(method, &parts.headers, has_body, honoured.as_ref()).map_err(Past::Request)
    }

    /// The primary key of a request, by its `content` if it reads by that.
    pub fn key(&self, target: &Target, headers: &HeaderMap, content: Option<&key::Content<'_>>) -> Vec<u8> {
        let mut key = Vec::with_capacity(USUAL_KEY_BYTES);
        self.append_key(&mut key, target, headers, content);
        key
    }

    /// Appends [`RouteState::key`].
    pub fn append_key(
        &self,
        key: &mut Vec<u8>,
        target: &Target,
        headers: &HeaderMap,
        content: Option<&key::Content<'_>>,
    ) {
        self.append_key_of(key, target, target.query(), headers, content);
    }

    /// What a request is looked up by where answers say which parameters count; `plain` is its primary key.
    pub fn search(
        &self,
        target: &Target,
        headers: &HeaderMap,
        content: Option<&key::Content<'_>>,
        plain: &[u8],
    ) -> Option<Search> {
        self.rule.cache.as_ref().filter(|rule| rule.no_vary_search)?;
        let mut pathwise = Vec::with_capacity(plain.len());
        self.append_key_of(&mut pathwise, target, None, headers, content);
        Some(Search::new(plain, &pathwise, target.query()))
    }

    fn append_key_of(
        &self,
        key: &mut Vec<u8>,
        target: &Target,
        query: Option<&str>,
        headers: &HeaderMap,
        content: Option<&key::Content<'_>>,
    ) {
        let asked = key::Target { scheme: target.scheme().as_str(), host: target.host(), path: target.path(), query };
        match (&self.keys, content) {
            (None, _) => {}
            (Some(keys), None) => keys.primary(key, &asked, headers),
            (Some(keys), Some(content)) => keys.primary_by_content(key, &asked, headers, content),
        }
    }

    /// A request that is of this method to the cache, as it is asked at this moment; none where the route does not cache.
    pub fn ask<'r>(
        &'r self,
        cache: &Cache,
        target: &'r Target,
        key: &'r [u8],
        tags: &'r [String],
        parts: &'r Parts,
        method: &Method,
    ) -> Option<Ask<'r>> {
        let rule = self.rule.cache.as_ref()?;
        let (now, steady) = cache.times();
        Some(Ask {
            keys: self.keys.as_ref()?,
            credentials: policy::RequestFacts::of(rule, method, &parts.headers).credentials,
            key,
            search: None,
            headers: &parts.headers,
            rule,
            subject: self.subject(target, tags),
            directives: super::honoured(rule, parts),
            now,
            steady,
        })
    }

    /// Tags from the configuration; none if one of them can be no tag.
    pub fn tags(&self, target: &Target) -> Option<Vec<String>> {
        let templates = self.rule.cache.as_ref().map_or(&[][..], |rule| &rule.tags);
        if templates.is_empty() {
            return Some(Vec::new());
        }
        let captures = self.captures(target);
        let tags = templates.iter().map(|template| template.render(&captures));
        tags.map(|tag| check_tag(&tag).is_ok().then_some(tag)).collect()
    }

    /// The path's captures.
    pub fn captures<'t>(&self, target: &'t Target) -> Captures<'t> {
        Pattern::capture(&self.rule.path, target.path()).unwrap_or_default()
    }

    /// What invalidations can name of a request's answer.
    pub fn subject<'s>(&'s self, target: &'s Target, tags: &'s [String]) -> Subject<'s> {
        Subject {
            host: target.host(),
            path: target.path(),
            query: target.query(),
            also: &[],
            route: &self.name,
            tags,
            answer_tags: &[],
        }
    }
}

/// What requests get that no route takes: forwarded as they are.
fn unmatched(config: &Config) -> Route {
    Route {
        name: UNMATCHED.to_owned(),
        path: Pattern::everything(),
        hosts: Vec::new(),
        methods: Vec::new(),
        headers: Vec::new(),
        cache: None,
        limits: Vec::new(),
        invalidates: None,
        request: FieldEdits::default(),
        response: FieldEdits::default(),
        response_timeout: config.upstream.response_timeout,
        body_idle: config.server.limits.body_idle,
        tunnel_idle: UNMATCHED_TUNNEL_IDLE,
        purge: None,
    }
}
