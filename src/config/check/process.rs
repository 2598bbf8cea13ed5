//! `[server]`, `[admin]`, `[log]`, `[upstream]` and `[cache]`: what the process has one of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::{Check, bytes};
use crate::config::raw::{self, At, UpstreamHost};
use crate::config::{
    Admin, AmbiguousPaths, CacheTiers, Http2Limits, Log, LogFormat, Protocol, Server, ServerLimits, Target, Unmatched,
    Upstream,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);
const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
/// Most worker threads; more than any machine has CPUs.
const MOST_WORKERS: u32 = 1024;
/// Most connections of either side; below what a process can have open files.
const MOST_CONNECTIONS: u32 = 1_000_000;
/// A request line and a `Host` must fit.
const HEAD: std::ops::RangeInclusive<usize> = KIB..=MIB;
/// Most requests at once on an HTTP/2 connection.
const MOST_STREAMS: u32 = 10_000;
/// HTTP/2 windows: from the initial one of RFC 9113 section 6.9.2, rounded up, to what a body may be let pile up.
const WINDOW: std::ops::RangeInclusive<usize> = 64 * KIB..=16 * MIB;
/// `upstream.connections` where it is not set.
const CONNECTIONS: u32 = 512;
/// `upstream.queue_timeout` where it is not set: about as long as people wait, and as long as a line needs to be gone after
/// an overload.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// One request in so many that may be in flight may have its body still on its way, where `upstream.uploads` is not set.
const UPLOADS_PART: usize = 4;
/// `upstream.request_buffer` where it is not set: forms and calls are shorter, files are longer.
const REQUEST_BUFFER: usize = 64 * KIB;
/// What is longer is better sent as it comes.
const MOST_REQUEST_BUFFER: usize = MIB;
/// `upstream.retry_budget` where it is not set: a service that fails gets a fifth more load from it, and not twice as much.
const RETRY_BUDGET: f64 = 0.2;
/// More attempts than this help nobody who waits.
const MOST_RETRIES: u32 = 10;
/// Shorter than this, no peer could ever be in time.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// The bound B is proved every quarter of it: below this, proving would be all that a pod does.
pub(super) const SHORTEST_BOUND: Duration = Duration::from_millis(100);
/// `upstream.response_timeout` where it is not set.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

const MEMORY: usize = 256 * MIB;
const FILL_MEMORY: usize = 64 * MIB;
const MAX_OBJECT: usize = 4 * MIB;
const COMPRESS_OVER: usize = 16 * KIB;
/// Most keys that a new pod may load: some tens of megabytes of names and questions.
const MOST_PRELOADED: u32 = 100_000;

/// `cache.preload_wait`, if nobody says otherwise.
const PRELOAD_WAIT: Duration = Duration::from_secs(2);

const MAX_STALENESS: Duration = Duration::from_secs(10);
const GENERATION: &str = "v1";
/// Largest memory setting: far above any machine, far below an overflow of sums.
const MOST_BYTES: usize = 1 << 44;

fn nonzero(count: u32) -> NonZeroUsize {
    NonZeroUsize::new(count as usize).unwrap_or(NonZeroUsize::MIN)
}

impl Check<'_, '_> {
    pub(super) fn server(&mut self, raw: Option<&raw::Server>) -> Server {
        let absent = raw::Server::default();
        let raw = raw.unwrap_or(&absent);
        let limits = raw.limits.as_ref();
        Server {
            listen: self.read(&raw.listen).unwrap_or(LISTEN),
            workers: self.count(&raw.workers, 1..=MOST_WORKERS).map_or(self.machine.cpus, nonzero),
            trusted_proxies: self.networks(&raw.trusted_proxies),
            proxy_protocol: self.networks(&raw.proxy_protocol),
            tls: raw.tls.as_ref().and_then(|tls| self.server_tls(tls)),
            unmatched: raw.unmatched.as_ref().map_or(Unmatched::Forward, |at| at.value),
            ambiguous_paths: raw.ambiguous_paths.as_ref().map_or(AmbiguousPaths::Reject, |at| at.value),
            lame_duck: self.duration(&raw.lame_duck, Duration::ZERO).unwrap_or(Duration::from_secs(5)),
            drain: self.duration(&raw.drain, Duration::ZERO).unwrap_or(Duration::from_secs(20)),
            limits: self.server_limits(limits, raw.http2.as_ref()),
        }
    }

