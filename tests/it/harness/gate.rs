//! A gate: whoever comes to it waits until the test opens it, and the test knows how many came.

use std::sync::Arc;

use tokio::sync::watch;

/// Closed until [`Gate::open`]; clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    arrived: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Inner { arrived: watch::channel(0).0, open: watch::channel(false).0 }))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Waits until `count` have come to it.
    pub async fn reached(&self, count: usize) {
        let mut arrived = self.0.arrived.subscribe();
        let waiting = arrived.wait_for(|here| *here >= count);
        super::patiently("nobody came to the gate", waiting).await.expect("the gate lives");
    }

    /// Comes to it and waits.
    pub async fn pass(&self) {
        self.0.arrived.send_modify(|here| *here += 1);
        let mut open = self.0.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate lives");
    }
}
