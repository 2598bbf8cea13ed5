//! One listener that hands each connection to the least loaded worker, and the end of them all.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::clients::Clients;
use super::worker::{self, Desk, Drained, Worker};
use super::{Service, Settings};
use crate::metrics::NotTaken;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Bytes of a connection that the kernel holds before any of them is on its way. Left alone it takes megabytes for each
/// reader who does not read, and they count against the pod's memory; this is room for all but the largest answers.
const UNSENT_MAX: u32 = 256 * 1024;

/// Pauses after an accept that failed for want of descriptors or memory.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// What a connection over the cap is told, as far as its socket takes it.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n";

/// A listener that is bound, and refuses nobody until it is started or dropped.
pub struct Bound {
    listener: TcpListener,
    /// Where it listens, the port that was taken included.
    pub address: SocketAddr,
}

/// Binds `address`; port 0 takes a free one.
///
/// # Errors
/// If the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Accepted connections have it from their listener. Not every system knows it, and none needs it to serve.
    let _ = socket.set_tcp_notsent_lowat(UNSENT_MAX);
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

/// Starts `workers` threads and accepts. `make` runs on each worker's own runtime, which its service's upstream
/// connections therefore belong to; the call returns once every service is made.
///
/// # Errors
/// If a thread or its runtime cannot be made, or a service panicked while it was made.
pub async fn start<S, F, M>(bound: Bound, workers: NonZeroUsize, settings: Settings, make: M) -> io::Result<Running>
where
    S: Service,
    F: Future<Output = S>,
    M: Fn(usize) -> F + Clone + Send + 'static,
{
    let Bound { listener, address } = bound;
    let (mut started, mut desks, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    let clients = Arc::<Clients>::default();
    for index in 0..workers.get() {
        let (worker, desk, ready) = Worker::start(index, settings.clone(), Arc::clone(&clients), make.clone())?;
        started.push(worker);
        desks.push(desk);
        waits.push(ready);
    }
    for ready in waits {
        ready.await.map_err(|_| io::Error::other("a worker ended before its service was made"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let (done, accepted_last) = oneshot::channel();
    let counting = desks.clone();
    let thread = std::thread::Builder::new().name(String::from("weir-accept")).spawn(move || {
        let hall = Hall { desks, settings, clients, refusing: false };
        if let Err(error) = runtime.block_on(hall.accept(listener, stopped)) {
            tracing::error!(%error, "no further connection is accepted");
        }
        // Nobody waits for it where the server was dropped.
        let _ = done.send(());
    })?;
    Ok(Running { address, workers: started, desks: counting, stop, accepted_last, acceptor: thread })
}

/// A server that serves. Dropping it cuts every connection.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    workers: Vec<Worker>,
    desks: Vec<Desk>,
    stop: oneshot::Sender<()>,
    accepted_last: oneshot::Receiver<()>,
    acceptor: JoinHandle<()>,
}

impl Running {
    /// Open client connections.
    pub fn open(&self) -> usize {
        self.desks.iter().map(Desk::open).sum()
    }

    /// Goes on accepting and answering, but ends each HTTP/1 connection with its next answer, so that clients find
    /// other servers before this one is gone. For the time in which a pod is unready and still asked (`lame_duck`).
    pub fn leave(&self) {
        for worker in &self.workers {
            worker.drain.leave();
        }
    }

    /// Accepts what has connected already and nothing more, ends idle connections (HTTP/2 by GOAWAY), and waits for
    /// the rest, then for what the services do behind their answers; after `wait` what is left is cut.
    pub async fn drain(self, wait: Duration) -> Drained {
        let deadline = worker::deadline(wait);
        let Self { workers, desks, stop, accepted_last, acceptor, .. } = self;
        // An acceptor that has ended by itself needs no word.
        let _ = stop.send(());
        let _ = accepted_last.await;
        if acceptor.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
        drop(desks);
        let ending: Vec<_> = workers.into_iter().map(|worker| worker.end(deadline)).collect();
        let mut cut = 0;
        for worker in ending {
            cut += worker.join().await.cut;
        }
        Drained { cut }
    }
}

/// What the accepting thread works with.
struct Hall {
    desks: Vec<Desk>,
    settings: Settings,
    clients: Arc<Clients>,
    refusing: bool,
}

impl Hall {
    async fn accept(mut self, listener: TcpListener, mut stopped: oneshot::Receiver<()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut backoff = Backoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stopped => break,
                accepted = listener.accept() => accepted.and_then(|(stream, address)| Ok((stream.into_std()?, address))),
            };
            match accepted {
                Ok((stream, address)) => {
                    backoff.over();
                    self.place(stream, address);
                }
                Err(error) if concerns_one(&error) => {}
                Err(error) => {
                    self.settings.metrics.accept_errors.inc();
                    tokio::time::sleep(backoff.next(&error)).await;
                }
            }
        }
        // What has connected before the end deserves an answer: closing the listener would reset it.
        let listener = listener.into_std()?;
        while let Ok((stream, address)) = listener.accept() {
            self.place(stream, address);
        }
        Ok(())
    }

    /// Hands a connection to the least loaded worker, or refuses it.
    fn place(&mut self, stream: TcpStream, address: SocketAddr) {
        // A socket that refuses either has been reset already, which whoever reads it will see.
        let _ = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        let limits = **self.settings.limits.load();
        let entrance = self.settings.entrance.load();
        let open: usize = self.desks.iter().map(Desk::open).sum();
        let desk = self.desks.iter().min_by_key(|desk| desk.open()).filter(|_| open < limits.connections);
        // Who stands behind a balancer is known only once it has said so.
        let per_client = limits.connections_per_client.filter(|_| !entrance.is_announced(address.ip()));
        let refused = match (desk, per_client) {
            (None, _) => Some((stream, NotTaken::Total)),
            (Some(desk), None) => desk.hand(stream, address, None).err().map(|stream| (stream, NotTaken::Total)),
            (Some(desk), Some(most)) => match self.clients.enter(address.ip(), most) {
                None => Some((stream, NotTaken::Client)),
                place => desk.hand(stream, address, place).err().map(|stream| (stream, NotTaken::Total)),
            },
        };
        let is_full = matches!(refused, Some((_, NotTaken::Total)));
        if self.refusing != is_full {
            self.refusing = is_full;
            if self.refusing {
                tracing::warn!(open, limit = limits.connections, "connections are refused");
            } else {
                tracing::info!("connections are accepted again");
            }
        }
        if let Some((mut stream, reason)) = refused {
            self.settings.metrics.connection_refused(reason);
            // To who does not speak HTTP yet it would mean nothing.
            if entrance.is_open_to(address.ip()) {
                let _ = stream.write(REFUSAL);
            }
        }
    }
}

/// Whether an accept failed for a connection that was lost in the queue, and not for the listener.
fn concerns_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Pauses that grow while accepting fails, and one line in the log for each beginning and end of it.
#[derive(Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    fn next(&mut self, error: &io::Error) -> Duration {
        let pause = match self.0 {
            None => {
                tracing::warn!(%error, "connections cannot be accepted");
                BACKOFF_FIRST
            }
            Some(pause) => (pause * 2).min(BACKOFF_MAX),
        };
        self.0 = Some(pause);
        pause
    }

    fn over(&mut self) {
        if self.0.take().is_some() {
            tracing::info!("connections are accepted again");
        }
    }
}

#[cfg(test)]
mod tests;
