//! What is asked of `weir explain` and `GET /explain`, as it was written.

/// A request to be explained, and perhaps an answer to it. Not `Debug`: its fields may hold credentials.
#[derive(Clone, Default)]
pub struct Question {
    /// Method.
    pub method: String,
    /// Absolute URL, or a path where one of `headers` is `Host`.
    pub url: String,
    /// `name: value` of the request.
    pub headers: Vec<String>,
    /// The request's body; where it is not given, the fields say whether there is one.
    pub body: Option<String>,
    /// Status of a supposed answer; 200 where only `response` is given.
    pub status: Option<String>,
    /// `name: value` of a supposed answer.
    pub response: Vec<String>,
    /// Address that the request comes from; this host's own where it is not given.
    pub client: Option<String>,
}
