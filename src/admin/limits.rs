//! Reads what is asked of `/limits`, and answers it.

use http::StatusCode;
use http::request::Parts;

use super::api::{self, Reply};
use crate::limit::view::{Asked, Problem, Who};
use crate::syntax::SyntaxError;
use crate::syntax::query::{decode, parameters};

/// Where limits are.
pub(super) const PATH: &str = "/limits";

/// The part of a path below [`PATH`] that names a limit.
pub(super) fn named(path: &str) -> Option<&str> {
    path.strip_prefix(PATH)?.strip_prefix('/').filter(|name| !name.is_empty())
}

/// Whose state of the limit called `name` is asked for.
///
/// # Errors
/// No identity is given, or two are. Values are not in the text: they may be credentials.
pub(super) fn read(head: &Parts, name: &str) -> Result<Asked, SyntaxError> {
    let wrong = |problem: &str| {
        let remedy = "ask for /limits/name?ip=192.0.2.7, with each part of the limit's `key` and its value, escaped as in a form, or for /limits/name?id=.. with an `id` from /limits";
        SyntaxError::new(problem, remedy)
    };
    let query = head.uri.query().unwrap_or_default();
    let all = parameters(query).filter(|(_, parameter)| !parameter.is_empty());
    let value = |parameter: &str| decode(parameter.split_once('=').map_or("", |(_, value)| value)).into_owned();
    let mut parts: Vec<_> = all.map(|(name, parameter)| (name.into_owned(), value(parameter))).collect();
    let id = parts.iter().position(|(name, _)| name == "id").map(|at| parts.swap_remove(at).1);
    let who = match (id, parts.is_empty()) {
        (Some(id), true) => Who::Id(id),
        (Some(_), false) => return Err(wrong("`id` and other parts are given")),
        (None, _) => Who::Parts(parts),
    };
    Ok(Asked { limit: decode(&name.replace('+', "%2b")).into_owned(), who })
}

/// The answer to what could not be done.
pub(super) fn refused(problem: &Problem) -> Reply {
    let (status, why) = match problem {
        Problem::Unknown(why) => (StatusCode::NOT_FOUND, why),
        Problem::Wrong(why) => (StatusCode::BAD_REQUEST, why),
        Problem::Redis(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    api::error(status, &why.problem, &why.remedy)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn ask(path: &str) -> Result<(String, String), String> {
        let head = Request::get(path).body(()).unwrap().into_parts().0;
        let asked = read(&head, named(head.uri.path()).ok_or("no name")?).map_err(|problem| problem.problem)?;
        Ok((asked.limit, format!("{:?}", asked.who)))
    }

    #[test]
    fn a_limit_is_named_by_a_path_and_an_identity_by_a_form() {
        let parts = r#"Parts([("ip", "2001:db8::1"), ("header:x-api-key", "a&b c")])"#;
        assert_eq!(
            ask("/limits/per-client?ip=2001:db8::1&&header:x-api-key=a%26b+c"),
            Ok(("per-client".to_owned(), parts.to_owned()))
        );
        assert_eq!(ask("/limits/route/a%20b+c"), Ok(("route/a b+c".to_owned(), "Parts([])".to_owned())));
        assert_eq!(ask("/limits/a?id=00ff"), Ok(("a".to_owned(), r#"Id("00ff")"#.to_owned())));
        assert_eq!(ask("/limits/a?id=00ff&ip=::1"), Err("`id` and other parts are given".to_owned()));
        assert_eq!(ask("/limits/"), Err("no name".to_owned()));
        assert_eq!(ask("/limitsa"), Err("no name".to_owned()));
    }
}
