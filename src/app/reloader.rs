//! Where the configuration comes from, and when another is to be had.

use tokio::sync::mpsc;

use super::{Source, StartError};
use crate::config::watch::{Seen, Watch};
use crate::config::{Config, Loaded, Overrides};

/// The configuration in use, and what tells when another is to be had.
pub(super) struct Reloader {
    pub config: Config,
    pub source: Source,
    pub overrides: Overrides,
    files: Vec<Seen>,
    watch: Option<(Watch, mpsc::Receiver<()>)>,
}

impl Reloader {
    pub fn new(loaded: Loaded, source: Source, overrides: Overrides) -> Result<Self, StartError> {
        let Loaded { config, files, .. } = loaded;
        let mut reloader = Self { config, source, overrides, files: Vec::new(), watch: None };
        reloader.observe(files);
        Ok(reloader)
    }

    pub fn take(&mut self, config: Config, files: Vec<Seen>) {
        self.config = config;
        self.observe(files);
    }

    fn observe(&mut self, files: Vec<Seen>) {
        if files.iter().map(Seen::path).eq(self.files.iter().map(Seen::path)) {
            return;
        }
        self.watch = match Watch::start(files.clone()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "the configuration's files cannot be watched; SIGHUP reloads them");
                None
            }
        };
        self.files = files;
    }

    pub async fn changed(&mut self) {
        let changed = match &mut self.watch {
            Some((_, changes)) => changes.recv().await,
            None => None,
        };
        if changed.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
