//! Buckets in Redis: what the scripts are told and what they answer.

use super::algorithm::{Level, Mark, PARAMETERS, Shape};
use super::bounds::Bound;
use super::loans::{Question, Repayment};
use super::local::{Few, Reading};
use super::split::{self, Layout, Part};
use super::verdict::Charge;
use crate::kv::{self, Budget, Reply, Script, Unavailable};

/// A script that stands on all algorithms.
macro_rules! on_algorithms {
    ($script:literal) => {
        concat!(
            include_str!("algorithm.lua"),
            include_str!("bucket.lua"),
            include_str!("fixed_window.lua"),
            include_str!("sliding_window.lua"),
            include_str!("sets.lua"),
            include_str!("sliding_log.lua"),
            include_str!("concurrency.lua"),
            include_str!($script)
        )
    };
}

/// Takes from all limits of a stage or from none; see `take.lua`. This one knows token buckets only: what a script
/// defines, it defines anew each time that it runs.
pub static TAKE_TOKENS: Script = Script {
    name: "limit_take",
    source: concat!(
        include_str!("take_one.lua"),
        include_str!("algorithm.lua"),
        include_str!("bucket.lua"),
        include_str!("take.lua")
    ),
};

/// The same for stages in which any algorithm is.
pub static TAKE_ANY: Script = Script { name: "limit_take_any", source: on_algorithms!("take.lua") };

/// Gives earlier stages' charges back; see `refund.lua`.
pub static REFUND: Script = Script { name: "limit_refund", source: on_algorithms!("refund.lua") };

/// Charges what answers cost beyond what their requests took; see `owe.lua`.
pub static OWE: Script = Script {
    name: "limit_owe",
    source: concat!(
        include_str!("algorithm.lua"),
        include_str!("bucket.lua"),
        include_str!("fixed_window.lua"),
        include_str!("owe.lua")
    ),
};

/// Takes loans back; see `repay.lua`.
pub static REPAY: Script = Script {
    name: "limit_repay",
    source: concat!(include_str!("algorithm.lua"), include_str!("bucket.lua"), include_str!("repay.lua")),
};

/// Renews what running requests hold; see `renew.lua`.
pub static RENEW: Script = Script {
    name: "limit_renew",
    source: concat!(include_str!("algorithm.lua"), include_str!("sets.lua"), include_str!("renew.lua")),
};

/// Says what states hold; see `peek.lua`.
pub static PEEK: Script = Script { name: "limit_peek", source: on_algorithms!("peek.lua") };

/// Makes states as good as new; see `reset.lua`.
pub static RESET: Script = Script { name: "limit_reset", source: on_algorithms!("reset.lua") };

/// Numbers that `take.lua` answers before those of the first limit.
const TAKEN_HEAD: usize = 1;

/// Numbers that `take.lua` answers for each limit.
const TAKEN_EACH: usize = 6;

/// And behind all of them.
const TAKEN_LENT: usize = 1;

/// A shape as the scripts take it; written once, when a route is built.
#[derive(Debug, Clone)]
pub struct ShapeArgs([Box<[u8]>; 1 + PARAMETERS]);

impl ShapeArgs {
    /// Exact: what Lua reads back is the same double.
    pub fn new(shape: &Shape) -> Self {
        let [a, b, c] = shape.parameters();
        Self([f64::from(shape.code()), a, b, c].map(|number| number.to_string().into_bytes().into()))
    }

    /// The arguments.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// What a limit does with a request that it has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Denies it.
    Enforced,
    /// Counts it.
    Counting,
    /// Counts it, as one with the limit before.
    Joined,
}

impl Mode {
    fn arg(self) -> &'static [u8] {
        match self {
            Self::Counting => b"0",
            Self::Enforced => b"1",
            Self::Joined => b"2",
        }
    }
}

/// `take.lua`'s arguments for the request `id` and limits, each with what it costs there, on Redis' time.
pub fn take_args<'a>(id: &'a [u8], limits: impl Iterator<Item = (&'a ShapeArgs, &'a [u8], Mode)>) -> Vec<&'a [u8]> {
    let mut args: Vec<&[u8]> = vec![b"", id];
    for (shape, cost, mode) in limits {
        args.extend(shape.iter());
        args.extend([cost, mode.arg()]);
    }
    args
}

