//! A TCP relay that delays, cuts and swallows.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::background::Background;

/// A relay to `to` that starts out well.
pub fn flaky(to: SocketAddr) -> Flaky {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let (mood, moods) = watch::channel(Mood::Well);
    let background = Background::run("flaky", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (client, _) = listener.accept().await.expect("accept");
            let mood = moods.clone();
            tokio::spawn(async move {
                if *mood.borrow() == Mood::Cut {
                    return;
                }
                let Ok(server) = TcpStream::connect(to).await else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::join!(
                    relay(client_read, server_write, mood.clone()),
                    relay(server_read, client_write, mood.clone())
                );
            });
        }
    });
    Flaky { address, mood, _background: background }
}

/// A running relay.
pub struct Flaky {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
    _background: Background,
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

    /// Each piece is held for `time`, either way.
    pub fn delay(&self, time: Duration) {
        self.mood.send_replace(Mood::Slow(time));
    }

    /// Open connections break and new ones are closed at once.
    pub fn cut(&self) {
        self.mood.send_replace(Mood::Cut);
    }

    /// Connections stay and nothing comes through; what was swallowed is gone.
    pub fn swallow(&self) {
        self.mood.send_replace(Mood::Swallow);
    }

    /// All is well again, for new connections and those that missed nothing.
    pub fn heal(&self) {
        self.mood.send_replace(Mood::Well);
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mood: watch::Receiver<Mood>) {
    let mut piece = vec![0; 16 * 1024];
    let mut gap = false;
    loop {
        let len = tokio::select! {
            read = from.read(&mut piece) => match read {
                Ok(len @ 1..) => len,
                _ => return,
            },
            changed = mood.wait_for(|mood| *mood == Mood::Cut) => {
                drop(changed);
                return;
            }
        };
        let now = *mood.borrow();
        match now {
            Mood::Swallow => {
                gap = true;
                continue;
            }
            // A stream with a hole in it is no TCP: it breaks instead.
            _ if gap => return,
            Mood::Cut => return,
            Mood::Slow(time) => tokio::time::sleep(time).await,
            Mood::Well => {}
        }
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}
