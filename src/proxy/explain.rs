//! What Weir would do with a request, and why: computed by the functions that do it, so that it cannot say otherwise.
//!
//! [`offline`] needs a configuration only; an [`Explainer`] looks into a running Weir as well. Neither counts anything,
//! takes from a limit, leads a fetch or changes what is stored.

mod asked;
mod limits;
mod live;
pub mod report;
mod request;
mod storing;
mod text;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use http::header::RANGE;
use http::request::Parts;
use http::{HeaderMap, Method};

use super::client::Client;
use super::content::Content;
use super::headers;
use super::honoured;
use super::state::{Live, RouteState, Shared};
use super::target::Target;
use crate::cache::Ask;
use crate::cache::policy::RequestFacts;
use crate::clock::{SteadyMs, WallMs};
use crate::config::CacheRule;
use crate::invalidation::Subject;
use crate::kv;
use crate::limit::Limiter;
use crate::message::question::Question;
use crate::syntax::SyntaxError;
use asked::Asked;
use report::{Does, Report};

/// Explains a request by a configuration alone, at this time of the fleet.
///
/// # Errors
/// The question cannot be read.
pub fn offline(live: &Live, question: &Question, now: WallMs) -> Result<Report, SyntaxError> {
    Ok(Case::new(live, None, question)?.report(now))
}

/// Explains requests to a running Weir.
pub struct Explainer {
    shared: Arc<Shared>,
    kv: Option<Arc<kv::Shared>>,
    redis: OnceLock<kv::Redis>,
}

impl Explainer {
    /// An explainer of `shared`, to be asked on one runtime: its connections to Redis live there. `kv` should be its own,
    /// so that its questions count in nobody's metrics and open nobody's breaker.
    pub fn new(shared: Arc<Shared>, kv: Option<Arc<kv::Shared>>) -> Self {
        Self { shared, kv, redis: OnceLock::new() }
    }

    /// Explains a request by the configuration of this moment, and by what is held for it.
    ///
    /// # Errors
    /// The question cannot be read.
    pub async fn explain(&self, question: &Question) -> Result<Report, SyntaxError> {
        let live = self.shared.live();
        let case = Case::new(&live, Some(&self.shared.limiter), question)?;
        let (now, steady) = self.shared.cache.times();
        let mut report = case.report(now);
        let redis = self.kv.as_ref().map(|kv| self.redis.get_or_init(|| kv::Redis::control(Arc::clone(kv))));
        if report.way.does == Does::Cache
            && let Some(ask) = case.ask(now, steady)
        {
            let content = case.content.as_ref().map(Content::keyed);
            let search = case.route.search(&case.target, case.headers(), content.as_ref(), &case.key).map(Arc::new);
            let ruled = match &search {
                Some(search) => live::ruled(&self.shared, redis, &case, search, now).await,
                None => None,
            };
            let (key, also) = ruled.as_ref().map_or((ask.key, &[][..]), |ruled| (&ruled.key, &ruled.names));
            let ask = Ask { key, search: search.as_ref(), subject: Subject { also, ..ask.subject }, ..ask };
            report.live = Some(live::seen(&self.shared, redis, &case, &ask).await);
        }
        Ok(report)
    }
}

/// A request under a configuration, with all that the proxy makes of it before it looks anywhere.
struct Case<'l> {
    live: &'l Live,
    /// Of a running Weir.
    limiter: Option<&'l Limiter>,
    asked: Asked,
    client: Client,
    target: Target,
    route: Arc<RouteState>,
    content: Option<Content>,
    key: Vec<u8>,
    tags: Option<Vec<String>>,
}

impl<'l> Case<'l> {
    /// The first steps of [`Proxy::handle`](super::Proxy::handle), in its order.
    fn new(live: &'l Live, limiter: Option<&'l Limiter>, question: &Question) -> Result<Self, SyntaxError> {
        let mut asked = Asked::read(question)?;
        headers::strip_nominated(&mut asked.parts.headers);
        let client = Client::identify(&asked.peer, &asked.parts.headers, &live.config);
        let mut target = Target::of(&asked.parts, client.proto);
        let route = Arc::clone(live.route(&target, &asked.parts));
        if let Some(rule) = &route.rule.cache {
            target.keep_query(&rule.query);
        }
        let content = Content::keying(route.rule.cache.as_ref(), &asked.parts.method, asked.body.clone());
        let key = route.key(&target, &asked.parts.headers, content.as_ref().map(Content::keyed).as_ref());
        let tags = route.tags(&target);
        Ok(Self { live, limiter, asked, client, target, route, content, key, tags })
    }

    fn report(&self, now: WallMs) -> Report {
        let way = self.way();
        Report {
            request: self.request(),
            route: self.taken(),
            key: self.keyed().filter(|_| matches!(way.does, Does::Cache | Does::Purge)),
            rule: self.rule().map(|rule| self.settings(rule)).unwrap_or_default(),
            limits: self.limits(way.does),
            storing: self.storing(&way, now),
            way,
            live: None,
        }
    }

    fn parts(&self) -> &Parts {
        &self.asked.parts
    }

    /// What the request is to the cache.
    fn reads_as(&self) -> &Method {
        if self.content.is_some() { &Method::GET } else { &self.parts().method }
    }

    /// Whether it asks for a part of what it names.
    fn is_part(&self) -> bool {
        self.parts().method == Method::GET && self.headers().contains_key(RANGE)
    }

    fn headers(&self) -> &HeaderMap {
        &self.asked.parts.headers
    }

    fn rule(&self) -> Option<&CacheRule> {
        self.route.rule.cache.as_ref()
    }

    /// What decides whether a stored answer may be used, as the proxy asks it.
    fn ask(&self, now: WallMs, steady: SteadyMs) -> Option<Ask<'_>> {
        let rule = self.rule()?;
        Some(Ask {
            keys: self.route.keys.as_ref()?,
            key: &self.key,
            search: None,
            headers: self.headers(),
            rule,
            subject: self.route.subject(&self.target, self.tags.as_deref()?),
            credentials: RequestFacts::of(rule, self.reads_as(), self.headers()).credentials,
            directives: honoured(rule, self.parts()),
            now,
            steady,
        })
    }
}

/// Milliseconds as seconds.
fn seconds(ms: u64) -> String {
    match (ms / 1000, ms % 1000) {
        _ if ms == u64::MAX => "without end".to_owned(),
        (whole, 0) => format!("{whole} s"),
        (whole, rest) => format!("{whole}.{} s", format!("{rest:03}").trim_end_matches('0')),
    }
}

/// A list as text.
fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
