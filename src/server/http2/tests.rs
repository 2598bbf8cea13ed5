use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, sleep};

use crate::server::sample::{LIMITS, Talk, talk};

async fn client(talk: Talk) -> (SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>, Talk) {
    let (spare, _) = tokio::io::duplex(1);
    let Talk { service, drain, client, served } = talk;
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    let connection = tokio::spawn(async move {
        // A connection that the server cut ends in an error.
        let _ = connection.await;
    });
    (send, connection, Talk { service, drain, client: spare, served })
}

fn request(method: &str, uri: &str, body: &'static str) -> http::request::Builder {
    assert!(body.is_empty() || method == "POST");
    Request::builder().method(method).uri(uri)
}

#[tokio::test(start_paused = true)]
async fn requests_have_the_shape_of_http1() {
    let (mut send, _connection, talk) = client(talk()).await;
    let asked = request("GET", "http://shop.example/a?b", "").header("cookie", "a=1").header("cookie", "b=2");
    let answer = send.send_request(asked.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    let asked = request("POST", "http://shop.example/echo", "x").body(Full::from("said")).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "said");
    let asked = request("HEAD", "http://shop.example/hello", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "5");
    assert_eq!(talk.service.seen()[0], "GET /a?b shop.example");
    let asked = request("GET", "http://shop.example/trailers", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "1");
}

#[tokio::test(start_paused = true)]
async fn what_is_ambiguous_or_unwanted_is_refused() {
    let (mut send, _connection, talk) = client(talk()).await;
    let cases = [
        (request("GET", "http://a/", "").header("host", "b"), 400),
        (request("GET", "http://a/", "").header("host", "a").header("host", "a"), 400),
        (request("GET", "http://u@a/", ""), 400),
        (request("GET", "http://a/", "").header("expect", "miracles"), 417),
        (request("TRACE", "http://a/", ""), 405),
        (request("GET", "http://a/panic", ""), 500),
    ];
    for (asked, status) in cases {
        let answer = send.send_request(asked.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
    }
    assert_eq!(talk.service.seen(), ["GET /panic a"]);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_in_flight_and_says_goodbye() {
    let (mut send, connection, talk) = client(talk()).await;
    let asked = request("GET", "http://a/gate", "").body(Full::default()).unwrap();
    let waiting = send.send_request(asked);
    let gate = async {
        sleep(Duration::from_millis(10)).await;
        talk.drain.begin();
        sleep(Duration::from_millis(10)).await;
        talk.service.gate.notify_one();
    };
    let (answer, ()) = tokio::join!(waiting, gate);
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "opened");
    talk.served.await.unwrap();
    connection.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unused_and_stalled_connections_end() {
    let began = Instant::now();
    let (mut send, _connection, quiet) = client(talk()).await;
    let asked = request("GET", "http://a/hello", "").body(Full::default()).unwrap();
    send.send_request(asked).await.unwrap().into_body().collect().await.unwrap();
    quiet.served.await.unwrap();
    let took = began.elapsed();
    assert!(took >= LIMITS.keep_alive && took < LIMITS.keep_alive * 5 / 4 + LIMITS.body_idle, "{took:?}");

    let mut silent = talk();
    silent.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let began = Instant::now();
    silent.served.await.unwrap();
    assert!(began.elapsed() < (LIMITS.head_timeout + LIMITS.body_idle) * 5 / 4, "{:?}", began.elapsed());

    // A client that asks for a large answer and takes none of it.
    let (mut send, _connection, stalled) = client(talk()).await;
    let asked = request("GET", "http://a/big", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    let began = Instant::now();
    stalled.served.await.unwrap();
    assert!(began.elapsed() < (LIMITS.keep_alive + LIMITS.body_idle) * 5 / 4, "{:?}", began.elapsed());
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_answer_is_no_stall() {
    let (mut send, _connection, talk) = client(talk()).await;
    let asked = request("GET", "http://a/events", "").body(Full::default()).unwrap();
    let mut answer = send.send_request(asked).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "tick");
    sleep(LIMITS.keep_alive * 4).await;
    assert!(!talk.served.is_finished());
}
