//! A client of HTTP/2 by prior knowledge.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::client::{Answer, HOST};
use super::patiently;

/// An HTTP/2 connection by prior knowledge; clones share it.
#[derive(Clone)]
pub struct H2(hyper::client::conn::http2::SendRequest<Full<Bytes>>);

impl H2 {
    /// Opens one.
    pub async fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        Self::over(stream).await
    }

    /// Over a stream that is open already.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = patiently("a handshake", handshake).await.expect("a handshake");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request (`http://authority/path` in its URI) and reads its answer.
    pub async fn send(&self, request: http::Request<Full<Bytes>>) -> Answer {
        self.try_send(request).await.expect("an answer").expect("the connection is open")
    }

    /// The same; `None` if the connection had ended before the request was sent, or before it was heard.
    pub async fn try_send(&self, request: http::Request<Full<Bytes>>) -> hyper::Result<Option<Answer>> {
        let began = Instant::now();
        let mut sender = self.0.clone();
        let (head, body) = match patiently("an answer", sender.try_send_request(request)).await {
            Ok(answer) => answer.into_parts(),
            Err(mut error) => {
                if error.take_message().is_some() {
                    return Ok(None);
                }
                let error = error.into_error();
                return if is_unheard(&error) { Ok(None) } else { Err(error) };
            }
        };
        let read = patiently("a body", body.collect()).await?;
        let text = |fields: &http::HeaderMap| -> Vec<(String, String)> {
            let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                (name.to_string(), value.to_str().expect("text").to_owned())
            };
            fields.iter().map(pair).collect()
        };
        Ok(Some(Answer {
            status: head.status.as_u16(),
            fields: text(&head.headers),
            trailers: read.trailers().map(text).unwrap_or_default(),
            body: read.to_bytes(),
            interim: Vec::new(),
            took: began.elapsed(),
        }))
    }

    /// A GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.expect("an answer").expect("the connection is open")
    }

    /// The same; `None` if the connection had ended before the request was sent.
    pub async fn try_get(&self, path: &str) -> hyper::Result<Option<Answer>> {
        let request = http::Request::get(format!("http://{HOST}{path}")).body(Full::default()).expect("a request");
        self.try_send(request).await
    }
}

/// Whether the other side said goodbye, and that it has not seen this request (RFC 9113 section 6.8): the client library
/// answers the ping that comes with a goodbye before it sends what it has in hand, so that this may come too late.
fn is_unheard(error: &hyper::Error) -> bool {
    let said = std::error::Error::source(error).and_then(|source| source.downcast_ref::<::h2::Error>());
    said.is_some_and(|said| said.is_go_away() && said.is_remote() && said.reason() == Some(::h2::Reason::NO_ERROR))
}
