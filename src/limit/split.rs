//! Scripts that touch several identities: in a Cluster one for each slot, all sent at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use smallvec::{SmallVec, smallvec};

use super::local::Few;
use crate::kv::{self, Budget, Reply, Script, Unavailable};

/// How a script's arguments go with its keys: some for all, then sections, each of so many for every key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    head: usize,
    sections: &'static [usize],
}

/// What one slot's script was asked, and what came of it.
pub(super) struct Part {
    /// The keys that it had, by their places.
    pub(super) places: Few<usize>,
    pub(super) reply: Result<Reply, Unavailable>,
}

impl Layout {
    pub(super) const TAKE: Self = Self { head: 2, sections: &[6, 1] };
    pub(super) const TAKE_AFTER_LOSS: Self = Self { head: 2, sections: &[6, 1, 1] };
    pub(super) const REFUND: Self = Self { head: 1, sections: &[9] };
    pub(super) const OWE: Self = Self { head: 1, sections: &[6] };
    pub(super) const REPAY: Self = Self { head: 1, sections: &[7] };
    pub(super) const RENEW: Self = Self { head: 2, sections: &[1] };

    /// The arguments for the keys in these places, of so many.
    fn of<'a>(self, places: &[usize], keys: usize, args: &[&'a [u8]]) -> Vec<&'a [u8]> {
        let (head, mut rest) = args.split_at(self.head);
        let mut own = head.to_vec();
        for each in self.sections {
            let (section, next) = rest.split_at(keys * each);
            places.iter().for_each(|place| own.extend(&section[place * each..][..*each]));
            rest = next;
        }
        own
    }
}

/// Runs a script: where its keys lie in several slots, once for each, side by side within the budget.
pub(super) async fn run(
    redis: &kv::Redis,
    script: &'static Script,
    keys: &[&[u8]],
    args: &[&[u8]],
    layout: Layout,
    budget: &mut Budget,
) -> SmallVec<[Part; 1]> {
    let Some(groups) = redis.shared().groups(keys) else {
        let reply = redis.run(script, keys, args, budget).await;
        return smallvec![Part { places: (0..keys.len()).collect(), reply }];
    };
    let whole = *budget;
    let parts = groups.into_iter().map(|places| {
        let own_keys: Vec<&[u8]> = places.iter().map(|place| keys[*place]).collect();
        let own_args = layout.of(&places, keys.len(), args);
        Box::pin(async move {
            let mut budget = whole;
            let reply = redis.run(script, &own_keys, &own_args, &mut budget).await;
            (Part { places: places.into(), reply }, budget)
        })
    });
    let ended = together(parts.collect()).await;
    // They waited at the same time.
    let least = ended.iter().map(|(_, left)| *left).min_by_key(|budget| (budget.left(), budget.was_missed()));
    *budget = least.unwrap_or(whole);
    ended.into_iter().map(|(part, _)| part).collect()
}

/// Waits for all of them at once.
async fn together<F: Future>(mut parts: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut ended: Vec<Option<F::Output>> = parts.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (part, ended) in parts.iter_mut().zip(&mut ended).filter(|(_, ended)| ended.is_none()) {
            if let Poll::Ready(output) = part.as_mut().poll(cx) {
                *ended = Some(output);
            }
        }
        if ended.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    ended.into_iter().flatten().collect()
}
