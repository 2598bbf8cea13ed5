//! Reads the query of `GET /explain`.

use http::header::ACCEPT;
use http::request::Parts;

use crate::message::question::Question;
use crate::syntax::SyntaxError;
use crate::syntax::query::{decode, parameters};

/// What is asked, and whether the answer is to be JSON.
///
/// # Errors
/// A parameter that is not known, comes twice, or is missing. Values are not in the text: they may be credentials.
pub(super) fn read(head: &Parts) -> Result<(Question, bool), SyntaxError> {
    const REMEDY: &str = "ask for /explain?method=GET&url=http://host/path&header=name:%20value, each value escaped as in a form; also body, status, response, client and format=json";
    let wrong = |problem: String| SyntaxError::new(problem, REMEDY);
    let (mut question, mut method, mut url, mut format) = (Question::default(), None, None, None);
    let query = head.uri.query().unwrap_or_default();
    for (name, parameter) in parameters(query).filter(|(_, parameter)| !parameter.is_empty()) {
        let value = parameter.split_once('=').map_or("", |(_, value)| value);
        let value = decode(value).into_owned();
        let once = match &*name {
            "header" => {
                question.headers.push(value);
                continue;
            }
            "response" => {
                question.response.push(value);
                continue;
            }
            "method" => &mut method,
            "url" => &mut url,
            "body" => &mut question.body,
            "status" => &mut question.status,
            "client" => &mut question.client,
            "format" => &mut format,
            other => return Err(wrong(format!("`{other}` is no parameter (a & inside of a URL is written %26)"))),
        };
        if once.replace(value).is_some() {
            return Err(wrong(format!("`{name}` comes twice")));
        }
    }
    question.method = method.unwrap_or_else(|| "GET".to_owned());
    question.url = url.ok_or_else(|| wrong("`url` is missing".to_owned()))?;
    let json =
        match format.as_deref() {
            Some("json") => true,
            Some("text") => false,
            Some(_) => return Err(wrong("`format` is neither json nor text".to_owned())),
            None => head.headers.get_all(ACCEPT).iter().any(|accept| {
                accept.to_str().is_ok_and(|accept| accept.to_ascii_lowercase().contains("application/json"))
            }),
        };
    Ok((question, json))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn ask(query: &str, accept: Option<&str>) -> Result<(Question, bool), String> {
        let mut request = Request::get(format!("/explain?{query}"));
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        read(&request.body(()).unwrap().into_parts().0).map_err(|problem| problem.problem)
    }

    #[test]
    fn a_question_is_a_form() {
        let query = "method=HEAD&url=http%3A%2F%2Fh%2Fa%3Fb%3Dc%26d&header=a:%20b&header=c%3A+d&status=404&response=x:y&client=::1";
        let (question, json) = ask(query, None).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!((&*question.method, &*question.url), ("HEAD", "http://h/a?b=c&d"));
        assert_eq!(question.headers, ["a: b", "c: d"]);
        assert_eq!(question.response, ["x:y"]);
        assert_eq!((question.status.as_deref(), question.client.as_deref()), (Some("404"), Some("::1")));
        assert!(!json);
        let json = |query, accept| ask(query, accept).map(|(question, json)| (question.method, json)).ok();
        assert_eq!(json("url=/a", Some("text/html, application/json;q=0.9")), Some(("GET".to_owned(), true)));
        assert_eq!(json("url=/a&format=json", None), Some(("GET".to_owned(), true)));
        assert_eq!(json("url=/a&format=text", Some("application/json")), Some(("GET".to_owned(), false)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, expected) in [
            ("", "`url` is missing"),
            ("url=/a&url=/b", "`url` comes twice"),
            ("url=/a?b=c&d=e", "`d` is no parameter"),
            ("url=/a&format=xml", "`format`"),
        ] {
            let problem = ask(query, None).map(|_| ()).unwrap_err();
            assert!(problem.contains(expected), "{query}: {problem}");
        }
    }
}
