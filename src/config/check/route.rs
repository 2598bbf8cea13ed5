//! `[[route]]`, and what must hold between routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::limit::SharedLimits;
use super::{Check, nearest};
use crate::config::raw::{self, At, FieldMatch, Texts};
use crate::config::report::{Severity, Span};
use crate::config::text::Grammar;
use crate::config::{Config, FieldEdits, Invalidates, Purge, Route};
use crate::syntax::pattern::{Captures, Pattern, Segment};
use crate::syntax::selector::Order;
use crate::syntax::template::Template;

/// Most routes; each has metrics of its own.
const MOST_ROUTES: usize = 10_000;
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// Fields that belong to one connection or to the framing (RFC 9110 section 7.6.1), which Weir itself writes.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
];

/// What a route takes from elsewhere where it says nothing.
pub(super) struct Defaults {
    pub(super) response_timeout: Duration,
    pub(super) body_idle: Duration,
    pub(super) max_staleness: Duration,
}

impl Check<'_, '_> {
    /// All routes; `None` if one of them is not usable, which was reported.
    pub(super) fn routes(
        &mut self,
        raw: &[At<raw::Route>],
        limits: &SharedLimits,
        defaults: &Defaults,
    ) -> Option<Vec<Arc<Route>>> {
        if let Some(at) = raw.get(MOST_ROUTES) {
            self.error(&at.span(), format!("there are more than {MOST_ROUTES} routes"), "combine some by patterns");
            return None;
        }
        let names: Vec<&str> =
            raw.iter().filter_map(|at| at.value.name.as_ref()).map(|name| name.value.source()).collect();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut taken: BTreeMap<Matcher, String> = BTreeMap::new();
        let mut routes = Vec::with_capacity(raw.len());
        for at in raw {
            let Some(route) = self.route(&at.value, limits, defaults, &names) else { continue };
            let span = at.value.name.as_ref().map_or_else(|| at.span(), At::span);
            if !seen.insert(route.name.clone()) {
                let text = format!("there is another route named \"{}\" above", route.name);
                self.error(&span, text, "give each route a name of its own");
            }
            let span = at.value.path.as_ref().map_or(span, At::span);
            if let Some(first) = taken.insert(Matcher::of(&route), route.name.clone()) {
                let text = format!("route \"{first}\" above takes every request that this one would");
                self.error(&span, text, "remove one, or tell them apart by `hosts`, `methods` or `headers`");
            }
            routes.push(Arc::new(route));
        }
        (routes.len() == raw.len()).then_some(routes)
    }

    fn route(&mut self, raw: &raw::Route, limits: &SharedLimits, defaults: &Defaults, names: &[&str]) -> Option<Route> {
        let name = self.read(&raw.name).map(|name| name.0);
        let path = self.read(&raw.path);
        let hosts = self.read_all(&raw.hosts).into_iter().map(|host| host.0).collect();
        let methods = self.read_all(&raw.methods);
        let cache = raw.cache.as_ref().and_then(|rule| self.cache_rule(rule, path.as_ref(), &methods, defaults));
        let purge = raw.purge.as_ref().is_some_and(|at| at.value);
        let from = self.networks(&raw.purge_from);
        let purge = purge.then_some(Purge { from });
        if let Some(at) = raw.purge_from.iter().flatten().next().filter(|_| purge.is_none()) {
            self.warn(
                &at.span(),
                "`purge_from` on a route without `purge`",
                "write `purge = true` beside it, or remove it",
            );
        }
        if let Some(at) = raw.purge.as_ref().filter(|at| at.value && cache.is_none()) {
            self.warn(&at.span(), "`purge` on a route that stores nothing", "remove it, or add a `cache` key");
        }
        let label = name.as_deref().unwrap_or("");
        let limits = self.route_limits(raw.limits.as_deref().unwrap_or_default(), label, limits);
        let headers = self.field_matches(raw.headers.as_ref());
        let invalidates = raw.invalidates.as_ref().map(|at| self.invalidates(at, path.as_ref(), names));
        let request = self.edits(raw.request.as_ref());
        let response = self.edits(raw.response.as_ref());
        let response_timeout = self.duration(&raw.response_timeout, SHORTEST_WAIT).unwrap_or(defaults.response_timeout);
        let body_idle = self.duration(&raw.body_idle, SHORTEST_WAIT).unwrap_or(defaults.body_idle);
        let tunnel_idle = self.duration(&raw.tunnel_idle, SHORTEST_WAIT).unwrap_or(TUNNEL_IDLE);
        Some(Route {
            name: name?,
            path: path?,
            hosts,
            methods,
            headers,
            cache,
            limits,
            invalidates,
            request,
            response,
            response_timeout,
            body_idle,
            tunnel_idle,
            purge,
        })
    }