/// A question of the loans of this process, which is called `who` among the borrowers, as `take.lua` takes it.
pub fn loan_arg(who: f64, question: &Question) -> Vec<u8> {
    if *question == Question::default() {
        return Vec::new();
    }
    let Question { serial, held, wanted, debit } = *question;
    [who, serial as f64, held, wanted, debit].iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// When Redis lost its data, as `take.lua` takes it; `None` if it did not.
pub fn lost_arg(at_ms: u64) -> Option<Vec<u8>> {
    (at_ms > 0).then(|| (at_ms * 1000).to_string().into_bytes())
}

/// `take.lua`'s reply to the request `id` and limits of these shapes for these costs; `None` if it is not one.
pub fn taken(reply: &Reply, id: u64, limits: usize, asked: impl Fn(usize) -> (Shape, f64)) -> Option<Few<Reading>> {
    let (numbers, rest) = reply.bytes()?.as_chunks();
    if numbers.len() != TAKEN_HEAD + limits * (TAKEN_EACH + TAKEN_LENT) || !rest.is_empty() {
        return None;
    }
    // One that is no number is not 0 or more either.
    let number = |at: usize| Some(f64::from_le_bytes(numbers[at])).filter(|number| *number >= 0.0);
    let now = number(0)?;
    let mut readings = Few::new();
    for limit in 0..limits {
        let at = TAKEN_HEAD + limit * TAKEN_EACH;
        let [remaining, wait_ms, full_ms] =
            [number(at + 1)?, number(at + 2)?, number(at + 3)?].map(|whole| whole as u64);
        let level = Level { remaining, wait_ms, full_ms };
        let said = [number(at + 4)?, number(at + 5)?];
        let (shape, cost) = asked(limit);
        let mark = (number(at)? == 1.0).then(|| shape.mark(cost, id, now, said));
        let lent = number(TAKEN_HEAD + limits * TAKEN_EACH + limit)?;
        readings.push(Reading { mark, level, lent });
    }
    Some(readings)
}

/// `refund.lua`'s arguments for charges that `take.lua` made, on Redis' time.
pub fn refund_args<'a>(charges: impl Iterator<Item = (&'a ShapeArgs, &'a Mark)>) -> Vec<Vec<u8>> {
    let mut args = vec![Vec::new()];
    for (shape, mark) in charges {
        let (numbers, id) = mark.parameters();
        args.extend(shape.iter().map(<[u8]>::to_vec));
        args.extend(numbers.map(|number| number.to_string().into_bytes()));
        args.push(id.to_le_bytes().into());
    }
    args
}

/// Gives back what charges took in Redis, within the budget; what fails stays charged.
pub(super) async fn refund(redis: &kv::Redis, charges: &[Charge], budget: &mut Budget) {
    let shared = || charges.iter().filter_map(|charge| charge.redis.as_ref().map(|(key, mark)| (charge, key, mark)));
    let keys: Vec<&[u8]> = shared().map(|(_, key, _)| key.as_slice()).collect();
    if keys.is_empty() {
        return;
    }
    let args = refund_args(shared().map(|(charge, _, mark)| (&charge.bound.args, mark)));
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    // Unanswered, it may have been done: a second try could mint tokens.
    let _ = Box::pin(split::run(redis, &REFUND, &keys, &args, Layout::REFUND, budget)).await;
}

/// `owe.lua`'s arguments for so much of each limit, on Redis' time.
pub fn owe_args<'a>(debts: impl Iterator<Item = (&'a ShapeArgs, f64, &'a [u8])>) -> Vec<Vec<u8>> {
    let mut args = vec![Vec::new()];
    for (shape, cost, lost) in debts {
        args.extend(shape.iter().map(<[u8]>::to_vec));
        args.extend([cost.to_string().into_bytes(), lost.to_vec()]);
    }
    args
}

/// Charges what answers cost beyond what their requests took, within the budget. Those of which Redis heard nothing, by
/// their places.
pub(super) async fn owe(redis: &kv::Redis, debts: &[(Charge, f64)], budget: &mut Budget) -> Vec<usize> {
    let charged = || debts.iter().enumerate().filter_map(|(nth, debt)| Some((nth, debt, &debt.0.redis.as_ref()?.0)));
    let keys: Vec<&[u8]> = charged().map(|(_, _, key)| key.as_slice()).collect();
    if keys.is_empty() {
        return Vec::new();
    }
    let lost = lost_arg(redis.shared().lost_ms()).unwrap_or_default();
    let since = |bound: &Bound| if bound.minds_loss() { &lost[..] } else { &[] };
    let args = owe_args(charged().map(|(_, (charge, cost), _)| (&charge.bound.args, *cost, since(&charge.bound))));
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let debts: Vec<usize> = charged().map(|(nth, ..)| nth).collect();
    // Unanswered, it may have been done: a second try could charge twice.
    let parts = split::run(redis, &OWE, &keys, &args, Layout::OWE, budget).await;
    let is_unheard = |part: &Part| matches!(part.reply, Err(Unavailable::NotSent | Unavailable::Refused(_)));
    parts.into_iter().filter(is_unheard).flat_map(|part| part.places).map(|place| debts[place]).collect()
}

/// Gives loans of `who` back, within the budget; what fails is forgotten in its time.
///
/// # Errors
/// Redis answered for none of them.
pub(super) async fn repay(
    redis: &kv::Redis,
    who: f64,
    loans: &[Repayment],
    budget: &mut Budget,
) -> Result<(), Unavailable> {
    let keys: Vec<&[u8]> = loans.iter().map(|one| &*one.key).collect();
    let mut args = vec![Vec::new()];
    for Repayment { shape, serial, held, .. } in loans {
        args.extend(ShapeArgs::new(&Shape::TokenBucket(*shape)).iter().map(<[u8]>::to_vec));
        args.extend([who, *serial as f64, *held].map(|number| number.to_string().into_bytes()));
    }
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let parts = split::run(redis, &REPAY, &keys, &args, Layout::REPAY, budget).await;
    let answered = parts.iter().any(|part| part.reply.is_ok());
    parts.into_iter().next().filter(|_| !answered).map_or(Ok(()), |part| part.reply.map(|_| ()))
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "agree_tests.rs"]
mod agree;
