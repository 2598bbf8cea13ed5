//! Workers: threads with a current-thread runtime each, which serve the connections that the listener hands them.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::message::Peer;

use super::clients::{Clients, Place};
use super::drain::Drain;
use super::{Context, Service, Settings, Spoken, entrance};

/// Connections that wait for one worker to take them.
const WAITING_MAX: usize = 1024;

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because the deadline passed.
    pub cut: usize,
}

/// A connection on its way to a worker, counted as open from here on.
pub(super) struct Accepted {
    pub stream: TcpStream,
    pub address: SocketAddr,
    pub counted: Counted,
}

/// One open connection; dropping it counts it out.
pub(super) struct Counted {
    load: Arc<Load>,
    gauge: IntGauge,
    /// Where its client's connections are capped.
    _place: Option<Place>,
}

impl Counted {
    fn new(load: &Arc<Load>, gauge: &IntGauge, place: Option<Place>) -> Self {
        load.open.fetch_add(1, Ordering::Relaxed);
        gauge.inc();
        Self { load: Arc::clone(load), gauge: gauge.clone(), _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec();
        if self.load.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.load.emptied.notify_one();
        }
    }
}

#[derive(Default)]
struct Load {
    open: AtomicUsize,
    emptied: Notify,
}

/// Where the listener hands a worker its connections.
#[derive(Clone)]
pub(super) struct Desk {
    load: Arc<Load>,
    gauge: IntGauge,
    waiting: mpsc::Sender<Accepted>,
}

impl Desk {
    /// Connections that the worker has.
    pub(super) fn open(&self) -> usize {
        self.load.open.load(Ordering::Relaxed)
    }

    /// Hands over a connection, or gives it back if too many wait or the worker is gone.
    pub(super) fn hand(&self, stream: TcpStream, address: SocketAddr, place: Option<Place>) -> Result<(), TcpStream> {
        let counted = Counted::new(&self.load, &self.gauge, place);
        let accepted = Accepted { stream, address, counted };
        self.waiting.try_send(accepted).map_err(|refused| refused.into_inner().stream)
    }
}

/// A worker's thread and the ways to end it.
pub(super) struct Worker {
    pub drain: Drain,
    end: oneshot::Sender<Instant>,
    ended: oneshot::Receiver<Drained>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread; `ready` on the returned receiver says that the service is made.
    pub(super) fn start<S, F, M>(
        index: usize,
        settings: Settings,
        clients: Arc<Clients>,
        make: M,
    ) -> io::Result<(Self, Desk, oneshot::Receiver<()>)>
    where
        S: Service,
        F: Future<Output = S>,
        M: FnOnce(usize) -> F + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (waiting, accepted) = mpsc::channel(WAITING_MAX);
        let (end, ending) = oneshot::channel();
        let (end_sender, ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (load, drain) = (Arc::new(Load::default()), Drain::default());
        let desk = Desk { load: Arc::clone(&load), gauge: settings.metrics.connections.clone(), waiting };
        let round = Round { settings, clients, load, drain: drain.clone(), accepted, ending };
        let thread = std::thread::Builder::new().name(format!("weir-worker-{index}")).spawn(move || {
            let drained = runtime.block_on(async {
                let service = make(index).await;
                // Nobody waits for it where the start was given up.
                let _ = ready.send(());
                round.serve(service).await
            });
            // What is left, cut connections among it, ends here.
            runtime.shutdown_background();
            let _ = end_sender.send(drained);
        })?;
        Ok((Self { drain, end, ended, thread }, desk, is_ready))
    }

    /// Says when the worker must have ended. It begins to end once every [`Desk`] of it is gone.
    pub(super) fn end(self, deadline: Instant) -> Ending {
        // A worker that panicked has ended already.
        let _ = self.end.send(deadline);
        Ending { ended: self.ended, thread: self.thread }
    }
}

/// A worker on its way out.
pub(super) struct Ending {
    ended: oneshot::Receiver<Drained>,
    thread: JoinHandle<()>,
}

impl Ending {
    /// Waits for the thread.
    pub(super) async fn join(self) -> Drained {
        let drained = self.ended.await.unwrap_or(Drained { cut: 0 });
        if self.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
        drained
    }
}

/// What a worker's thread works with.
struct Round {
    settings: Settings,
    clients: Arc<Clients>,
    load: Arc<Load>,
    drain: Drain,
    accepted: mpsc::Receiver<Accepted>,
    ending: oneshot::Receiver<Instant>,
}

impl Round {
    async fn serve<S: Service>(mut self, service: S) -> Drained {
        while let Some(Accepted { stream, address, counted }) = self.accepted.recv().await {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => {
                    let (service, context) = (service.clone(), self.context(address));
                    let entrance = self.settings.entrance.load();
                    if entrance.is_open_to(address.ip()) {
                        tokio::spawn(super::connection(stream, service, context, counted));
                    } else {
                        let entrance = Arc::clone(&entrance);
                        let clients = Arc::clone(&self.clients);
                        tokio::spawn(entrance::serve(entrance, clients, stream, service, context, counted));
                    }
                }
                Err(error) => tracing::warn!(%error, "a connection could not be registered"),
            }
        }
        // Without a word from the server there is no time to wait.
        let Ok(deadline) = self.ending.await else { return self.load.drained() };
        self.drain.begin();
        let finish = async {
            while self.load.open.load(Ordering::Acquire) > 0 {
                self.load.emptied.notified().await;
            }
            service.settle().await;
        };
        // A deadline that passed shows in what is still open.
        let _ = timeout_at(deadline, finish).await;
        self.load.drained()
    }

    fn context(&self, address: SocketAddr) -> Context {
        Context {
            peer: Peer { address, encrypted: false },
            limits: **self.settings.limits.load(),
            metrics: Arc::clone(&self.settings.metrics),
            clock: self.settings.clock.clone(),
            drain: self.drain.watch(),
            spoken: Spoken::Either,
        }
    }
}

impl Load {
    fn drained(&self) -> Drained {
        Drained { cut: self.open.load(Ordering::Acquire) }
    }
}

/// The deadline that is `wait` from now.
pub(super) fn deadline(wait: Duration) -> Instant {
    Instant::now() + wait
}
