//! The other side of the admin port, for the command line: `weir invalidate`, `weir limits` and `weir drain`.
//!
//! These functions block and bring their own runtime; call them where none runs.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::shown;
use crate::config::Secret;
use crate::limit::view::{Asked, Who};
use crate::syntax::selector::Order;

/// Where the admin port is, if nobody says otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9901";

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 9901;

/// Longest wait for a connection and its answer together; more than the port itself takes for a request.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The same for one that waits for every pod and sets no limit: the port waits no longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Bytes of an answer that are read.
const ANSWER_BYTES: usize = 1 << 20;

/// Whom an invalidation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// The pod that was asked.
    #[default]
    None,
    /// Every pod; for so long at most, or until none can serve what was invalidated.
    All(Option<Duration>),
}

/// In which form limits are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Tables and lines.
    Text,
    /// The port's own JSON, indented.
    Json,
}

/// An admin port that is asked.
#[derive(Debug, Clone)]
pub struct Client {
    authority: Authority,
    bearer: Option<HeaderValue>,
}

/// Why an admin port did not do what it was asked.
#[derive(Debug)]
pub enum ClientError {
    /// The URL, or the token, cannot be used.
    Unusable {
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// No connection.
    Connect {
        /// `host:port`.
        address: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A connection, but no answer in HTTP.
    Answer {
        /// `host:port`.
        address: String,
        /// What was wrong.
        cause: String,
    },
    /// Nothing in the time that a request may take.
    TimedOut {
        /// `host:port`.
        address: String,
        /// How long that is.
        patience: Duration,
    },
    /// An order was taken, but not every pod has confirmed it.
    Incomplete {
        /// The port's JSON line, which names the others.
        answer: String,
    },
    /// It said no.
    Refused {
        /// Its status.
        status: StatusCode,
        /// What it said was wrong.
        problem: String,
        /// What it said to do.
        remedy: String,
    },
}

impl Client {
    /// A client of the port at `url` (`http://host:port`), with its token.
    ///
    /// # Errors
    /// The URL is no `http` URL, or the token cannot stand in a field.
    pub fn new(url: &str, token: Option<&Secret>) -> Result<Self, ClientError> {
        let unusable = |problem: String| ClientError::Unusable { problem, remedy: "write http://host:port" };
        let uri: Uri = url.parse().map_err(|problem| unusable(format!("`{url}` is no URL: {problem}")))?;
        if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
            return Err(unusable(format!("`{url}`: the admin port speaks http only")));
        }
        let authority = uri.authority().cloned().ok_or_else(|| unusable(format!("`{url}` names no host")))?;
        if authority.as_str().contains('@') {
            return Err(unusable("the URL has a user in it, which the admin port does not know".to_owned()));
        }
        if uri.path().len() > 1 || uri.query().is_some() {
            return Err(unusable(format!("`{url}` has a path")));
        }
        let bearer = token.map(bearer).transpose()?;
        Ok(Self { authority, bearer })
    }

    /// Submits an order; the answer is the port's JSON line.
    ///
    /// # Errors
    /// No connection, no answer, or a refusal with its remedy.
    pub fn invalidate(&self, order: &Order, wait: Wait) -> Result<String, ClientError> {
        let mut body = serde_json::to_value(order).unwrap_or_default();
        let mut patience = TIMEOUT;
        if let Wait::All(timeout) = wait {
            body["wait"] = "all".into();
            patience += timeout.unwrap_or(LONGEST_WAIT);
            if let Some(timeout) = timeout {
                body["timeout"] = format!("{}ms", timeout.as_millis()).into();
            }
        }
        match self.call(Method::POST, "/invalidate", body.to_string(), patience)? {
            (StatusCode::ACCEPTED, answer) if wait != Wait::None => Err(ClientError::Incomplete { answer }),
            (_, answer) => Ok(answer),
        }
    }

    /// Makes the process unready, still serving; the answer is the port's JSON line.
    ///
    /// # Errors
    /// No connection, no answer, or a refusal with its remedy.
    pub fn drain(&self) -> Result<String, ClientError> {
        self.call(Method::POST, "/drain", String::new(), TIMEOUT).map(|(_, answer)| answer)
    }

    /// All limits, what they decided, and who is denied most.
    ///
    /// # Errors
    /// No connection, no answer, or a refusal with its remedy.
    pub fn limits(&self, form: Form) -> Result<String, ClientError> {
        self.call(Method::GET, "/limits", String::new(), TIMEOUT).map(|(_, answer)| written(answer, form, shown::list))
    }

    /// The state of one identity, or its `reset`.
    ///
    /// # Errors
    /// No connection, no answer, or a refusal with its remedy.
    pub fn limit(&self, asked: &Asked, reset: bool, form: Form) -> Result<String, ClientError> {
        let parameters: Vec<_> = match &asked.who {
            Who::Id(id) => vec![format!("id={}", escaped(id))],
            Who::Parts(parts) => {
                parts.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect()
            }
        };
        let path = format!("/limits/{}?{}", escaped(&asked.limit), parameters.join("&"));
        let (method, text): (_, fn(&Value) -> String) =
            if reset { (Method::DELETE, shown::reset) } else { (Method::GET, shown::state) };
        self.call(method, &path, String::new(), TIMEOUT).map(|(_, answer)| written(answer, form, text))
    }

    fn address(&self) -> String {
        format!("{}:{}", self.authority.host(), self.authority.port_u16().unwrap_or(DEFAULT_PORT))
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        body: String,
        patience: Duration,
    ) -> Result<(StatusCode, String), ClientError> {
        let address = self.address();
        let connect = |cause| ClientError::Connect { address: address.clone(), cause };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(connect)?;
        let asked = async { tokio::time::timeout(patience, self.ask(&address, method, path, body)).await };
        let asked = runtime.block_on(asked);
        let (status, answer) = asked.map_err(|_| ClientError::TimedOut { address: address.clone(), patience })??;
        if status.is_success() { Ok((status, answer)) } else { Err(refusal(status, &answer)) }
    }

    async fn ask(
        &self,
        address: &str,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), ClientError> {
        let garbled = |cause: String| ClientError::Answer { address: address.to_owned(), cause };
        let stream = TcpStream::connect(address)
            .await
            .map_err(|cause| ClientError::Connect { address: address.to_owned(), cause })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|problem| garbled(problem.to_string()))?;
        // It ends with the runtime; what breaks it shows in the answer.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.authority.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|problem| garbled(problem.to_string()))?;
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        let response = sender.send_request(request).await.map_err(|problem| garbled(problem.to_string()))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let answer = answer.map_err(|problem| garbled(problem.to_string()))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&answer).trim_end().to_owned()))
    }
}

