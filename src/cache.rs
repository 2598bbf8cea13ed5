//! Not yet.

pub mod directives;
pub mod freshness;
pub mod key;
pub mod negotiation;
pub mod policy;
pub mod tags;
