//! The request's way.

pub mod client;
pub mod headers;
pub mod route;
