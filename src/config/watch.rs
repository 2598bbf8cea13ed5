//! Sees that a configuration file or a secret changed, however it is replaced.
//!
//! Editors rename a new file over the old one, and Kubernetes swaps the symlink `..data` beside it: a watch on the file
//! itself goes dead with the first of either. So the directories are watched, and what counts is the content.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// Quiet after the first sign of a change, so that a file and its secrets are replaced together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Content beyond this is not compared; larger than any configuration that is taken.
const COMPARED_BYTES: u64 = 16 * 1024 * 1024;

/// A file to watch, and what it held when it was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    path: PathBuf,
    digest: Option<[u8; 32]>,
}

impl Seen {
    /// The file as it is now.
    pub fn now(path: PathBuf) -> Self {
        let digest = digest(&path);
        Self { path, digest }
    }

    /// The file, which held `content`.
    pub fn holding(path: PathBuf, content: &[u8]) -> Self {
        Self { path, digest: Some(Sha256::digest(content).into()) }
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A running watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches `files`. The receiver gets one `()` after each change of their content since they were seen; changes that come
    /// before it is read are one. A file that is gone is not a change: what replaces it is.
    ///
    /// # Errors
    /// A directory that cannot be watched, or no thread to be had.
    pub fn start(files: Vec<Seen>) -> io::Result<(Self, mpsc::Receiver<()>)> {
        let (event, events) = std_mpsc::channel();
        // What the event says is of no interest, and an error (a queue that overflowed) is a reason to look as well. The
        // send fails only once the thread below is gone.
        let handler = move |_: notify::Result<notify::Event>| {
            let _ = event.send(());
        };
        let mut watcher = notify::recommended_watcher(handler).map_err(io::Error::other)?;
        for directory in directories(&files) {
            watcher.watch(&directory, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        }
        let (change, changes) = mpsc::channel(1);
        thread::Builder::new().name("weir-watch".to_owned()).spawn(move || look(files, &events, &change))?;
        Ok((Self { _watcher: watcher }, changes))
    }
}

/// Directories in which the files are named, and in which they really lie where they are symlinks.
fn directories(files: &[Seen]) -> BTreeSet<PathBuf> {
    let parent = |file: &Path| match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let real = files.iter().filter_map(|file| file.path.canonicalize().ok());
    files.iter().map(|file| parent(&file.path)).chain(real.map(|file| parent(&file))).collect()
}

/// Ends when the watcher or the receiver is dropped.
fn look(mut files: Vec<Seen>, events: &std_mpsc::Receiver<()>, change: &mpsc::Sender<()>) {
    loop {
        // The first look is for what changed between being read and being watched.
        let mut changed = false;
        for file in &mut files {
            let now = digest(&file.path);
            if now.is_some() && now != file.digest {
                file.digest = now;
                changed = true;
            }
        }
        if changed && matches!(change.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
            return;
        }
        if events.recv().is_err() {
            return;
        }
        thread::sleep(DEBOUNCE);
        while events.try_recv().is_ok() {}
    }
}

fn digest(file: &Path) -> Option<[u8; 32]> {
    let mut content = Vec::new();
    File::open(file).ok()?.take(COMPARED_BYTES).read_to_end(&mut content).ok()?;
    Some(Sha256::digest(&content).into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weir-watch-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        /// Puts `content` where Kubernetes would: into a directory of its own, then renames the symlink to it.
        fn swap(&self, version: &str, content: &str) {
            fs::create_dir(self.0.join(version)).unwrap();
            fs::write(self.0.join(version).join("weir.toml"), content).unwrap();
            symlink(version, self.0.join("..data_tmp")).unwrap();
            fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_config_map_is_followed_through_every_swap() {
        let scratch = Scratch::new("configmap");
        scratch.swap("..1", "a");
        symlink("..data/weir.toml", scratch.0.join("weir.toml")).unwrap();
        let (_watch, mut changes) = Watch::start(vec![Seen::now(scratch.0.join("weir.toml"))]).unwrap();
        for (version, content) in [("..2", "b"), ("..3", "c"), ("..4", "d")] {
            scratch.swap(version, content);
            timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn only_content_counts() {
        let scratch = Scratch::new("content");
        let (file, other) = (scratch.0.join("weir.toml"), scratch.0.join("token"));
        fs::write(&file, "a").unwrap();
        let (_watch, mut changes) = Watch::start(vec![Seen::now(file.clone()), Seen::now(other.clone())]).unwrap();
        // Replaced at once: who looks while it is written sees an empty file.
        let (unrelated, same) = (scratch.0.join("unrelated"), scratch.0.join("same"));
        fs::write(&same, "a").unwrap();
        fs::rename(&same, &file).unwrap();
        fs::write(&unrelated, "x").unwrap();
        assert!(timeout(DEBOUNCE * 3, changes.recv()).await.is_err());
        fs::write(&other, "new").unwrap();
        timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_changed_before_the_watch_began_counts() {
        let scratch = Scratch::new("before");
        let file = scratch.0.join("weir.toml");
        fs::write(&file, "a").unwrap();
        let seen = Seen::holding(file.clone(), b"a");
        fs::write(&file, "b").unwrap();
        let (_watch, mut changes) = Watch::start(vec![seen]).unwrap();
        timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_dropped_watch_ends() {
        let scratch = Scratch::new("drop");
        let (watch, mut changes) = Watch::start(vec![Seen::now(scratch.0.join("weir.toml"))]).unwrap();
        drop(watch);
        assert_eq!(timeout(PATIENCE, changes.recv()).await.unwrap(), None);
    }
}
