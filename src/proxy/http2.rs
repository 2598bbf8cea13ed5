//! HTTP/2 towards the upstream, by prior knowledge or, over TLS, by its handshake: one connection a worker, by hyper.

use std::pin::pin;

use http::{Request, Uri, Version, header};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::overload::upload::Upload;
use super::upstream::{Failure, Patience, Reply, Upstream};
use crate::config::Target;
use crate::message::Body;

/// Longest wait for the answer to a ping before the connection is given up.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Silence after which a ping is sent.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);

/// The worker's connection, while it lives.
#[derive(Default)]
pub struct Shared(Mutex<Option<SendRequest<Body>>>);

/// Sends a request on the worker's connection and waits for the response's head. The body is taken out of `request`.
pub async fn exchange(
    upstream: &Upstream,
    request: &mut Request<Body>,
    patience: Patience,
    upload: Option<&Upload>,
) -> Result<Reply, Failure> {
    let mut sender = connected(upstream).await?;
    let mut outgoing = Request::new(std::mem::take(request.body_mut()));
    *outgoing.method_mut() = request.method().clone();
    *outgoing.version_mut() = Version::HTTP_2;
    *outgoing.headers_mut() = request.headers().clone();
    let host = outgoing.headers_mut().remove(header::HOST);
    let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let scheme = if upstream.settings().tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build();
    *outgoing.uri_mut() = uri.map_err(|_| Failure::Malformed("the request's host is no authority"))?;
    let mut answer = pin!(sender.send_request(outgoing));
    let mut wait = patience.response;
    let answered = loop {
        if let Ok(answered) = timeout(wait, &mut answer).await {
            break answered;
        }
        let left = upload.and_then(|upload| upload.patience(upstream.now(), patience.response, patience.body_idle));
        wait = left.ok_or(Failure::ResponseTimeout)?;
    };
    match (answered, upload.and_then(Upload::fault)) {
        (Ok(response), _) => Ok(Reply { response: response.map(Body::Hyper), upgraded: None }),
        (Err(_), Some(fault)) => Err(Failure::RequestBody { error: fault.into(), was_begun: true }),
        (Err(error), None) => Err(Failure::Closed(std::io::Error::other(error))),
    }
}

async fn connected(upstream: &Upstream) -> Result<SendRequest<Body>, Failure> {
    // Held while a connection opens: the others wait for that one instead of opening theirs.
    let patience = upstream.settings().queue_timeout;
    let mut slot = timeout(patience, upstream.http2().0.lock()).await.map_err(|_| upstream.no_connection())?;
    if let Some(mut sender) = slot.clone()
        && sender.ready().await.is_ok()
    {
        return Ok(sender);
    }
    let permit = upstream.permit().await?;
    let socket = upstream.connect().await?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|error| Failure::Closed(std::io::Error::other(error)))?;
    let name = match &upstream.settings().target {
        Target::Tcp { authority, .. } => authority.clone(),
        Target::Unix(path) => path.display().to_string(),
    };
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(upstream = name, %error, "the HTTP/2 connection ended");
        }
        drop(permit);
    });
    *slot = Some(sender.clone());
    Ok(sender)
}
