//! Whom a limit is for: before its state is asked, by its lists of clients and by what it says of those who lack a part of
//! its identity. Who is none of its business is not counted by it, and hears nothing of it.

use std::sync::Arc;

use super::bounds::{Bound, StageLimits};
use super::tiers::Tiers;
use super::verdict::{Cause, Charged, Denial};
use super::{Facts, fields, identity, with_scratch};
use crate::config::{self, Missing};
use crate::metrics::{Decision, Source};

/// What a limit has to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It counts it.
    Counts,
    /// Nothing: `allow` lists the client.
    Allowed,
    /// Nothing: the request lacks a part of the identity.
    Skipped,
    /// It denies it: `deny` lists the client.
    Listed,
    /// It denies it: the request lacks a part of the identity.
    Unidentified,
}

/// Whether a limit has anything to say before its state is asked, or is another for somebody.
pub(super) fn is_needed(limit: &config::Limit) -> bool {
    !limit.allow.is_empty() || !limit.deny.is_empty() || limit.missing != Missing::Share || limit.tiers.is_some()
}

/// The stage as this request has it: `None` if all of it, else those limits that count it, as they are for its identity.
///
/// # Errors
/// The denial of the first limit that denies it unasked.
pub(super) fn narrowed(
    stage: &StageLimits,
    tiers: &Tiers,
    facts: &Facts<'_>,
    charged: &mut Charged,
) -> Result<Option<Box<StageLimits>>, Box<Denial>> {
    let mut bounds: Vec<Arc<Bound>> = Vec::with_capacity(stage.bounds.len());
    let (mut counts, mut is_other) = (true, false);
    for bound in &stage.bounds {
        // Several rates are one limit.
        if !bound.follows {
            let reach = Reach::of(&bound.limit, facts);
            counts = reach == Reach::Counts;
            match reach.cause() {
                None => {}
                Some(_) if bound.limit.dry_run => {
                    bound.metrics.decided(Decision::DryRun, Source::Rule);
                    charged.would_deny(&bound.limit);
                }
                Some(cause) => {
                    bound.metrics.decided(Decision::Denied, Source::Rule);
                    return Err(Box::new(Denial::unasked(bound, cause, facts, charged.policy.clone())));
                }
            }
        }
        if counts {
            let own = tiers.bound_of(bound, facts);
            is_other |= own.is_some();
            bounds.push(own.unwrap_or_else(|| Arc::clone(bound)));
        }
    }
    if bounds.len() == stage.bounds.len() && !is_other && !charged.is_narrowed {
        return Ok(None);
    }
    charged.is_narrowed = true;
    let policy = fields::policy_beyond(charged.policy.as_ref(), bounds.iter().map(|bound| &**bound));
    Ok(Some(Box::new(StageLimits {
        bounds,
        policy,
        script: stage.script,
        minds_loss: stage.minds_loss,
        delays: stage.delays,
        ..StageLimits::none(stage.refundable)
    })))
}

impl Reach {
    /// What the limit has to do with this request.
    pub fn of(limit: &config::Limit, facts: &Facts<'_>) -> Self {
        let ip = facts.ip.to_canonical();
        if limit.deny.iter().any(|network| network.contains(&ip)) {
            return Self::Listed;
        }
        if limit.allow.iter().any(|network| network.contains(&ip)) {
            return Self::Allowed;
        }
        let without = match limit.missing {
            Missing::Share => return Self::Counts,
            Missing::Skip => Self::Skipped,
            Missing::Deny => Self::Unidentified,
        };
        let is_whole = with_scratch(|scratch| identity::canonical(&limit.key, facts, scratch));
        if is_whole { Self::Counts } else { without }
    }

    fn cause(self) -> Option<Cause> {
        match self {
            Self::Counts | Self::Allowed | Self::Skipped => None,
            Self::Listed => Some(Cause::Listed),
            Self::Unidentified => Some(Cause::Unidentified),
        }
    }
}
