//! The pods of a fleet, and what is done to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as Turn;

use crate::fleet::dice::Dice;
use crate::harness::{PATIENCE, Setup, Weir};

/// Between the end of one fault and the next.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_500));

/// How long a pod stands still: shorter and longer than its loans live.
const STOPPED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(3_000));

/// How long it is gone before another one starts.
const GONE: (Duration, Duration) = (Duration::from_millis(0), Duration::from_millis(300));

/// One pod, whichever process it is just now.
pub struct Pod {
    setup: Setup,
    /// Held while something is done to it.
    weir: Turn<Weir>,
    at: Mutex<SocketAddr>,
}

impl Pod {
    /// Where requests go.
    pub fn at(&self) -> SocketAddr {
        *self.at.lock().expect("no panic while held")
    }

    /// Stops it for a while, as a starved node does.
    pub async fn stop(&self, time: Duration) {
        let weir = self.weir.lock().await;
        weir.freeze();
        tokio::time::sleep(time).await;
        weir.thaw();
    }

    /// Ends it as a crash does, and starts another.
    async fn kill(&self, gone: Duration) {
        let mut weir = self.weir.lock().await;
        weir.kill();
        tokio::time::sleep(gone).await;
        let next = self.setup.launch().await;
        *self.at.lock().expect("no panic while held") = next.proxy;
        *weir = next;
    }

    /// Ends it as a rollout does: it gives back what it was lent.
    pub async fn end(&self) {
        let mut weir = self.weir.lock().await;
        weir.sigterm();
        assert_eq!(weir.ended(PATIENCE).await, Some(0));
    }

    /// The sum of some of its counters.
    pub async fn metric(&self, wanted: &str) -> f64 {
        self.weir.lock().await.metric(wanted).await
    }

    /// Bytes of memory that it holds.
    pub async fn resident(&self) -> u64 {
        self.weir.lock().await.resident()
    }
}

/// So many pods, all ready.
pub async fn pods(setup: &Setup, count: usize) -> Arc<[Pod]> {
    let weirs = setup.fleet(count).await;
    let pod = |weir: Weir| Pod { setup: setup.clone(), at: Mutex::new(weir.proxy), weir: Turn::new(weir) };
    weirs.into_iter().map(pod).collect()
}

/// Stops and kills them by turns for as long as it `goes_on`; how often each was done.
pub async fn troubles(pods: &[Pod], mut dice: Dice, goes_on: &AtomicBool) -> BTreeMap<&'static str, usize> {
    let mut done = BTreeMap::new();
    while goes_on.load(Ordering::Relaxed) {
        tokio::time::sleep(dice.between(PAUSES.0, PAUSES.1)).await;
        let pod = &pods[dice.below(pods.len())];
        let what = if dice.below(2) == 0 {
            pod.stop(dice.between(STOPPED.0, STOPPED.1)).await;
            "stopped"
        } else {
            pod.kill(dice.between(GONE.0, GONE.1)).await;
            "killed"
        };
        *done.entry(what).or_default() += 1;
    }
    done
}
