//! Intents: what a write is about to invalidate, noted in Redis before it is forwarded.
//!
//! The pod that forwards it may end between the service's success and the record in the log. An intent that is not settled
//! by then is logged by whichever pod proves next. One that was noted in vain costs an invalidation too many.

use std::sync::Arc;
use std::time::Duration;

use super::to_json;
use crate::kv::{Budget, Redis, Script, Unavailable, random};
use crate::syntax::selector::Order;

/// How long one lasts at least: a write that takes longer renews it.
const SHORTEST: Duration = Duration::from_secs(1);

/// Parts of its life after which it is renewed.
const RENEWED_AT: u32 = 2;

static INTEND: Script = Script { name: "intend", source: include_str!("../kv/intend.lua") };

/// The note of one write.
#[derive(Clone)]
pub struct Intent {
    redis: Redis,
    id: Arc<str>,
    order: Arc<str>,
    lasts: Duration,
}

impl Intent {
    /// Notes that a write is about to make `order` true, and will be answered within `patience`; nothing where Redis does
    /// not take it within the budget.
    pub async fn note(redis: &Redis, order: &Order, patience: Duration, budget: &mut Budget) -> Option<Self> {
        let intent = Self {
            redis: redis.clone(),
            id: format!("{:016x}", random()).into(),
            order: to_json(order).into(),
            lasts: patience.max(SHORTEST),
        };
        if budget.left().is_zero() {
            return None;
        }
        match intent.put("note", budget).await {
            Ok(true) => Some(intent),
            Ok(false) | Err(Unavailable::NotSent | Unavailable::Refused(_)) => None,
            Err(Unavailable::Timeout) => {
                // It may have been noted all the same.
                tokio::spawn(intent.withdraw());
                None
            }
        }
    }

    /// Runs `write`, and keeps the intent meanwhile.
    pub async fn kept_while<T>(&self, write: impl Future<Output = T>) -> T {
        let mut write = std::pin::pin!(write);
        let renewing = async {
            loop {
                tokio::time::sleep(self.lasts / RENEWED_AT).await;
                let _ = self.put("renew", &mut self.redis.budget()).await;
            }
        };
        tokio::select! {
            biased;
            result = &mut write => result,
            never = renewing => never,
        }
    }

    /// By what the log's script settles it.
    pub(super) fn id(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    /// The write changed nothing.
    pub async fn withdraw(self) {
        let keys = self.keys();
        let keys = [&keys[0][..], &keys[1]];
        let _ = self.redis.run(&super::log::LEAVE, &keys, &[self.id.as_bytes()], &mut self.redis.budget()).await;
    }

    async fn put(&self, how: &str, budget: &mut Budget) -> Result<bool, Unavailable> {
        let (keys, lasts_ms) = (self.keys(), self.lasts.as_millis().to_string());
        let keys = [&keys[0][..], &keys[1]];
        let args = [&*self.id, &lasts_ms, &*self.order, how].map(|arg: &str| arg.as_bytes());
        let noted = self.redis.run(&INTEND, &keys, &args, budget).await;
        noted.map(|reply| reply.number() == Some(1))
    }

    fn keys(&self) -> [Vec<u8>; 2] {
        let keys = &self.redis.shared().keys;
        [keys.intents(), keys.intended()]
    }
}
