//! The pods: each a process, its own way to Redis, and what was done to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as Turn;

use super::check::{Away, Life};
use super::service::State;
use crate::harness::{Clock, Flaky, Redis, Setup, Weir, clock, flaky};

/// After it is back, a pod may still reset connections that it had before, and be slow to answer what piled up.
const RECOVERY: Duration = Duration::from_millis(500);

/// How a process is configured.
pub type Make = Arc<dyn Fn(Life) -> Setup + Send + Sync>;

/// One pod.
pub struct Pod {
    number: usize,
    setup: Make,
    /// Its way to Redis.
    pub relay: Flaky,
    /// Its clock.
    pub clock: Clock,
    /// Held while something is done to it.
    weir: Turn<Weir>,
    at: Mutex<At>,
    away: Mutex<Vec<Away>>,
}

/// Where it is to be found.
#[derive(Clone, Copy)]
pub struct At {
    /// Which process it is.
    pub life: Life,
    /// Where requests go.
    pub proxy: SocketAddr,
    /// The operator's port.
    pub admin: SocketAddr,
    /// Its process.
    pub pid: u32,
}

impl At {
    /// Where this process is.
    pub fn of(life: Life, weir: &Weir) -> Self {
        Self { life, proxy: weir.proxy, admin: weir.admin, pid: weir.process() }
    }
}

impl Pod {
    /// Starts one with this configuration, to reach `redis` over a relay.
    pub async fn start(number: usize, setup: &Make, redis: &Redis) -> Self {
        let (relay, clock, life) = (flaky(redis.address()), clock(), Life { pod: number, number: 0 });
        let weir = setup(life).redis_at(relay.address()).by(&clock).start().await;
        let at = At::of(life, &weir);
        Self {
            number,
            setup: Arc::clone(setup),
            relay,
            clock,
            weir: Turn::new(weir),
            at: Mutex::new(at),
            away: Mutex::default(),
        }
    }

    /// Where it is now.
    pub fn at(&self) -> At {
        *self.at.lock().expect("no panic while held")
    }

    /// Times in which it could not answer.
    pub fn away(&self) -> Vec<Away> {
        self.away.lock().expect("no panic while held").clone()
    }

    /// Stops it for a while, as a starved node does.
    pub async fn stop(&self, state: &State, time: Duration) {
        let weir = self.weir.lock().await;
        let from = state.now();
        weir.freeze();
        tokio::time::sleep(time).await;
        weir.thaw();
        self.was_away(state, from);
    }

    /// Ends it as a crash does, and starts it anew.
    pub async fn kill(&self, state: &State, time: Duration) {
        let mut weir = self.weir.lock().await;
        let from = state.now();
        weir.kill();
        tokio::time::sleep(time).await;
        // Ready or not: Redis may be away.
        let life = Life { pod: self.number, number: self.at().life.number + 1 };
        let next = (self.setup)(life).redis_at(self.relay.address()).by(&self.clock).launch().await;
        let at = At::of(life, &next);
        *self.at.lock().expect("no panic while held") = at;
        *weir = next;
        self.was_away(state, from);
    }

    fn was_away(&self, state: &State, from: u64) {
        let to = state.now() + RECOVERY.as_micros() as u64;
        self.away.lock().expect("no panic while held").push(Away { pod: self.number, from, to });
    }
}

/// So many pods.
pub async fn pods(count: usize, setup: &Make, redis: &Redis) -> Arc<[Pod]> {
    let mut pods = Vec::with_capacity(count);
    for number in 0..count {
        pods.push(Pod::start(number, setup, redis).await);
    }
    pods.into()
}
