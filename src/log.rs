//! Log lines on standard output, written by a thread of their own.
//!
//! Whoever logs appends a whole line to a bounded buffer in memory; one thread takes the buffers and writes them. A reader
//! of the log that is slow or gone costs lines, which are counted, never a request's time. Each worker has a buffer of its
//! own ([`Sink::for_worker`]), so that an access line takes an uncontended lock and a copy.
//!
//! A line is one line: whatever clients send, control characters in it are escaped.

mod access;
mod line;

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub use self::access::Access;
use crate::clock::Stopwatch;
use crate::config::{Log, LogFormat};

/// Bytes that one worker's buffer holds before lines are dropped: some 40 ms of lines at full speed.
const BUFFER_BYTES: usize = 1 << 20;

/// A buffer this full wakes the writer before its time.
const WAKE_BYTES: usize = 64 << 10;

/// Longest that an access line waits in memory while the writer keeps up.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Buffers are given back above this size, so that one burst does not stay in memory.
const KEPT_BYTES: usize = 128 << 10;

/// The variable that sets the level, in env-filter syntax: `debug`, `weir::kv=trace,info`.
pub const LEVEL_VARIABLE: &str = "WEIR_LOG";

/// Where log lines go; clones share a buffer.
#[derive(Clone)]
pub struct Sink {
    buffer: Arc<Buffer>,
    queue: Arc<Queue>,
    // Held for its drop, which lets the writer end.
    open: Arc<Open>,
}

/// Starts the writer on standard output and sends the process's events there, at the level that `WEIR_LOG` sets (`info`
/// without it).
///
/// Only the first call in a process decides where events go; every call returns a sink that works.
///
/// # Panics
/// If no thread can be started: a process in that state cannot serve either.
pub fn init(config: Log) -> Sink {
    let sink = Sink::to(io::stdout(), config);
    let (filter, problem) = filter(std::env::var(LEVEL_VARIABLE).ok().as_deref());
    let events = Events { sink: sink.clone() };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(events);
    let installed = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    if let (Ok(()), Some(problem)) = (installed, problem) {
        tracing::warn!(
            "{LEVEL_VARIABLE} is ignored: {problem}; write a level (debug) or target=level, comma separated"
        );
    }
    sink
}

/// The filter that `text` describes, or the default and what is wrong with `text`.
fn filter(text: Option<&str>) -> (EnvFilter, Option<String>) {
    match text.filter(|text| !text.is_empty()).map(EnvFilter::try_new) {
        None => (EnvFilter::new("info"), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(problem)) => (EnvFilter::new("info"), Some(problem.to_string())),
    }
}

impl Sink {
    /// A sink whose writer writes to `out`.
    ///
    /// # Panics
    /// If no thread can be started.
    pub fn to(out: impl Write + Send + 'static, config: Log) -> Self {
        let buffer = Arc::new(Buffer::default());
        let queue = Arc::new(Queue {
            format: config.format,
            access: AtomicBool::new(config.access),
            buffers: Mutex::new(vec![Arc::downgrade(&buffer)]),
            idle: AtomicBool::new(false),
            sweeps: Mutex::new(0),
            swept: Condvar::new(),
            dropped: IntCounter::new("weir_log_dropped_total", "Log lines lost because their reader is too slow")
                .expect("the name is valid"),
        });
        let closed = Arc::new(AtomicBool::new(false));
        let writer = Writer { queue: Arc::clone(&queue), closed: Arc::clone(&closed), spare: Vec::new() };
        let thread = thread::Builder::new()
            .name("weir-log".to_owned())
            .spawn(move || writer.run(out))
            .expect("a process that cannot start a thread cannot serve")
            .thread()
            .clone();
        Self { buffer, queue, open: Arc::new(Open { closed, thread }) }
    }

    /// A sink that drops everything, for tests and benches.
    pub fn off() -> Self {
        Self::to(io::sink(), Log { format: LogFormat::Json, access: false })
    }

    /// The same sink with a buffer of its own: one for each worker, so that workers do not wait for each other.
    pub fn for_worker(&self) -> Self {
        let buffer = Arc::new(Buffer::default());
        let mut buffers = lock(&self.queue.buffers);
        buffers.retain(|buffer| buffer.strong_count() > 0);
        buffers.push(Arc::downgrade(&buffer));
        Self { buffer, queue: Arc::clone(&self.queue), open: Arc::clone(&self.open) }
    }

