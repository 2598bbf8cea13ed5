//! The admin port's requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::access::{self, Refusal};
use super::{AdminState, CONNECTIONS, explain, limits};
use crate::invalidation::Receipt;
use crate::syntax::selector::Order;
use crate::syntax::{SyntaxError, scalar};

/// Bytes of a request's body: room for an order of [`crate::syntax::selector::SELECTORS_PER_ORDER`] long selectors.
const BODY_BYTES: usize = 1 << 20;

/// Orders that are being submitted, those whose clients left included.
const SUBMISSIONS: usize = CONNECTIONS;

/// What there is, for whoever asks for something else.
const PATHS: &[&str] = &[
    "GET /metrics",
    "GET /livez",
    "GET /readyz",
    "GET /version",
    "GET /explain",
    "GET /config",
    "GET /limits",
    "GET /limits/{limit}?{part}={value}",
    "DELETE /limits/{limit}?{part}={value}",
    "POST /drain",
    "POST /invalidate",
];

pub(super) type Reply = Response<Full<Bytes>>;

/// What a request comes to.
pub(super) enum Answer {
    /// An answer.
    Ready(Reply),
    /// Every pod is waited for first, for so long at most.
    Waits(Receipt, Option<Duration>),
}

/// Longest that an order may ask to wait for every pod.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Answers requests.
pub(super) struct Api {
    state: AdminState,
    submissions: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(state: AdminState) -> Self {
        Self { state, submissions: Arc::new(Semaphore::new(SUBMISSIONS)) }
    }

