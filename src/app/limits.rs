//! `/limits`: the limits of a running Weir, joined to the admin port.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::admin;
use crate::kv;
use crate::limit::view::{Asked, View};
use crate::proxy::state::{Live, Shared};

/// Joins limits to the admin port.
pub(super) struct Door {
    shared: Arc<Shared>,
    kv: Option<Arc<kv::Shared>>,
    /// Its connections live on the runtime that asks.
    redis: OnceLock<kv::Redis>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>, kv: Option<Arc<kv::Shared>>) -> Self {
        Self { shared, kv, redis: OnceLock::new() }
    }

    fn view<'a>(&'a self, live: &'a Live) -> View<'a> {
        let redis = self.kv.as_ref().map(|kv| self.redis.get_or_init(|| kv::Redis::control(Arc::clone(kv))));
        let routes = live.routes().map(|route| (&*route.name, &route.limits));
        View::new(&self.shared.limiter, routes, redis, live.config.admin.show_identities)
    }
}

impl admin::Limits for Door {
    fn list(&self) -> Value {
        self.view(&self.shared.live()).list()
    }

    fn state<'a>(&'a self, asked: &'a Asked) -> admin::Viewed<'a> {
        Box::pin(async move { self.view(&self.shared.live()).state(asked).await })
    }

    fn reset<'a>(&'a self, asked: &'a Asked) -> admin::Viewed<'a> {
        Box::pin(async move { self.view(&self.shared.live()).reset(asked).await })
    }
}
