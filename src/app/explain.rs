//! `weir explain` and `GET /explain`: the proxy's explanations, joined to the command line and the admin port.

use std::sync::Arc;

use prometheus::Registry;

use super::{Parts, key_secret};
use crate::admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::message::question::Question;
use crate::metrics::Metrics;
use crate::proxy::explain::report::Report;
use crate::proxy::explain::{Explainer, offline};
use crate::proxy::state::Live;
use crate::syntax::SyntaxError;

/// Explains a request by a configuration alone, as text or as JSON; nothing is started or asked.
///
/// # Errors
/// The question cannot be read.
pub fn explain(config: &Config, question: &Question, json: bool) -> Result<String, SyntaxError> {
    let metrics = Metrics::new(Registry::new());
    let live = Live::new(Arc::new(config.clone()), &key_secret(config), &metrics);
    offline(&live, question, Clock::system().now()).map(|report| written(&report, json))
}

/// Joins explanations of a running Weir to its admin port.
pub(super) struct Door(Explainer);

impl Door {
    /// A door to `parts`, with a way to Redis of its own: what an operator asks counts in no metric of requests, and its
    /// being slow opens no breaker of theirs.
    pub(super) fn new(parts: &Parts) -> Self {
        let own = parts.kv.as_ref().map(|kv| kv.apart(Metrics::new(Registry::new())));
        Self(Explainer::new(Arc::clone(&parts.shared), own))
    }
}

impl admin::Explain for Door {
    fn explain<'a>(&'a self, question: &'a Question, json: bool) -> admin::Explanation<'a> {
        Box::pin(async move { self.0.explain(question).await.map(|report| written(&report, json)) })
    }
}

fn written(report: &Report, json: bool) -> String {
    if json {
        let text = serde_json::to_string_pretty(report).expect("texts and numbers always serialise");
        return format!("{text}\n");
    }
    report.to_string()
}
