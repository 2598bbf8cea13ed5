use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::clock::Clock;
use crate::config::ServerLimits;
use crate::metrics::Metrics;
use crate::server::sample::{LIMITS, Sample};

async fn server(workers: usize, limits: ServerLimits) -> (Running, Sample, Settings) {
    let metrics = Metrics::new(prometheus::Registry::new());
    let settings = Settings {
        limits: Arc::new(ArcSwap::from_pointee(limits)),
        entrance: Arc::default(),
        metrics,
        clock: Clock::system(),
    };
    let bound = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let service = Sample::default();
    let make = service.clone();
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let running = start(bound, NonZeroUsize::new(workers).unwrap(), settings.clone(), move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(make.clone())
    });
    let running = running.await.unwrap();
    assert_eq!(made.load(Ordering::SeqCst), workers);
    (running, service, settings)
}

async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
    let mut heard = vec![0; 4096];
    let count = stream.read(&mut heard).await.unwrap();
    String::from_utf8(heard[..count].to_vec()).unwrap()
}

#[tokio::test]
async fn one_client_has_only_so_many_connections() {
    let limits = ServerLimits { connections_per_client: NonZeroUsize::new(2), ..LIMITS };
    let (running, _, settings) = server(1, limits).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        assert!(ask(&mut stream, "/hello").await.ends_with("hello"));
        open.push(stream);
    }
    let mut refused = TcpStream::connect(running.address).await.unwrap();
    let mut heard = Vec::new();
    // The refusal may be overtaken by the close.
    let _ = refused.read_to_end(&mut heard).await;
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 503 "));
    assert!(settings.metrics.render(0).contains("weir_connections_refused_total{reason=\"client\"} 1\n"));
    let neighbour = tokio::net::TcpSocket::new_v4().unwrap();
    neighbour.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut neighbour = neighbour.connect(running.address).await.unwrap();
    assert!(ask(&mut neighbour, "/hello").await.ends_with("hello"));
    drop(open);
    while running.open() > 1 {
        tokio::task::yield_now().await;
    }
    let mut again = TcpStream::connect(running.address).await.unwrap();
    assert!(ask(&mut again, "/hello").await.ends_with("hello"));
    drop((neighbour, again));
    assert_eq!(running.drain(Duration::from_secs(5)).await, Drained { cut: 0 });
}

#[tokio::test]
async fn connections_spread_over_workers_and_the_cap_holds() {
    let (running, _, settings) = server(3, ServerLimits { connections: 6, ..LIMITS }).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        assert!(ask(&mut stream, "/hello").await.ends_with("hello"));
        open.push(stream);
    }
    assert_eq!(running.desks.iter().map(Desk::open).collect::<Vec<_>>(), [2, 2, 2]);
    let mut refused = TcpStream::connect(running.address).await.unwrap();
    let mut heard = Vec::new();
    // The refusal may be overtaken by the close.
    let _ = refused.read_to_end(&mut heard).await;
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 503 "));
    assert!(settings.metrics.render(0).contains("weir_connections_refused_total{reason=\"total\"} 1\n"));
    assert_eq!(settings.metrics.connections.get(), 6);
    settings.limits.store(Arc::new(LIMITS));
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    assert!(ask(&mut stream, "/hello").await.ends_with("hello"));
    drop((open, stream));
    assert_eq!(running.drain(Duration::from_secs(5)).await, Drained { cut: 0 });
    assert_eq!(settings.metrics.connections.get(), 0);
}

#[tokio::test]
async fn draining_answers_what_was_asked_and_cuts_what_is_late() {
    let (running, service, _) = server(2, LIMITS).await;
    let address = running.address;
    let mut idle = TcpStream::connect(address).await.unwrap();
    ask(&mut idle, "/hello").await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    let asked = tokio::spawn(async move { ask(&mut busy, "/gate").await });
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(b"GET /pending HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    while service.seen().len() < 3 {
        tokio::task::yield_now().await;
    }
    let draining = tokio::spawn(running.drain(Duration::from_millis(300)));
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0, "an idle connection is closed");
    service.gate.notify_one();
    let heard = asked.await.unwrap();
    assert!(heard.contains("connection: close\r\n") && heard.ends_with("opened"), "{heard}");
    assert_eq!(draining.await.unwrap(), Drained { cut: 1 });
    assert!(stuck.read(&mut [0; 8]).await.is_ok_and(|count| count == 0));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_dropped_server_ends() {
    let (running, _, settings) = server(1, LIMITS).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    ask(&mut stream, "/hello").await;
    drop(running);
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    while settings.metrics.connections.get() > 0 {
        tokio::task::yield_now().await;
    }
}