    fn server_limits(&mut self, raw: Option<&raw::ServerLimits>, http2: Option<&raw::Http2>) -> ServerLimits {
        let absent = raw::ServerLimits::default();
        let raw = raw.unwrap_or(&absent);
        ServerLimits {
            connections: self.count(&raw.connections, 1..=MOST_CONNECTIONS).unwrap_or(10_000) as usize,
            connections_per_client: self.count(&raw.connections_per_client, 1..=MOST_CONNECTIONS).map(nonzero),
            head: self.size(&raw.head, HEAD).unwrap_or(32 * KIB),
            head_timeout: self.duration(&raw.head_timeout, SHORTEST_WAIT).unwrap_or(Duration::from_secs(10)),
            body_idle: self.duration(&raw.body_idle, SHORTEST_WAIT).unwrap_or(Duration::from_secs(30)),
            body_progress: self.size(&raw.body_progress, 1..=MIB).unwrap_or(KIB),
            keep_alive: self.duration(&raw.keep_alive, SHORTEST_WAIT).unwrap_or(Duration::from_secs(75)),
            http2: self.http2(http2),
        }
    }

    fn http2(&mut self, raw: Option<&raw::Http2>) -> Http2Limits {
        let absent = raw::Http2::default();
        let raw = raw.unwrap_or(&absent);
        let mut window =
            |raw, default: u32| self.size(raw, WINDOW).and_then(|size| u32::try_from(size).ok()).unwrap_or(default);
        let stream_window = window(&raw.stream_window, 64 * 1024);
        let connection_window = window(&raw.connection_window, 256 * 1024);
        Http2Limits {
            streams: self.count(&raw.streams, 1..=MOST_STREAMS).unwrap_or(128),
            stream_window,
            connection_window,
            resets: self.count(&raw.resets, 1..=MOST_CONNECTIONS).unwrap_or(200),
            control_frames: self.count(&raw.control_frames, 100..=MOST_CONNECTIONS).unwrap_or(2_000),
            ping_interval: self.duration(&raw.ping_interval, SHORTEST_WAIT).unwrap_or(Duration::from_secs(20)),
            ping_timeout: self.duration(&raw.ping_timeout, SHORTEST_WAIT).unwrap_or(Duration::from_secs(20)),
        }
    }

    pub(super) fn admin(&mut self, raw: Option<&raw::Admin>, server: &Server) -> Admin {
        let absent = raw::Admin::default();
        let raw = raw.unwrap_or(&absent);
        let listen = self.read(&raw.listen).unwrap_or(ADMIN_LISTEN);
        let same_ip =
            listen.ip() == server.listen.ip() || listen.ip().is_unspecified() || server.listen.ip().is_unspecified();
        if let Some(at) = &raw.listen
            && listen.port() != 0
            && listen.port() == server.listen.port()
            && same_ip
        {
            let text = format!("`admin.listen` takes port {}, which `server.listen` has", listen.port());
            self.error(&at.span(), text, "choose another port, such as 9901");
        }
        let show_identities = raw.show_identities.as_ref().is_some_and(|at| at.value);
        Admin { listen, token: self.secret("admin.token", &raw.token_file, &raw.token), show_identities }
    }

    pub(super) fn log(&mut self, raw: Option<&raw::Log>) -> Log {
        Log {
            format: raw.and_then(|raw| raw.format.as_ref()).map_or(LogFormat::Json, |at| at.value),
            access: raw.and_then(|raw| raw.access.as_ref()).is_none_or(|at| at.value),
        }
    }