    fn field_matches(
        &mut self,
        raw: Option<&BTreeMap<At<String>, At<FieldMatch>>>,
    ) -> Vec<(HeaderName, Option<HeaderValue>)> {
        let mut fields = Vec::new();
        for (name, value) in raw.into_iter().flatten() {
            let Some(name) = self.field_name(name) else { continue };
            match &value.value {
                FieldMatch::Present(true) => fields.push((name, None)),
                FieldMatch::Present(false) => {
                    let text = "a route cannot ask for a field to be absent";
                    self.error(&value.span(), text, "write true for any value, or the value in quotes");
                }
                FieldMatch::Value(text) => match text.read() {
                    Ok(value) => fields.push((name, Some(value))),
                    Err(wrong) => self.error(&value.span(), wrong.problem, wrong.remedy),
                },
            }
        }
        fields
    }

    fn field_name(&mut self, raw: &At<String>) -> Option<HeaderName> {
        HeaderName::read(&raw.value).map_err(|wrong| self.error(&raw.span(), wrong.problem, wrong.remedy)).ok()
    }

    fn edits(&mut self, raw: Option<&raw::FieldEdits>) -> FieldEdits {
        let mut edits = FieldEdits::default();
        let Some(raw) = raw else { return edits };
        for (name_at, value) in raw.set.iter().flatten() {
            let value = self.read_at(value);
            let Some(name) = self.editable(&name_at.value, &name_at.span()) else { continue };
            edits.set.extend(value.map(|value| (name, value)));
        }
        for text in raw.remove.iter().flatten() {
            let Some(name) = self.editable(text.value.source(), &text.span()) else { continue };
            if edits.set.iter().any(|(set, _)| *set == name) {
                let problem = format!("`{name}` is both set and removed");
                self.error(&text.span(), problem, "keep one: what is set replaces what was there");
            }
            edits.remove.push(name);
        }
        edits
    }

    /// The name, unless Weir itself answers for the field.
    fn editable(&mut self, name: &str, span: &Span) -> Option<HeaderName> {
        let name = HeaderName::read(name).map_err(|wrong| self.error(span, wrong.problem, wrong.remedy)).ok()?;
        if FRAMING.contains(&name.as_str()) {
            let remedy = if name == "host" {
                "use `upstream.host`"
            } else {
                "remove it: Weir writes this field as the connection needs it"
            };
            self.error(span, format!("`{name}` cannot be edited"), remedy);
            return None;
        }
        Some(name)
    }

    fn invalidates(&mut self, raw: &At<raw::Invalidates>, path: Option<&Pattern>, names: &[&str]) -> Invalidates {
        let span = raw.span();
        let raw = &raw.value;
        let tags = self.templates(&raw.tags, path);
        let urls = self.templates(&raw.urls, path);
        let prefixes = self.templates(&raw.prefixes, path);
        for (template, span) in &urls {
            self.selector(span, template, |url| Order { urls: vec![url], ..Order::default() });
        }
        for (template, span) in &prefixes {
            self.selector(span, template, |prefix| Order { prefixes: vec![prefix], ..Order::default() });
        }
        let mut routes = Vec::new();
        for at in raw.routes.iter().flatten() {
            if names.contains(&at.value.as_str()) {
                routes.push(at.value.clone());
                continue;
            }
            let remedy = match nearest(&at.value, names.iter().copied()) {
                Some(near) => format!("write \"{near}\""),
                None => "write the name of a [[route]]".to_owned(),
            };
            self.error(&at.span(), format!("there is no route named \"{}\"", at.value.escape_debug()), remedy);
        }
        let nothing = |list: &Option<Vec<_>>| list.as_ref().is_none_or(Vec::is_empty);
        if nothing(&raw.tags)
            && nothing(&raw.urls)
            && nothing(&raw.prefixes)
            && raw.routes.iter().flatten().next().is_none()
        {
            self.warn(&span, "`invalidates` names nothing", "add `tags`, `urls`, `prefixes` or `routes`, or remove it");
        }
        let bare = |list: Vec<(Template, Span)>| list.into_iter().map(|(template, _)| template).collect();
        Invalidates { tags: bare(tags), urls: bare(urls), prefixes: bare(prefixes), routes }
    }