    /// Answers one request from `peer`.
    pub(super) async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let read = head.method == Method::GET || head.method == Method::HEAD;
        if let Some(name) = limits::named(head.uri.path()) {
            let is_known = read || head.method == Method::DELETE;
            return Answer::Ready(match self.admit(&head, peer) {
                _ if !is_known => only("GET, HEAD, DELETE"),
                Err(refusal) => refused(refusal),
                Ok(()) => self.limit(&head, name).await,
            });
        }
        let reply = match head.uri.path() {
            "/metrics" if read => self.metrics(),
            "/livez" if read => text(StatusCode::OK, "ok\n"),
            "/readyz" if read => self.ready(head.uri.query()),
            "/version" if read => self.version(),
            "/metrics" | "/livez" | "/readyz" | "/version" => only("GET, HEAD"),
            "/explain" | "/config" | limits::PATH if !read => only("GET, HEAD"),
            // A kubelet's httpGet hook can only GET; reading /drain is as guarded as writing it.
            "/drain" if !read && head.method != Method::POST => only("POST, GET"),
            "/invalidate" if head.method != Method::POST => only("POST"),
            // Some of them change nothing, but say much of what is stored and for whom.
            path @ ("/drain" | "/invalidate" | "/explain" | "/config" | limits::PATH) => {
                match self.admit(&head, peer) {
                    Err(refusal) => refused(refusal),
                    Ok(()) if path == "/drain" => self.drain(),
                    Ok(()) if path == "/config" => text(StatusCode::OK, String::clone(&self.state.config.load())),
                    Ok(()) if path == limits::PATH => json_reply(StatusCode::OK, &self.state.limits.list()),
                    Ok(()) if path == "/explain" => self.explain(&head).await,
                    Ok(()) => return self.invalidate(body).await,
                }
            }
            _ => json_reply(
                StatusCode::NOT_FOUND,
                &json!({ "error": "there is nothing at this path", "remedy": "ask for one of `paths`", "paths": PATHS }),
            ),
        };
        Answer::Ready(reply)
    }

    /// Says when no pod can serve what was invalidated any more, or who has not confirmed it by then.
    pub(super) async fn confirm(&self, receipt: Receipt, wait: Option<Duration>) -> Reply {
        let confirmation = self.state.invalidation.confirmed(receipt.position, wait).await;
        let mut answer = placed(receipt);
        answer["complete"] = confirmation.is_complete.into();
        answer["pods"] = confirmation.pods.into();
        answer["silent"] = confirmation.silent.into();
        json_reply(if confirmation.is_complete { StatusCode::OK } else { StatusCode::ACCEPTED }, &answer)
    }

    fn admit(&self, head: &Parts, peer: IpAddr) -> Result<(), Refusal> {
        access::admit(head, peer, self.state.token.load().as_deref())
    }

    fn metrics(&self) -> Reply {
        let page = self.state.metrics.render(self.state.clock.now());
        reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
    }

    /// 200 while traffic is wanted. The body names what is missing; `?verbose` lists everything.
    fn ready(&self, query: Option<&str>) -> Reply {
        let readiness = &self.state.readiness;
        let (items, draining) = (readiness.report(), readiness.draining());
        let mut missing: Vec<_> = items.iter().filter(|item| item.blockers > 0).map(|item| item.name).collect();
        if draining {
            missing.push("draining");
        }
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut page =
            if missing.is_empty() { "ok\n".to_owned() } else { format!("not ready: {}\n", missing.join(", ")) };
        if query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))) {
            let mark = |done: bool| if done { "[+]" } else { "[-]" };
            for item in items {
                page += &format!("{} {}\n", mark(item.blockers == 0), item.name);
            }
            page += &format!("{} not draining\n", mark(!draining));
            page.extend((self.state.condition)().into_iter().map(|line| line + "\n"));
        }
        text(status, page)
    }

    fn version(&self) -> Reply {
        let version = json!({
            "name": "weir",
            "version": env!("CARGO_PKG_VERSION"),
            "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS,
        });
        json_reply(StatusCode::OK, &version)
    }

    fn drain(&self) -> Reply {
        self.state.readiness.drain();
        if !self.state.drain.send_replace(true) {
            tracing::info!("draining: unready from now on, still serving");
        }
        json_reply(StatusCode::OK, &json!({ "draining": true }))
    }

    async fn explain(&self, head: &Parts) -> Reply {
        let explained = match explain::read(head) {
            Ok((question, json)) => self.state.explain.explain(&question, json).await.map(|page| (page, json)),
            Err(problem) => Err(problem),
        };
        match explained {
            Ok((page, true)) => reply(StatusCode::OK, "application/json", page),
            Ok((page, false)) => text(StatusCode::OK, page),
            Err(problem) => error(StatusCode::BAD_REQUEST, &problem.problem, &problem.remedy),
        }
    }

    /// Shows, or with DELETE resets, one identity of the limit called `name`.
    async fn limit(&self, head: &Parts, name: &str) -> Reply {
        let asked = match limits::read(head, name) {
            Ok(asked) => asked,
            Err(problem) => return error(StatusCode::BAD_REQUEST, &problem.problem, &problem.remedy),
        };
        let seen = match head.method {
            Method::DELETE => self.state.limits.reset(&asked).await,
            _ => self.state.limits.state(&asked).await,
        };
        seen.map_or_else(|problem| limits::refused(&problem), |shown| json_reply(StatusCode::OK, &shown))
    }

    async fn invalidate(&self, body: Incoming) -> Answer {
        let bytes = match read_body(body).await {
            Ok(bytes) => bytes,
            Err(reply) => return Answer::Ready(*reply),
        };
        let bad = |problem: &SyntaxError| error(StatusCode::BAD_REQUEST, &problem.problem, &problem.remedy);
        let (order, wait) = match read_order(&bytes) {
            Ok(read) => read,
            Err(problem) => return Answer::Ready(bad(&problem)),
        };
        Answer::Ready(match (self.submit(order).await, wait) {
            (Some(Ok(receipt)), Wait::All(wait)) if receipt.logged => return Answer::Waits(receipt, wait),
            (Some(Ok(receipt)), _) => accepted(receipt),
            (Some(Err(problem)), _) => bad(&problem),
            (None, _) => error(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many orders are being logged",
                "wait for the earlier ones, and put more selectors into one order",
            ),
        })
    }

    /// Submits an order; `None` where it was not taken. What was taken is finished even if its client leaves.
    async fn submit(&self, order: Order) -> Option<Result<Receipt, SyntaxError>> {
        let permit = Arc::clone(&self.submissions).try_acquire_owned().ok()?;
        let invalidation = Arc::clone(&self.state.invalidation);
        let submission = tokio::task::spawn_local(async move {
            let _permit = permit;
            invalidation.submit(&order).await
        });
        submission.await.ok()
    }
}

