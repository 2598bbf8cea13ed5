//! What a connection must say before HTTP: whose it is, where a balancer knows (PROXY protocol), and TLS' handshake.
//!
//! Both happen on the worker, and both together within `head_timeout`. Nobody is answered before they are through, apart
//! from a client that speaks HTTP to a port that speaks TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::tls::ServerTls;
use crate::metrics::{Fault, Layer, NotTaken};

use super::clients::Clients;
use super::drain::Watch;
use super::http1::FIRST_REQUEST_GRACE;
use super::proxy_protocol::{self, Parsed, V2_MAX};
use super::{Context, Service, tls};

/// Bytes that are looked at for a header: all of it, unless a balancer adds much.
const FIRST_LOOK: usize = 256;

/// What stands in front of HTTP; by default nothing.
#[derive(Default)]
pub struct Entrance {
    tls: Option<Arc<ServerConfig>>,
    announced: Vec<IpNet>,
}

impl Entrance {
    /// TLS if there is any, and the networks whose connections begin with a PROXY header.
    pub fn new(tls: Option<&ServerTls>, announced: Vec<IpNet>) -> Self {
        Self { tls: tls.map(tls::config), announced }
    }

    /// Whether HTTP begins with `peer`'s first byte.
    pub(super) fn is_open_to(&self, peer: IpAddr) -> bool {
        self.tls.is_none() && !self.is_announced(peer)
    }

    /// Whether a connection from `peer` begins with a PROXY header.
    pub(super) fn is_announced(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.announced.iter().any(|net| net.contains(&peer))
    }
}

/// Serves one connection to its end, if it finds its way in.
pub(super) async fn serve<S: Service>(
    entrance: Arc<Entrance>,
    clients: Arc<Clients>,
    mut stream: TcpStream,
    service: S,
    mut context: Context,
    held: impl Send,
) {
    let metrics = Arc::clone(&context.metrics);
    let deadline = Instant::now() + context.limits.head_timeout;
    let peer = context.peer.address;
    let failed = |layer: Layer, fault: Fault| {
        metrics.connection_failed(layer, fault);
        tracing::debug!(%peer, layer = layer.as_str(), reason = fault.as_str(), "a connection ended before HTTP began");
    };
    let mut place = None;
    if entrance.is_announced(peer.ip()) {
        match in_time(deadline, &mut context.drain, announcement(&mut stream)).await {
            Ok(client) => context.peer.address = client.unwrap_or(peer),
            Err(fault) => return failed(Layer::ProxyProtocol, fault),
        }
        if let Some(most) = context.limits.connections_per_client {
            place = clients.enter(context.peer.address.ip(), most);
            if place.is_none() {
                return metrics.connection_refused(NotTaken::Client);
            }
        }
    }
    let held = (held, place);
    let Some(tls) = &entrance.tls else { return super::connection(stream, service, context, held).await };
    let accepted = in_time(deadline, &mut context.drain, async { Ok(tls::accept(tls, stream).await) }).await;
    match accepted {
        Ok(Ok(stream)) => {
            context.peer.encrypted = true;
            context.spoken = tls::spoken(&stream);
            super::connection(stream, service, context, held).await;
        }
        Ok(Err((fault, stream))) => {
            failed(Layer::Tls, fault);
            tls::send_away(stream, fault, context.limits).await;
        }
        Err(fault) => failed(Layer::Tls, fault),
    }
}

/// What `work` comes to before `deadline`; while the worker drains there is little time left.
async fn in_time<T>(
    deadline: Instant,
    drain: &mut Watch,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let drained = async {
        drain.draining().await;
        sleep(FIRST_REQUEST_GRACE).await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = sleep_until(deadline) => Err(Fault::Timeout),
        () = drained => Err(Fault::Timeout),
    }
}

/// Reads the PROXY header, and no byte behind it: what is looked at is taken only once it is known to be the header's.
async fn announcement(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Fault> {
    let left = |_: io::Error| Fault::Left;
    let mut bytes = vec![0; FIRST_LOOK];
    let mut taken = 0;
    loop {
        let seen = match stream.peek(&mut bytes[taken..]).await.map_err(left)? {
            0 => return Err(Fault::Left),
            more => taken + more,
        };
        match proxy_protocol::parse(&bytes[..seen]) {
            Ok(Parsed::Whole { length, client }) => {
                stream.read_exact(&mut bytes[taken..length]).await.map_err(left)?;
                return Ok(client);
            }
            Ok(Parsed::Partial) => {
                stream.read_exact(&mut bytes[taken..seen]).await.map_err(left)?;
                taken = seen;
                if taken == bytes.len() {
                    bytes.resize(V2_MAX, 0);
                }
            }
            Err(proxy_protocol::Malformed) => return Err(Fault::Malformed),
        }
    }
}
