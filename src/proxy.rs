//! The request's way.
pub mod http1;
pub mod http2;
pub mod upstream;