/// All of a body, or the answer to one that is too large or cut short.
async fn read_body(body: Incoming) -> Result<Bytes, Box<Reply>> {
    let too_large = || {
        Box::new(error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the order is larger than 1 MiB",
            "send it in several, or name a tag, a prefix or a route instead of URLs",
        ))
    };
    // What is announced need not be read to be refused.
    if body.size_hint().lower() > BODY_BYTES as u64 {
        return Err(too_large());
    }
    match Limited::new(body, BODY_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(problem) if problem.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => {
            let remedy = "send all that Content-Length promises";
            Err(Box::new(error(StatusCode::BAD_REQUEST, "the body ended early", remedy)))
        }
    }
}

/// Whom an order waits for.
enum Wait {
    /// This pod.
    None,
    /// Every pod, for so long at most; without a limit until none can serve what was invalidated.
    All(Option<Duration>),
}

/// Reads the body of `POST /invalidate`: an [`Order`], and whom to wait for.
fn read_order(bytes: &[u8]) -> Result<(Order, Wait), SyntaxError> {
    const REMEDY: &str = "send {\"urls\": [..], \"tags\": [..], \"prefixes\": [..], \"routes\": [..], \"all\": false, \"soft\": false, \"wait\": \"none\", \"timeout\": \"2s\"}";
    let bad = |problem: String| SyntaxError::new(problem, REMEDY);
    let mut fields: serde_json::Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|problem| bad(format!("the body is no JSON object: {problem}")))?;
    let all = match fields.remove("wait") {
        None | Some(Value::Null) => false,
        Some(Value::String(wait)) if wait == "none" => false,
        Some(Value::String(wait)) if wait == "all" => true,
        Some(_) => return Err(bad("`wait` is neither \"none\" nor \"all\"".to_owned())),
    };
    let timeout = match fields.remove("timeout") {
        None | Some(Value::Null) => None,
        Some(Value::String(timeout)) => Some(scalar::duration(&timeout)?),
        Some(_) => return Err(bad("`timeout` is no duration such as \"2s\"".to_owned())),
    };
    if timeout.is_some_and(|timeout| timeout > LONGEST_WAIT) {
        let remedy = format!("write at most \"{}s\"", LONGEST_WAIT.as_secs());
        return Err(SyntaxError::new("`timeout` is too long", remedy));
    }
    let order = Order::deserialize(Value::Object(fields)).map_err(|problem| bad(problem.to_string()))?;
    Ok((order, if all { Wait::All(timeout) } else { Wait::None }))
}

/// 200 for what is in the fleet's log, 202 for what is applied here and being retried.
fn accepted(receipt: Receipt) -> Reply {
    let status = if receipt.logged { StatusCode::OK } else { StatusCode::ACCEPTED };
    json_reply(status, &placed(receipt))
}

/// Where an order stands.
fn placed(receipt: Receipt) -> Value {
    json!({
        "seq": receipt.position.seq,
        "incarnation": format!("{:016x}", receipt.position.incarnation),
        "logged": receipt.logged,
    })
}

fn refused(refusal: Refusal) -> Reply {
    let (status, problem, remedy) = refusal.explain();
    let mut reply = error(status, problem, remedy);
    if status == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"weir\""));
    }
    reply
}

fn only(methods: &'static str) -> Reply {
    let mut reply =
        error(StatusCode::METHOD_NOT_ALLOWED, "this path does not know that method", &format!("use {methods}"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    reply
}

/// The answer to a request that took longer than any may.
pub(super) fn timed_out() -> Reply {
    error(
        StatusCode::SERVICE_UNAVAILABLE,
        "this took too long",
        "ask again; an order that was read by then is being carried out",
    )
}

pub(super) fn error(status: StatusCode, problem: &str, remedy: &str) -> Reply {
    json_reply(status, &json!({ "error": problem, "remedy": remedy }))
}

fn json_reply(status: StatusCode, value: &Value) -> Reply {
    reply(status, "application/json", format!("{value}\n"))
}

fn text(status: StatusCode, page: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", page)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let fields = reply.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