    pub(super) fn upstream(&mut self, raw: &raw::Upstream, server: &Server) -> Option<Upstream> {
        let target = raw.url.as_ref().and_then(|url| self.target(url, server));
        let host = raw.host.as_ref().map_or(UpstreamHost::Preserve, |at| at.value);
        let connections = self.count(&raw.connections, 1..=MOST_CONNECTIONS).map_or(nonzero(CONNECTIONS), nonzero);
        let protocol = raw.protocol.as_ref().map_or(Protocol::Http1, |at| at.value);
        let in_flight = self.count(&raw.in_flight, 1..=MOST_CONNECTIONS).map_or(connections, nonzero);
        if let Some(at) = &raw.in_flight
            && protocol == Protocol::Http1
            && in_flight > connections
        {
            let text = format!("`upstream.in_flight` is more than `upstream.connections` ({connections})");
            self.error(&at.span(), text, "make it smaller, or raise `upstream.connections`");
        }
        let uploads = NonZeroUsize::new(in_flight.get() / UPLOADS_PART).unwrap_or(NonZeroUsize::MIN);
        let uploads = self.count(&raw.uploads, 1..=MOST_CONNECTIONS).map_or(uploads, nonzero);
        if let Some(at) = &raw.uploads
            && protocol == Protocol::Http1
            && uploads >= connections
            && connections.get() > 1
        {
            let text = format!("`upstream.uploads` leaves none of `upstream.connections` ({connections}) to others");
            self.error(&at.span(), text, "make it smaller, or raise `upstream.connections`");
        }
        let upstream = Upstream {
            target: Target::Unix(PathBuf::new()),
            tls: None,
            protocol,
            preserve_host: host == UpstreamHost::Preserve,
            connect_timeout: self.duration(&raw.connect_timeout, SHORTEST_WAIT).unwrap_or(Duration::from_secs(1)),
            response_timeout: self.duration(&raw.response_timeout, SHORTEST_WAIT).unwrap_or(RESPONSE_TIMEOUT),
            idle_timeout: self.duration(&raw.idle_timeout, Duration::ZERO).unwrap_or(Duration::from_secs(4)),
            connections,
            in_flight,
            adaptive: raw.adaptive.as_ref().is_none_or(|at| at.value),
            queue_timeout: self.duration(&raw.queue_timeout, Duration::ZERO).unwrap_or(QUEUE_TIMEOUT),
            uploads,
            request_buffer: self.size(&raw.request_buffer, 0..=MOST_REQUEST_BUFFER).unwrap_or(REQUEST_BUFFER),
            breaker: raw.breaker.as_ref().is_none_or(|at| at.value),
            retries: self.count(&raw.retries, 0..=MOST_RETRIES).unwrap_or(1),
            retry_budget: self.read(&raw.retry_budget).unwrap_or(RETRY_BUDGET),
        };
        let (target, url) = (target?, raw.url.as_ref()?);
        let tls = if uses_tls(&url.value) {
            Some(self.upstream_tls(raw.tls.as_ref().map(|tls| &tls.value), &target, url)?)
        } else {
            if let Some(tls) = &raw.tls {
                let text =
                    "`upstream.tls` is there, and `upstream.url` is not \"https://\": nothing would be encrypted";
                self.error(&tls.span(), text, "write \"https://\" in the URL, or remove the table");
            }
            None
        };
        Some(Upstream { target, tls, ..upstream })
    }

