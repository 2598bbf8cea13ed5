//! Buckets in Redis: what the scripts are told and what they answer.

use super::bucket::{Level, Mark, Shape};
use super::local::{Few, Reading};
use crate::kv::{Reply, Script};

/// Takes from all buckets of a stage or from none; see `take.lua`.
pub static TAKE: Script =
    Script { name: "limit_take", source: concat!(include_str!("bucket.lua"), include_str!("take.lua")) };

/// Gives earlier stages' charges back; see `refund.lua`.
pub static REFUND: Script =
    Script { name: "limit_refund", source: concat!(include_str!("bucket.lua"), include_str!("refund.lua")) };

/// Integers that `take.lua` answers before those of the first limit.
const TAKEN_HEAD: usize = 1;

/// Integers that `take.lua` answers for each limit.
const TAKEN_EACH: usize = 6;

/// A shape as the scripts take it; written once, when a route is built.
#[derive(Debug, Clone)]
pub struct ShapeArgs([Box<[u8]>; 3]);

impl ShapeArgs {
    /// Exact: what Lua reads back is the same double.
    pub fn new(shape: &Shape) -> Self {
        Self([shape.accrual, shape.price, shape.capacity].map(|number| number.to_string().into_bytes().into()))
    }

    /// The arguments.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// `take.lua`'s arguments for limits and whether each denies, on Redis' time.
pub fn take_args<'a>(limits: impl Iterator<Item = (&'a ShapeArgs, bool)>) -> Vec<&'a [u8]> {
    let mut args: Vec<&[u8]> = vec![b""];
    for (shape, enforced) in limits {
        args.extend(shape.iter());
        args.push(if enforced { b"1" } else { b"0" });
    }
    args
}

/// `take.lua`'s reply for `limits` limits of these prices; `None` if it is not one.
pub fn taken(reply: &Reply, limits: usize, price: impl Fn(usize) -> f64) -> Option<Few<Reading>> {
    let Reply::Array(items) = reply else { return None };
    if items.len() != TAKEN_HEAD + limits * TAKEN_EACH {
        return None;
    }
    let number = |at: usize| match items[at] {
        Reply::Int(number) if number >= 0 => Some(number as u64),
        _ => None,
    };
    let now = number(0)? as f64;
    let mut readings = Few::new();
    for limit in 0..limits {
        let at = TAKEN_HEAD + limit * TAKEN_EACH;
        let level = Level { remaining: number(at + 1)?, wait_ms: number(at + 2)?, full_ms: number(at + 3)? };
        let (room, returned) = (number(at + 4)? as f64, number(at + 5)? as f64);
        let mark = (number(at)? == 1).then(|| Mark { at: now, room, paid: price(limit), returned });
        readings.push(Reading { mark, level });
    }
    Some(readings)
}

/// `refund.lua`'s arguments for charges that `take.lua` made, on Redis' time.
pub fn refund_args<'a>(charges: impl Iterator<Item = (&'a ShapeArgs, &'a Mark)>) -> Vec<Vec<u8>> {
    let mut args = vec![Vec::new()];
    for (shape, mark) in charges {
        args.extend(shape.iter().map(<[u8]>::to_vec));
        args.extend([mark.at, mark.room, mark.returned].map(|number| number.to_string().into_bytes()));
    }
    args
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
