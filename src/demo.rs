//! `weir demo`: a small slow sample service inside the same program, and the configuration that stands in front of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

/// What the sample service takes for an answer.
const SLOWNESS: Duration = Duration::from_millis(200);

/// Products whose price may be changed; the demo needs a handful.
const PRODUCTS: u32 = 1000;

/// The demo's configuration in front of the sample service at `upstream`.
pub fn config(upstream: SocketAddr) -> String {
    format!(
        r#"# The demo: routes of the example, memory only.
[server]
listen = "127.0.0.1:8080"
trusted_proxies = []
lame_duck = "0s"

[admin]
listen = "127.0.0.1:9901"

[log]
format = "text"
access = false

[upstream]
url = "http://{upstream}"

[[limit]]
name = "per-client"
key = ["ip"]
rate = "1/s"
burst = 20

[[route]]
name = "catalog"
path = "/catalog/{{id}}"
methods = ["GET", "HEAD"]
cache.ttl = "60s"
cache.stale_while_revalidate = "30s"
cache.stale_if_error = "10m"
cache.tags = ["product:{{id}}"]

[[route]]
name = "edit"
path = "/catalog/{{id}}"
methods = ["PUT"]
invalidates = {{ tags = ["product:{{id}}"] }}

[[route]]
name = "search"
path = "/search"
limits = ["per-client"]

[[route]]
name = "rest"
path = "/{{*path}}"
cache.enabled = true
"#
    )
}

/// What to try, printed at start.
///
/// `weir` is how this program was called.
pub fn guide(weir: &str, proxy: SocketAddr, admin: SocketAddr) -> String {
    format!(
        r#"Weir stands on http://{proxy} in front of a sample service that takes 200 ms for every answer.

Try, in another terminal:

  curl -i http://{proxy}/catalog/7          the first time 200 ms, then from the cache (see Cache-Status and Age)
  curl -i -X PUT http://{proxy}/catalog/7 -d 42
  curl -i http://{proxy}/catalog/7          the write invalidated the product's tag: a new answer
  seq 40 | xargs -P 40 -I{{}} curl -s -o /dev/null -w '%{{http_code}} ' http://{proxy}/search; echo
  curl -i http://{proxy}/search             the burst of 20 is used up: 429 with Retry-After
  curl -X POST http://{admin}/invalidate -d '{{"tags":["product:7"]}}'
  {weir} invalidate --admin http://{admin} --prefix /catalog
  curl -s http://{proxy}/count              how many requests reached the service
  curl -s http://{admin}/metrics | grep -E 'hit_ratio|requests_total'

Ctrl-C ends it."#
    )
}

#[derive(Default)]
struct Shop {
    requests: AtomicU64,
    prices: Mutex<HashMap<u32, u32>>,
}

/// Starts the sample service on a free port, on a thread of its own that lives as long as the process.
///
/// # Errors
/// No port is free, or no thread could be started.
pub fn serve() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("sample-service".into()).spawn(move || runtime.block_on(accept(listener)))?;
    Ok(address)
}

async fn accept(listener: std::net::TcpListener) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let shop = Arc::new(Shop::default());
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shop = Arc::clone(&shop);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&shop), request));
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the sample service ended");
            }
        });
    }
}

async fn answer(shop: Arc<Shop>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/count" {
        let count = shop.requests.load(Ordering::Relaxed);
        return Ok(reply(StatusCode::OK, "no-store", format!("{{\"requests\": {count}}}\n")));
    }
    let number = shop.requests.fetch_add(1, Ordering::Relaxed) + 1;
    tokio::time::sleep(SLOWNESS).await;
    let path = request.uri().path().to_owned();
    if path == "/search" {
        return Ok(reply(StatusCode::OK, "no-store", format!("{{\"found\": [], \"request\": {number}}}\n")));
    }
    let Some(id) = path.strip_prefix("/catalog/").and_then(|id| id.parse().ok()).filter(|id| *id < PRODUCTS) else {
        return Ok(reply(StatusCode::NOT_FOUND, "max-age=5", "{\"error\": \"there is no such thing\"}\n".to_owned()));
    };
    if request.method() == Method::PUT {
        let body = http_body_util::BodyExt::collect(http_body_util::Limited::new(request.into_body(), 16)).await;
        let text = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let price = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let Some(price) = price else {
            return Ok(reply(StatusCode::BAD_REQUEST, "no-store", "{\"error\": \"send a price: -d 42\"}\n".to_owned()));
        };
        shop.prices.lock().unwrap_or_else(PoisonError::into_inner).insert(id, price);
    }
    let price = shop.prices.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied().unwrap_or(10 + id);
    let body = format!("{{\"product\": {id}, \"price\": {price}, \"answered_by_request\": {number}}}\n");
    let mut response = reply(StatusCode::OK, "", body);
    response.headers_mut().remove(header::CACHE_CONTROL);
    Ok(response)
}

fn reply(status: StatusCode, cache_control: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static(cache_control));
    response
}
