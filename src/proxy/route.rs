//! Which route takes a request.
//!
//! Precedence is the Kubernetes Gateway API's, segment by segment: the more specific host (exact, then the longest
//! `*.suffix`, then none), then in each segment a literal before `{name}` before `{*name}`, then a route that names
//! methods, then the one that asks for more fields, then the order in the file. A route whose method or fields do not fit
//! leaves the request to the next one.

use std::sync::Arc;

use ahash::AHashMap;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::config::Route;
use crate::syntax::pattern::{Segment, split_first};

/// All routes, ready to be looked up without an allocation.
#[derive(Debug, Default)]
pub struct Router {
    routes: Vec<Arc<Route>>,
    /// By exact host.
    exact: AHashMap<Box<str>, Node>,
    /// By what follows `*.`.
    suffix: AHashMap<Box<str>, Node>,
    /// Routes that name no host.
    any: Node,
}

/// The routes whose patterns agree up to here, as a tree by segment. It is as deep as the longest pattern
/// ([`SEGMENTS`](crate::syntax::pattern::SEGMENTS)), and a look-up visits no node twice.
#[derive(Debug, Default)]
struct Node {
    literals: AHashMap<Box<str>, Node>,
    one: Option<Box<Node>>,
    /// Routes whose pattern ends here, best first.
    here: Vec<usize>,
    /// Routes that take here all that follows, best first.
    rest: Vec<usize>,
}

impl Router {
    /// A router over `routes`, in the order of the file.
    pub fn new(routes: &[Arc<Route>]) -> Self {
        let mut router = Self { routes: routes.to_vec(), ..Self::default() };
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_key(|&index| precedence(&routes[index], index));
        for index in order {
            let route = &routes[index];
            if route.hosts.is_empty() {
                router.any.insert(route.path.segments(), index);
            }
            for host in &route.hosts {
                let (hosts, name) = match host.strip_prefix("*.") {
                    Some(suffix) => (&mut router.suffix, suffix),
                    None => (&mut router.exact, host.as_str()),
                };
                hosts.entry(bare(name).into()).or_default().insert(route.path.segments(), index);
            }
        }
        router
    }

    /// The route, by its place in the file, that takes a request for `path` (normalised) on `host` (lower case, perhaps
    /// with a port).
    pub fn find(&self, host: &str, method: &Method, path: &str, headers: &HeaderMap) -> Option<usize> {
        let path = path.strip_prefix('/')?;
        let wanted = |index: &&usize| takes(&self.routes[**index], method, headers);
        let host = bare(host);
        if let Some(index) = self.exact.get(host).and_then(|node| node.find(Some(path), &wanted)) {
            return Some(index);
        }
        if !self.suffix.is_empty() {
            let suffixes = memchr::memchr_iter(b'.', host.as_bytes()).map(|dot| &host[dot + 1..]);
            for suffix in suffixes {
                if let Some(index) = self.suffix.get(suffix).and_then(|node| node.find(Some(path), &wanted)) {
                    return Some(index);
                }
            }
        }
        self.any.find(Some(path), &wanted)
    }
}

impl Node {
    fn insert(&mut self, segments: &[Segment], index: usize) {
        match segments {
            [] => push_once(&mut self.here, index),
            [Segment::Rest(_), ..] => push_once(&mut self.rest, index),
            [Segment::Literal(text), behind @ ..] => {
                self.literals.entry(text.as_str().into()).or_default().insert(behind, index);
            }
            [Segment::One(_), behind @ ..] => self.one.get_or_insert_default().insert(behind, index),
        }
    }

    /// The best route for `left`, what stands behind a slash, or nothing where the path has ended.
    fn find(&self, left: Option<&str>, wanted: &impl Fn(&&usize) -> bool) -> Option<usize> {
        let found = match left.map(split_first) {
            None => self.here.iter().find(wanted).copied(),
            Some((segment, behind)) => {
                let literal = self.literals.get(segment).and_then(|node| node.find(behind, wanted));
                literal.or_else(|| self.one.as_ref().filter(|_| !segment.is_empty())?.find(behind, wanted))
            }
        };
        found.or_else(|| self.rest.iter().find(wanted).copied())
    }
}

/// Sorts routes that the path cannot tell apart, best first.
fn precedence(route: &Route, index: usize) -> impl Ord + use<> {
    (route.methods.is_empty(), std::cmp::Reverse(route.headers.len()), index)
}

/// Why a route does not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit<'r> {
    /// It is for other hosts.
    Host,
    /// Its pattern does not fit the path.
    Path,
    /// It is for other methods.
    Method,
    /// It asks for this field, or for another value of it.
    Field(&'r HeaderName),
}

/// Why `route` by itself does not take a request, whatever other routes do; as [`Router::find`] has it.
pub fn misfit<'r>(
    route: &'r Route,
    host: &str,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<Misfit<'r>> {
    let host = bare(host);
    let is_host = |own: &String| match own.strip_prefix("*.") {
        Some(suffix) => host.strip_suffix(bare(suffix)).is_some_and(|front| front.ends_with('.')),
        None => bare(own) == host,
    };
    if !route.hosts.is_empty() && !route.hosts.iter().any(is_host) {
        return Some(Misfit::Host);
    }
    if route.path.capture(path).is_none() {
        return Some(Misfit::Path);
    }
    unmet(route, method, headers)
}

/// Whether `route` takes the method and fields.
fn takes(route: &Route, method: &Method, headers: &HeaderMap) -> bool {
    unmet(route, method, headers).is_none()
}

/// What `route` asks for that the request does not have.
fn unmet<'r>(route: &'r Route, method: &Method, headers: &HeaderMap) -> Option<Misfit<'r>> {
    if !route.methods.is_empty() && !route.methods.contains(method) {
        return Some(Misfit::Method);
    }
    let lacks = |(name, value): &&(HeaderName, Option<HeaderValue>)| match value {
        None => !headers.contains_key(name),
        Some(value) => !headers.get_all(name).iter().any(|found| found == value),
    };
    route.headers.iter().find(lacks).map(|(name, _)| Misfit::Field(name))
}

/// A host without its port and the dot that may end a full name.
fn bare(host: &str) -> &str {
    let name = match host.rfind([':', ']']) {
        Some(at) if host.as_bytes()[at] == b':' => &host[..at],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// A route may name a host twice.
fn push_once(list: &mut Vec<usize>, index: usize) {
    if list.last() != Some(&index) {
        list.push(index);
    }
}

#[cfg(test)]
mod tests;