    fn target(&mut self, url: &At<String>, server: &Server) -> Option<Target> {
        const EXAMPLE: &str = "write \"http://127.0.0.1:3000\", or \"unix:/run/app.sock\"";
        let span = url.span();
        let text = url.value.as_str();
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.len() < 2 || !path.starts_with('/') {
                self.error(&span, "the path of the socket is not absolute", "write \"unix:/run/app.sock\"");
                return None;
            }
            return Some(Target::Unix(PathBuf::from(path)));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            let remedy = if text.contains([':', '.']) && !text.contains(['@', '/', ' ']) {
                format!("write \"http://{text}\"")
            } else {
                EXAMPLE.to_owned()
            };
            self.error(&span, "`upstream.url` has no scheme", remedy);
            return None;
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => {}
            _ => {
                self.error(&span, "`upstream.url` has an unknown scheme", EXAMPLE);
                return None;
            }
        }
        if rest.contains('@') {
            self.error(
                &span,
                "`upstream.url` holds a user name",
                "remove it, and set `request.set` on the routes instead",
            );
            return None;
        }
        let parsed = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        let port_is_wrong =
            |uri: &Uri| uri.authority().is_some_and(|a| a.port().is_some() && a.port_u16().is_none_or(|p| p == 0));
        let Some(uri) = parsed.filter(|uri| !port_is_wrong(uri)) else {
            self.error(&span, "`upstream.url` is not a URL", EXAMPLE);
            return None;
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            let remedy = format!("write \"{scheme}://{authority}\": the request's own path is forwarded");
            self.error(&span, "`upstream.url` has a path", remedy);
            return None;
        }
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if uses_tls(text) { 443 } else { 80 });
        if is_own(&host, port, server.listen) {
            let text = "`upstream.url` is where this Weir itself listens: requests would go round for ever";
            self.error(&span, text, "write the port of the service, or change `server.listen`");
            return None;
        }
        Some(Target::Tcp { host, port, authority: authority.to_ascii_lowercase() })
    }

    pub(super) fn tiers(&mut self, raw: Option<&raw::Cache>) -> CacheTiers {
        let absent = raw::Cache::default();
        let raw = raw.unwrap_or(&absent);
        let memory = self.size(&raw.memory, 0..=MOST_BYTES).unwrap_or_else(|| default_memory(self.machine.memory));
        let room = if memory == 0 { MAX_OBJECT } else { MAX_OBJECT.min(memory) };
        let max_object = self.size(&raw.max_object, 1..=MOST_BYTES).unwrap_or(room);
        if let Some(at) = &raw.max_object
            && memory > 0
            && max_object > memory
        {
            let text = format!("`cache.max_object` is larger than `cache.memory` ({})", bytes(memory));
            self.error(&at.span(), text, "make it smaller, or raise `cache.memory`");
        }
        let fill_memory = self.size(&raw.fill_memory, 1..=MOST_BYTES).unwrap_or(FILL_MEMORY.max(max_object));
        if let Some(at) = &raw.fill_memory
            && fill_memory < max_object
        {
            let text = format!("`cache.fill_memory` is smaller than `cache.max_object` ({})", bytes(max_object));
            self.error(
                &at.span(),
                text,
                format!("write at least \"{}\", or lower `cache.max_object`", bytes(max_object)),
            );
        }
        CacheTiers {
            memory,
            fill_memory,
            max_object,
            compress_over: self.size(&raw.compress_over, 0..=MOST_BYTES).unwrap_or(COMPRESS_OVER),
            max_staleness: self.duration(&raw.max_staleness, SHORTEST_BOUND).unwrap_or(MAX_STALENESS),
            preload: self.count(&raw.preload, 0..=MOST_PRELOADED).unwrap_or(0) as usize,
            preload_wait: self.duration(&raw.preload_wait, SHORTEST_WAIT).unwrap_or(PRELOAD_WAIT),
            generation: self.read(&raw.generation).map_or_else(|| GENERATION.to_owned(), |name| name.0),
        }
    }
}

/// Whether an upstream's URL asks for TLS.
fn uses_tls(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

/// The smaller of 256 MiB and 40% of what the control group allows: the rest is for connections and fills.
fn default_memory(limit: Option<u64>) -> usize {
    let share = limit.map(|limit| limit / 5 * 2).and_then(|share| usize::try_from(share).ok());
    share.map_or(MEMORY, |share| share.min(MEMORY))
}

fn is_own(host: &str, port: u16, listen: SocketAddr) -> bool {
    if port != listen.port() {
        return false;
    }
    let ip = match host {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => host.parse::<IpAddr>().ok(),
    };
    let local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    ip.is_some_and(|ip| {
        ip == listen.ip()
            || (local(ip)
                && (listen.ip().is_unspecified() || ip == Ipv6Addr::LOCALHOST && listen.ip() == Ipv4Addr::LOCALHOST))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_control_group() {
        assert_eq!(default_memory(None), MEMORY);
        assert_eq!(default_memory(Some(100 * MIB as u64)), 40 * MIB);
        assert_eq!(default_memory(Some(1 << 40)), MEMORY);
    }

    #[test]
    fn a_loop_to_itself_is_seen() {
        let listen = "0.0.0.0:8080".parse().unwrap();
        assert!(is_own("127.0.0.1", 8080, listen) && is_own("localhost", 8080, listen) && is_own("::1", 8080, listen));
        assert!(
            !is_own("127.0.0.1", 3000, listen) && !is_own("10.1.2.3", 8080, listen) && !is_own("app", 8080, listen)
        );
        assert!(!is_own("127.0.0.1", 8080, "10.1.2.3:8080".parse().unwrap()));
    }
}
