//! A wall clock that is set wrong, for one process: a small library that is compiled here and loaded before all others.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Scratch;

/// The library's source.
const SHIM: &str = include_str!("clock_shim.c");

/// A clock that goes right until it is set.
pub fn clock() -> Clock {
    let scratch = Scratch::new();
    let source = scratch.write("clock_shim.c", SHIM);
    let (library, ahead) = (scratch.path().join("clock_shim.so"), scratch.write("ahead", &"\0".repeat(8)));
    let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).output();
    let built = built.expect("cc is installed (Debian: gcc)");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let env = [("LD_PRELOAD", library), ("CLOCK_SHIM", ahead.clone())];
    let env = env.map(|(name, path)| (name.to_owned(), path.display().to_string()));
    let ahead = File::options().write(true).open(ahead).expect("our own file");
    Clock { env, ahead, most: AtomicI64::new(0), seconds: Mutex::new(0), _scratch: scratch }
}

/// What a process takes for the time of day; the clocks by which it waits are as ever.
pub struct Clock {
    env: [(String, String); 2],
    ahead: File,
    seconds: Mutex<i64>,
    /// The most that it was ahead since its process began.
    most: AtomicI64,
    _scratch: Scratch,
}

impl Clock {
    /// Sets it so many seconds ahead of what is right, or behind.
    pub fn set(&self, seconds: i64) {
        self.step(|_| seconds);
    }

    /// Sets it so many seconds ahead of what it is, or behind.
    pub fn advance(&self, seconds: i64) {
        self.step(|ahead| ahead + seconds);
    }

    /// How many seconds it is ahead of what is right.
    pub fn ahead(&self) -> i64 {
        *self.seconds.lock().expect("no panic while held")
    }

    fn step(&self, to: impl FnOnce(i64) -> i64) {
        let mut seconds = self.seconds.lock().expect("no panic while held");
        *seconds = to(*seconds);
        self.most.fetch_max(*seconds, Ordering::Relaxed);
        self.ahead.write_all_at(&seconds.to_ne_bytes(), 0).expect("our own file");
    }

    /// The process that goes by it begins anew.
    pub(super) fn begins(&self) {
        self.most.store(self.ahead(), Ordering::Relaxed);
    }

    /// Whether its process has seen it set back.
    pub(super) fn was_set_back(&self) -> bool {
        self.ahead() < self.most.load(Ordering::Relaxed)
    }

    /// The environment of who goes by it.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }
}
