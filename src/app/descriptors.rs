//! File descriptors: as many as this process may have, and a word where that is less than what is configured.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::config::{Config, ServerLimits};

/// Descriptors beside those of clients, upstream and workers: listeners, Redis' for control work, files, runtimes.
const OTHERS: usize = 128;

/// Connections of one worker to each of Redis' servers; of a Cluster those count that are named, as more are not known yet.
const OF_A_WORKER: usize = 2;

/// Raises the soft limit to the hard one, which needs no privilege, and returns how many of the descriptors clients may
/// have. Many systems keep the soft limit low for the sake of programs that use `select`, which Weir does not.
pub(super) fn allow(config: &Config) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where even that is forbidden, what there is has to do.
    let _ = setrlimit(Resource::Nofile, limit);
    let Some(limit) = getrlimit(Resource::Nofile).current else { return usize::MAX };
    let servers = config.redis.as_ref().map_or(0, |redis| redis.servers.addresses().len());
    let redis = OF_A_WORKER * config.server.workers.get() * servers;
    let clients = clients(usize::try_from(limit).unwrap_or(usize::MAX), config.upstream.connections.get() + redis);
    let connections = config.server.limits.connections;
    if clients < connections {
        tracing::warn!(
            limit,
            connections,
            clients,
            remedy = "raise the limit of open files (ulimit -n, LimitNOFILE), or lower server.limits.connections or \
                      upstream.connections",
            "there may be more connections than file descriptors: clients get fewer than configured"
        );
    }
    clients
}

/// `limits` with no more connections than there are descriptors for.
pub(super) fn capped(limits: ServerLimits, clients: usize) -> ServerLimits {
    ServerLimits { connections: limits.connections.min(clients), ..limits }
}

/// What is left for clients of so many descriptors: all but those of the workers' connections to the upstream, without which
/// a client can have nothing but an error, and to Redis, though never less than half.
fn clients(limit: usize, workers: usize) -> usize {
    limit.saturating_sub(workers).saturating_sub(OTHERS).max(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::clients;

    #[test]
    fn clients_leave_what_the_upstream_needs() {
        assert_eq!(clients(20_000, 512), 19_360);
        assert_eq!(clients(1_024, 512), 512);
        assert_eq!(clients(200, 20), 100);
    }
}