/// The port's JSON as it is wanted, by `text` for people; what is none stays as it came.
fn written(answer: String, form: Form, text: fn(&Value) -> String) -> String {
    match (serde_json::from_str::<Value>(&answer), form) {
        (Ok(value), Form::Text) => text(&value),
        (Ok(value), Form::Json) => serde_json::to_string_pretty(&value).unwrap_or(answer),
        (Err(_), _) => answer,
    }
}

/// With everything escaped that means something in a path or a query; a slash means what it says.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02x}"),
    };
    text.bytes().map(byte).collect()
}

fn bearer(token: &Secret) -> Result<HeaderValue, ClientError> {
    let unusable = || ClientError::Unusable {
        problem: "the token cannot stand in a header field".to_owned(),
        remedy: "use printable ASCII without spaces",
    };
    let token = token.expose().trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(unusable());
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).map_err(|_| unusable())?;
    value.set_sensitive(true);
    Ok(value)
}

/// A refusal in the port's own JSON, or whatever else answered there.
fn refusal(status: StatusCode, answer: &str) -> ClientError {
    let value: Value = serde_json::from_str(answer).unwrap_or_default();
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    ClientError::Refused {
        status,
        problem: text("error").unwrap_or_else(|| "the answer is not Weir's".to_owned()),
        remedy: text("remedy").unwrap_or_else(|| "give --admin the address that [admin] listen has".to_owned()),
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { problem, remedy } => write!(f, "{problem}; {remedy}"),
            Self::Connect { address, cause } => write!(
                f,
                "cannot connect to {address}: {cause}; is Weir running there, and is that its [admin] listen address?"
            ),
            Self::Answer { address, cause } => write!(
                f,
                "{address} does not answer as Weir's admin port: {cause}; is that its [admin] listen address?"
            ),
            Self::TimedOut { address, patience } => write!(
                f,
                "{address} did not answer within {} s; is that Weir's [admin] listen address, and does a firewall stand before it?",
                patience.as_secs()
            ),
            Self::Incomplete { answer } => write!(f, "taken, but not every pod has confirmed it: {answer}"),
            Self::Refused { status, problem, remedy } => write!(f, "refused ({status}): {problem}; {remedy}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { cause, .. } => Some(cause),
            Self::Unusable { .. }
            | Self::Answer { .. }
            | Self::TimedOut { .. }
            | Self::Incomplete { .. }
            | Self::Refused { .. } => None,
        }
    }
}
