//! Opening a connection: the way there, TLS, and saying who we are.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError, Value, cmd, parse_redis_value,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsConnector;

use super::reply::Fault;
use crate::config::tls::{self, RedisTls};
use crate::config::{Access, Address, Redis, Resp, Servers};
use crate::metrics::RedisFault;

/// Longest that opening one may take, handshakes included.
pub(super) const OPENING: Duration = Duration::from_millis(500);

/// Addresses of one name that are tried at once.
const ADDRESSES: usize = 8;

/// Longest line that is read of who answers first; an error is shorter.
const LINE: usize = 2048;

/// How to open connections; cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Inner>);

struct Inner {
    to: Whom,
    database: u32,
    protocol: Resp,
    /// Whether replicas want to be told that they are to answer themselves.
    is_cluster: bool,
    entry: ArcSwap<Entry>,
}

/// Who is called.
#[derive(Clone, Copy)]
enum Whom {
    Servers,
    Sentinels,
}

/// What a reload may change.
struct Entry {
    user: Option<String>,
    password: Option<String>,
    tls: Option<Tls>,
}

struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

/// A connection of which everybody may have a clone; it ends with the last of them.
#[derive(Clone)]
pub(super) struct Wire {
    /// What commands are sent on.
    pub(super) connection: MultiplexedConnection,
    _driver: Arc<Driver>,
    ended: watch::Receiver<()>,
}

impl Wire {
    /// Completes when it has ended, whoever ended it; does not keep it.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move { while ended.changed().await.is_ok() {} }
    }

    /// Whether it has.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }
}

/// Ends with whoever needs it: left alone, it would wait for what a frozen server owes.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// Nothing listens there.
    NobodyListens,
    /// The certificate is not to be believed, or Redis does not believe ours, or speaks no TLS.
    Tls(io::Error),
    /// The way there fails otherwise.
    Way(io::Error),
    /// Somebody is there, and refuses, or is no Redis; the fault, and what was said.
    Answer(Fault, String),
    /// Not within [`OPENING`].
    Late,
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyListens => f.write_str("connection refused"),
            Self::Tls(error) => write!(f, "there is no TLS with it: {error}"),
            Self::Way(error) => write!(f, "it cannot be reached: {error}"),
            // The client library hides what forbids a database behind an error of its own.
            Self::Answer(Fault::Refused(kind), _) if kind != "ERR" => f.write_str(kind),
            Self::Answer(_, said) => write!(f, "connections end as they open: {said}"),
            Self::Late => f.write_str("connections do not open in time"),
        }
    }
}

impl NoConnection {
    /// What it is called in metrics.
    pub(super) fn kind(&self) -> RedisFault {
        match self {
            Self::NobodyListens => RedisFault::NobodyListens,
            Self::Tls(_) => RedisFault::Tls,
            Self::Way(_) => RedisFault::Unreachable,
            Self::Answer(fault, _) => fault.kind().unwrap_or(RedisFault::Other),
            Self::Late => RedisFault::Late,
        }
    }

    /// Whether nobody is there: no host, nothing that listens, or only what ends connections as they open, as a proxy does for
    /// a server that is gone. Who is there and refuses is not.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::NobodyListens | Self::Answer(Fault::Dropped, _) => true,
            Self::Way(error) => matches!(
                error.kind(),
                io::ErrorKind::HostUnreachable | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
            ),
            Self::Tls(_) | Self::Answer(..) | Self::Late => false,
        }
    }

    fn said(error: RedisError) -> Self {
        let mut said = error.to_string();
        // A server that does not know HELLO says what it was asked, the password in it.
        if let Some(at) = said.find(", with args beginning with") {
            said.truncate(at);
        }
        Self::Answer(error.into(), said)
    }
}

impl From<NoConnection> for Fault {
    fn from(none: NoConnection) -> Self {
        match none {
            NoConnection::Answer(fault, _) => fault,
            NoConnection::Late => Self::Timeout,
            NoConnection::NobodyListens | NoConnection::Tls(_) | NoConnection::Way(_) => Self::Dropped,
        }
    }
}

impl Dialer {
    /// To servers, as `redis` says.
    pub(super) fn new(redis: &Redis) -> Self {
        Self(Arc::new(Inner {
            to: Whom::Servers,
            database: redis.database,
            protocol: redis.protocol,
            is_cluster: matches!(redis.servers, Servers::Cluster { .. }),
            entry: ArcSwap::from_pointee(Entry::new(&redis.access, Whom::Servers)),
        }))
    }

    /// To Sentinels.
    pub(super) fn to_sentinels(redis: &Redis) -> Self {
        Self(Arc::new(Inner {
            to: Whom::Sentinels,
            database: 0,
            protocol: Resp::Resp2,
            is_cluster: false,
            entry: ArcSwap::from_pointee(Entry::new(&redis.access, Whom::Sentinels)),
        }))
    }

    /// For connections to come.
    pub(super) fn set_access(&self, access: &Access) {
        self.0.entry.store(Arc::new(Entry::new(access, self.0.to)));
    }

