//! One of Redis' servers, for who has to tell that one.

use std::sync::Arc;

use tokio::time::Instant;

use super::reply::{Fault, Reply};
use super::topology::Node;
use super::{Budget, Lane, NOSCRIPT, Redis, Script, Unavailable, invocation};

/// One server of Redis.
#[derive(Clone)]
pub struct Server(Arc<Node>);

impl Server {
    /// Whether requests do without it.
    pub fn is_away(&self) -> bool {
        self.0.breaker.is_open()
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.address)
    }
}

impl Redis {
    /// The server that has `key`, as far as is known.
    pub fn server_of(&self, key: &[u8]) -> Option<Server> {
        self.0.shared.topology.map().owner(key).map(|master| Server(Arc::clone(&master.node)))
    }

    /// [`Redis::run_with_body`] at this server, whatever is known of whose keys these are: nothing is concluded from its answer.
    ///
    /// # Errors
    /// It gave no answer.
    pub async fn run_at(
        &self,
        server: &Server,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
        budget: Budget,
    ) -> Result<Reply, Unavailable> {
        let (way, until) = (self.way(&server.0), Instant::now() + budget.left());
        let mut command = invocation("EVALSHA", &self.known(script).sha1, keys, args);
        let mut answer = self.attempt(&way, (Lane::Bodies, false), &command, until).await;
        if matches!(&answer, Err(Fault::Refused(kind)) if kind == NOSCRIPT) {
            command = invocation("EVAL", script.source, keys, args);
            answer = self.attempt(&way, (Lane::Bodies, false), &command, until).await;
        }
        answer.map_err(Into::into)
    }
}
