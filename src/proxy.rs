//! The request's way.

pub mod client;
pub mod route;