    /// Opens one to `server`, which lives on this runtime; with `to_copy` to read what it has as another's replica.
    ///
    /// # Errors
    /// There is none within [`OPENING`]; never is anything sent in plain text where TLS was asked for.
    pub(super) async fn open(
        &self,
        server: &Address,
        config: AsyncConnectionConfig,
        protocol: Option<Resp>,
        to_copy: bool,
    ) -> Result<Wire, NoConnection> {
        let opening = async {
            let mut wire = self.connect(server, config, protocol.unwrap_or(self.0.protocol)).await?;
            if to_copy && self.0.is_cluster {
                // What has become a master minds it as little.
                wire.connection.send_packed_command(&cmd("READONLY")).await.map_err(NoConnection::said)?;
            }
            Ok(wire)
        };
        tokio::time::timeout(OPENING, opening).await.unwrap_or(Err(NoConnection::Late))
    }

    async fn connect(
        &self,
        server: &Address,
        config: AsyncConnectionConfig,
        protocol: Resp,
    ) -> Result<Wire, NoConnection> {
        let entry = self.0.entry.load_full();
        let protocol = match protocol {
            Resp::Resp2 => ProtocolVersion::RESP2,
            Resp::Resp3 => ProtocolVersion::RESP3,
        };
        // The library does not name itself: not every user may.
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let mut login = login.set_db(self.0.database.into()).set_protocol(protocol);
        if let Some(user) = &entry.user {
            login = login.set_username(user);
        }
        if let Some(password) = &entry.password {
            login = login.set_password(password);
        }
        match server {
            Address::Unix(path) => greet(UnixStream::connect(path).await?, &login, config).await,
            Address::Tcp { host, port } => {
                let stream = first(tokio::net::lookup_host((host.as_str(), *port)).await?).await?;
                // Commands are written whole: what waits for more, waits for nothing.
                stream.set_nodelay(true)?;
                match &entry.tls {
                    None => greet(stream, &login, config).await,
                    Some(tls) => greet(tls.shake_hands(stream, host).await?, &login, config).await,
                }
            }
        }
    }
}

/// A connection to whichever of these answers first: one that swallows packets must not take the time of the others.
async fn first(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut calls: JoinSet<io::Result<TcpStream>> = addresses.take(ADDRESSES).map(TcpStream::connect).collect();
    let mut why = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    while let Some(called) = calls.join_next().await {
        match called.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Who is there, and refuses whoever comes, says so in one line and ends the connection.
const REFUSALS: [&str; 2] = ["MAXCLIENTS", "DENIED"];

/// Asks whether somebody is there who lets us in, whoever we are: the client library takes such a refusal for a connection that
/// ended. One trip.
async fn hail<S>(stream: &mut S) -> Result<(), NoConnection>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Where that ends the connection, what was said before it can be read.
    let _ = stream.write_all(b"*1\r\n$4\r\nPING\r\n").await;
    let _ = stream.flush().await;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < LINE {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) => return Err(NoConnection::Answer(Fault::Dropped, error.to_string())),
        }
    }
    match parse_redis_value(&line) {
        Ok(Value::ServerError(error)) => match NoConnection::said(error.into()) {
            NoConnection::Answer(Fault::Refused(kind), said) if REFUSALS.contains(&kind.as_str()) => {
                Err(NoConnection::Answer(Fault::Refused(kind), said))
            }
            // Who wants to know who we are is told next.
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Says who we are.
async fn greet<S>(
    mut stream: S,
    login: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
) -> Result<Wire, NoConnection>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    hail(&mut stream).await?;
    let opened = MultiplexedConnection::new_with_config(login, stream, config).await;
    let (connection, driver) = opened.map_err(NoConnection::said)?;
    let (goes_on, ended) = watch::channel(());
    let driving = async move {
        driver.await;
        drop(goes_on);
    };
    let driver = Driver(tokio::spawn(driving).abort_handle());
    Ok(Wire { connection, _driver: Arc::new(driver), ended })
}

impl From<io::Error> for NoConnection {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Where there is no socket, or no address, nobody listens either.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::NobodyListens,
            _ => Self::Way(error),
        }
    }
}

impl Entry {
    fn new(access: &Access, to: Whom) -> Self {
        let (user, password) = match to {
            Whom::Servers => (&access.user, &access.password),
            Whom::Sentinels => (&access.sentinel_user, &access.sentinel_password),
        };
        Self {
            user: user.clone(),
            password: password.as_ref().map(|secret| String::from_utf8_lossy(secret.expose()).into_owned()),
            tls: access.tls.as_ref().map(Tls::new),
        }
    }
}

impl Tls {
    fn new(redis: &RedisTls) -> Self {
        let config = tls::client(&redis.authorities, redis.identity.as_ref());
        Self { config: Arc::new(config), server_name: redis.server_name.clone() }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, NoConnection> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| NoConnection::Tls(io::Error::other("the host is no name that a certificate can have")))?,
        };
        let shaken = TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await;
        // A connection that ends in between says nothing of TLS.
        shaken.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<rustls::Error>() => NoConnection::Tls(error),
            _ => NoConnection::Way(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_not_said_again() {
        let line = "-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'weir' 'secret' \r\n";
        let Ok(Value::ServerError(error)) = parse_redis_value(line.as_bytes()) else { panic!("an error") };
        let said = NoConnection::said(error.into()).to_string();
        assert!(said.contains("unknown command 'HELLO'") && !said.contains("secret"), "{said}");
    }
}