    /// Whether requests are logged; without it [`Sink::access`] does nothing.
    pub fn logs_access(&self) -> bool {
        self.queue.access.load(Ordering::Relaxed)
    }

    /// Turns the access log on or off, as a reload does.
    pub fn set_access(&self, on: bool) {
        self.queue.access.store(on, Ordering::Relaxed);
    }

    /// Logs a request that ended.
    pub fn access(&self, access: &Access<'_>) {
        if self.logs_access() {
            self.append(|buffer| match self.queue.format {
                LogFormat::Json => access.write_json(buffer),
                LogFormat::Text => access.write_text(buffer),
            });
        }
    }

    /// Waits until what was logged before is written, at most `within`: the last act of a process.
    pub fn flush(&self, within: Duration) {
        let waiting = Stopwatch::start();
        let mut sweeps = lock(&self.queue.sweeps);
        // The sweep in progress may have passed this buffer already; the one behind it has not.
        let enough = *sweeps + 2;
        while *sweeps < enough && waiting.elapsed() < within {
            self.open.thread.unpark();
            let waited = self.queue.swept.wait_timeout(sweeps, Duration::from_millis(1));
            sweeps = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lines lost so far: a counter to put on a registry.
    pub fn dropped_total(&self) -> IntCounter {
        self.queue.dropped.clone()
    }

    /// Appends what `write` writes, a whole line, or drops it where there is no room.
    fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = lock(&self.buffer.0);
        let before = bytes.len();
        if before >= BUFFER_BYTES {
            drop(bytes);
            self.queue.dropped.inc();
            return;
        }
        write(&mut bytes);
        let after = bytes.len();
        drop(bytes);
        let full_enough = before < WAKE_BYTES && after >= WAKE_BYTES;
        if full_enough || self.queue.idle.load(Ordering::Relaxed) {
            self.open.thread.unpark();
        }
    }
}

/// Lines on their way to the writer.
#[derive(Default)]
struct Buffer(Mutex<Vec<u8>>);

/// What all sinks of one writer share.
struct Queue {
    format: LogFormat,
    access: AtomicBool,
    buffers: Mutex<Vec<Weak<Buffer>>>,
    /// The writer sleeps until somebody wakes it. Set before it looks at every buffer a last time, under the locks under
    /// which lines are appended: whoever appends behind that look sees it.
    idle: AtomicBool,
    sweeps: Mutex<u64>,
    swept: Condvar,
    dropped: IntCounter,
}

/// Ends the writer when the last sink is gone.
struct Open {
    closed: Arc<AtomicBool>,
    thread: Thread,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// The thread that writes.
struct Writer {
    queue: Arc<Queue>,
    closed: Arc<AtomicBool>,
    /// Empty between sweeps; swapped for a full one.
    spare: Vec<u8>,
}

impl Writer {
    fn run(mut self, mut out: impl Write) {
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            if self.sweep(&mut out) {
                thread::park_timeout(FLUSH_INTERVAL);
                continue;
            }
            if closed {
                return;
            }
            self.queue.idle.store(true, Ordering::Relaxed);
            if !self.sweep(&mut out) {
                thread::park();
            }
            self.queue.idle.store(false, Ordering::Relaxed);
        }
    }

    /// Writes what every buffer holds; says whether there was anything.
    fn sweep(&mut self, out: &mut impl Write) -> bool {
        let buffers: Vec<_> = lock(&self.queue.buffers).iter().filter_map(Weak::upgrade).collect();
        let mut found = false;
        for buffer in buffers {
            std::mem::swap(&mut *lock(&buffer.0), &mut self.spare);
            if self.spare.is_empty() {
                continue;
            }
            found = true;
            if out.write_all(&self.spare).and_then(|()| out.flush()).is_err() {
                self.queue.dropped.inc_by(memchr::memchr_iter(b'\n', &self.spare).count() as u64);
            }
            self.spare.clear();
            self.spare.shrink_to(KEPT_BYTES);
        }
        *lock(&self.queue.sweeps) += 1;
        self.queue.swept.notify_all();
        found
    }
}

/// What is behind these locks is whole between any two statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the formatter of events puts them: one write is one event.
struct Events {
    sink: Sink,
}

impl<'a> MakeWriter<'a> for Events {
    type Writer = &'a Events;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        self.sink.append(|buffer| {
            line::whole(buffer, &String::from_utf8_lossy(text), self.sink.queue.format);
            buffer.push(b'\n');
        });
        // Events are few, and read while they happen.
        self.sink.open.thread.unpark();
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("format", &self.queue.format).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
