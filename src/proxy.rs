//! The request's way.

pub mod route;
