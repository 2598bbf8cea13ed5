//! Upstreams that do not speak HTTP as they should, or not at all.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::background::Background;

/// A service that reads a request's head and answers `bytes` as they are; then it closes, if `close` says so.
pub fn raw_upstream(bytes: &[u8], close: bool) -> RawUpstream {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let record = Arc::clone(&received);
    let answer: Arc<[u8]> = bytes.into();
    let background = Background::run("raw-upstream", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
            tokio::spawn(async move {
                let index = {
                    let mut record = record.lock().expect("no panic while held");
                    record.push(Vec::new());
                    record.len() - 1
                };
                let (mut seen, mut heads) = (Vec::new(), 0);
                while let Ok(1..) = stream.read_buf(&mut seen).await {
                    record.lock().expect("no panic while held")[index].clone_from(&seen);
                    let ended = seen.windows(4).filter(|four| four == b"\r\n\r\n").count();
                    for _ in heads..ended {
                        if stream.write_all(&answer).await.is_err() || close {
                            let _ = stream.shutdown().await;
                            return;
                        }
                    }
                    heads = ended;
                }
            });
        }
    });
    RawUpstream { address, received, _background: background }
}

/// A running one.
pub struct RawUpstream {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    _background: Background,
}

impl RawUpstream {
    /// Its address as the configuration wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came over each connection.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.received.lock().expect("no panic while held").clone()
    }

    /// Connections that carried something.
    pub fn used_connections(&self) -> usize {
        self.received().iter().filter(|bytes| !bytes.is_empty()).count()
    }
}

fn bound() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    (socket, address)
}

/// A port that is taken and refuses connections, for as long as the socket lives.
pub fn refusing() -> (Socket, String) {
    let (socket, address) = bound();
    (socket, format!("http://{address}"))
}

/// A port at which connections neither open nor fail: its queue is full and nobody accepts.
pub fn black_hole() -> (Vec<Socket>, String) {
    let (socket, address) = bound();
    socket.listen(0).expect("a listener");
    let mut held = vec![socket];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        filler.set_nonblocking(true).expect("non-blocking");
        let _ = filler.connect(&address.into());
        held.push(filler);
    }
    (held, format!("http://{address}"))
}
