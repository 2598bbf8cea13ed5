//! Not yet.

pub mod conditional;
pub mod directives;
pub mod entry;
pub mod fields;
pub mod freshness;
pub mod key;
pub mod negotiation;
pub mod policy;
pub mod tags;