    /// Templates whose names the path captures, with their places.
    pub(super) fn templates(&mut self, raw: &Texts<Template>, path: Option<&Pattern>) -> Vec<(Template, Span)> {
        let mut templates = Vec::new();
        for text in raw.iter().flatten() {
            let Some(template) = self.read_at(text) else { continue };
            // Without a readable path nothing is known about its captures, and that was reported.
            let Some(path) = path else { continue };
            let unknown: Vec<&str> =
                template.names().filter(|name| !path.names().any(|known| known == *name)).collect();
            for name in &unknown {
                let known: Vec<&str> = path.names().collect();
                let remedy = match nearest(name, known.iter().copied()).or(known.first().copied()) {
                    Some(near) => format!("write `{{{near}}}`, or name a segment of the path `{{{name}}}`"),
                    None => format!("the path captures nothing: name a segment of it `{{{name}}}`"),
                };
                self.error(&text.span(), format!("the path \"{}\" does not capture `{name}`", path.source()), remedy);
            }
            if unknown.is_empty() {
                templates.push((template, text.span()));
            }
        }
        templates
    }

    /// Whether what the template makes can be read as a selector, tried with a plain word for every capture.
    fn selector(&mut self, span: &Span, template: &Template, order: impl Fn(String) -> Order) {
        let captures = Captures(template.names().map(|name| (name.to_owned(), "x")).collect());
        if let Err(wrong) = order(template.render(&captures)).selectors() {
            self.error(span, wrong.problem, wrong.remedy);
        }
    }

    /// What is probably not meant, seen over the whole.
    pub(super) fn between(&mut self, limits: &SharedLimits, config: &Config) {
        let are_routes_read = !self.was_misread(&["route", "route.limits"]);
        if config.routes.is_empty() && are_routes_read {
            let (text, remedy) = ("there is no route: nothing is stored or limited", "add a [[route]]");
            self.problems.push(self.sources.problem(Severity::Warning, None, text, remedy));
        }
        for (name, shared) in limits {
            if are_routes_read && !self.named_limits.contains(name) {
                self.warn(
                    &shared.span,
                    format!("no route names the limit \"{name}\""),
                    format!("add limits = [\"{name}\"] to a route"),
                );
            }
        }
        let stores = config.routes.iter().any(|route| route.cache.is_some());
        if stores && config.cache.memory == 0 && config.redis.is_none() {
            let text = "nothing can be stored: `cache.memory` is 0 and there is no Redis";
            self.problems.push(self.sources.problem(
                Severity::Warning,
                None,
                text,
                "raise `cache.memory`, or add [redis]",
            ));
        }
    }
}

/// What a route takes, in a form that two routes share only if they take the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Matcher {
    path: Vec<Segment>,
    hosts: Vec<String>,
    methods: Vec<String>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Matcher {
    fn of(route: &Route) -> Self {
        let nameless = |segment: &Segment| match segment {
            Segment::Literal(text) => Segment::Literal(text.clone()),
            Segment::One(_) => Segment::One(String::new()),
            Segment::Rest(_) => Segment::Rest(String::new()),
        };
        Self {
            path: route.path.segments().iter().map(nameless).collect(),
            hosts: sorted(route.hosts.iter().cloned()),
            methods: sorted(route.methods.iter().map(Method::to_string)),
            headers: sorted(
                route
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.as_ref().map(|v| v.as_bytes().to_vec()))),
            ),
        }
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items.dedup();
    items
}
