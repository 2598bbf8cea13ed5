//! What a service can do at once: so many servers with one line before them, as threads or database connections are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

/// Clones are the same servers.
#[derive(Clone)]
pub struct Servers(Arc<Inner>);

struct Inner {
    free: Semaphore,
    here: AtomicUsize,
    peak: AtomicUsize,
}

impl Servers {
    /// So many.
    pub fn new(count: usize) -> Self {
        let inner = Inner { free: Semaphore::new(count), here: AtomicUsize::new(0), peak: AtomicUsize::new(0) };
        Self(Arc::new(inner))
    }

    /// Most requests that were there at once, in line or served.
    pub fn peak(&self) -> usize {
        self.0.peak.load(Ordering::SeqCst)
    }

    /// Waits in line, and is served for that long.
    pub(super) async fn serve(&self, time: Duration) {
        let _here = Here::come(&self.0);
        let _server = self.0.free.acquire().await.expect("never closed");
        tokio::time::sleep(time).await;
    }
}

/// Counts who is there, until they have gone.
struct Here<'s>(&'s Inner);

impl<'s> Here<'s> {
    fn come(inner: &'s Inner) -> Self {
        let here = inner.here.fetch_add(1, Ordering::SeqCst) + 1;
        inner.peak.fetch_max(here, Ordering::SeqCst);
        Self(inner)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::SeqCst);
    }
}
