//! A TCP relay that delays, cuts and swallows.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::background::Background;

/// A relay to `to` that starts out well.
pub fn flaky(to: SocketAddr) -> Flaky {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let (state, states) = watch::channel(State { mood: Mood::Well, to, cuts: 0 });
    let accepted = Arc::<Mutex<Vec<Instant>>>::default();
    let comes = Arc::clone(&accepted);
    let background = Background::run("flaky", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (client, _) = listener.accept().await.expect("accept");
            comes.lock().expect("no panic while held").push(Instant::now());
            let states = states.clone();
            tokio::spawn(async move {
                let began = *states.borrow();
                if began.mood == Mood::Cut {
                    return;
                }
                let Ok(server) = TcpStream::connect(began.to).await else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::join!(
                    relay(client_read, server_write, began, states.clone()),
                    relay(server_read, client_write, began, states.clone())
                );
            });
        }
    });
    Flaky { address, state, accepted, _background: background }
}

/// A running relay.
pub struct Flaky {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    _background: Background,
}

#[derive(Clone, Copy)]
struct State {
    mood: Mood,
    to: SocketAddr,
    /// How often it was cut: a relay that is well again at once was cut all the same.
    cuts: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Slow(Duration),
    Cut,
    Swallow,
}

impl Flaky {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// When connections came, whatever became of them.
    pub fn accepted(&self) -> Vec<Instant> {
        self.accepted.lock().expect("no panic while held").clone()
    }

    /// Each piece is held for `time`, either way.
    pub fn delay(&self, time: Duration) {
        self.turn(Mood::Slow(time));
    }

    /// Open connections break and new ones are closed at once.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.mood = Mood::Cut;
            state.cuts += 1;
        });
    }

    /// Connections stay and nothing comes through; what was swallowed is gone.
    pub fn swallow(&self) {
        self.turn(Mood::Swallow);
    }

    /// All is well again, for new connections and those that missed nothing.
    pub fn heal(&self) {
        self.turn(Mood::Well);
    }

    /// Leads to another server from now on; connections to the one before break.
    pub fn lead_to(&self, to: SocketAddr) {
        self.state.send_modify(|state| state.to = to);
    }

    fn turn(&self, mood: Mood) {
        self.state.send_modify(|state| state.mood = mood);
    }
}

/// Until one side ends it, it is cut, or it would lead elsewhere; what is on its way then is lost.
async fn relay(from: OwnedReadHalf, to: OwnedWriteHalf, began: State, mut states: watch::Receiver<State>) {
    let moods = states.clone();
    tokio::select! {
        biased;
        _ = states.wait_for(|state| state.cuts != began.cuts || state.to != began.to) => {}
        () = pass(from, to, moods) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, moods: watch::Receiver<State>) {
    let mut piece = vec![0; 16 * 1024];
    let mut gap = false;
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        let mood = moods.borrow().mood;
        match mood {
            Mood::Swallow => {
                gap = true;
                continue;
            }
            // A stream with a hole in it is no TCP: it breaks instead.
            _ if gap => return,
            Mood::Slow(time) => tokio::time::sleep(time).await,
            Mood::Well | Mood::Cut => {}
        }
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}
