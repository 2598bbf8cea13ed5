//! What a fake upstream answers, in the order in which it does so.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Gate, Servers};

/// An answer with this body; 200 unless told otherwise.
pub fn reply(body: impl Into<Bytes>) -> Reply {
    Reply {
        status: StatusCode::OK,
        fields: Vec::new(),
        before: Vec::new(),
        body: vec![Piece::Data(body.into())],
        sized: true,
    }
}

/// A scripted answer.
#[derive(Clone)]
pub struct Reply {
    pub(super) status: StatusCode,
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
    pub(super) before: Vec<Wait>,
    pub(super) body: Vec<Piece>,
    /// Whether the size is announced.
    pub(super) sized: bool,
}

/// What an answer waits for.
#[derive(Clone)]
pub(super) enum Wait {
    Gate(Gate),
    Time(Duration),
    Served(Servers, Duration),
}

/// What a body is made of.
#[derive(Clone)]
pub(super) enum Piece {
    Data(Bytes),
    Wait(Wait),
    Trailers(HeaderMap),
    Cut,
}

impl Reply {
    /// Another status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = StatusCode::from_u16(status).expect("a status");
        self
    }

    /// One more field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a field name");
        self.fields.push((name, HeaderValue::from_str(value).expect("a field value")));
        self
    }

    /// `Cache-Control: max-age=seconds`.
    pub fn max_age(self, seconds: u32) -> Self {
        self.header("cache-control", &format!("max-age={seconds}"))
    }

    /// Holds the head back until `gate` opens.
    pub fn gate(mut self, gate: &Gate) -> Self {
        self.before.push(Wait::Gate(gate.clone()));
        self
    }

    /// The time that the service takes, before the head.
    pub fn takes(mut self, time: Duration) -> Self {
        self.before.push(Wait::Time(time));
        self
    }

    /// Comes to be served, and takes that long then, before the head.
    pub fn served(mut self, by: &Servers, time: Duration) -> Self {
        self.before.push(Wait::Served(by.clone(), time));
        self
    }

    /// Holds the body's rest back until `gate` opens.
    pub fn then_gate(mut self, gate: &Gate) -> Self {
        self.body.push(Piece::Wait(Wait::Gate(gate.clone())));
        self
    }

    /// More of the body; its size is no longer announced.
    pub fn then(mut self, more: impl Into<Bytes>) -> Self {
        self.body.push(Piece::Data(more.into()));
        self.sized = false;
        self
    }

    /// A trailer field behind the body, announced before it.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self = self.header("trailer", name);
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a field name");
        let trailers = HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a field value"))]);
        self.body.push(Piece::Trailers(trailers));
        self.sized = false;
        self
    }

    /// Breaks the connection where the body should go on, `announced` bytes having been promised.
    pub fn cut(mut self, announced: usize) -> Self {
        self.body.push(Piece::Cut);
        self.sized = false;
        self.header("content-length", &announced.to_string())
    }
}
