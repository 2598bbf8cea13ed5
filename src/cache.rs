//! Not yet.

pub mod directives;
pub mod freshness;
pub mod tags;
