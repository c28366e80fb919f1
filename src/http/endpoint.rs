//! The table that makes both the routes and their documentation: one [`Endpoint`] a method and path.

use std::{fmt, net::SocketAddr, pin::Pin, sync::Arc};

use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter};

use super::{
    Node,
    body::BodySlot,
    path::{Query, number},
    problem::Problem,
};
use crate::types::digest::Digest;

/// What is sent back.
pub type Response = warp::reply::Response;

/// What a handler comes to.
pub type Answer = Result<Response, Problem>;

type Handler = dyn Fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// What every handler is told of its request.
#[derive(Debug)]
pub struct Context {
    /// What the request is called in answers and in the log.
    pub request_id: String,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Its path as it was sent.
    pub path: String,
    /// The parts of its path, decoded.
    pub parts: Vec<String>,
    /// Its query, decoded.
    pub query: Query,
    /// Its body, for whoever reads it first.
    pub body: BodySlot,
}

/// A request on its way to its handler.
pub struct Call {
    /// The ledger.
    pub node: Arc<Node>,
    /// GET for HEAD, too: the answer's body is taken off later.
    pub method: Method,
    /// Its headers.
    pub headers: HeaderMap,
    /// What else there is to it.
    pub context: Arc<Context>,
    params: Vec<(&'static str, Vec<String>)>,
}

impl Call {
    /// The part of the path that stands for `{name}`.
    ///
    /// # Panics
    ///
    /// If the endpoint's path has no such part.
    pub fn param(&self, name: &str) -> &str {
        &self.rest(name)[0]
    }

    /// Whether the endpoint's path has a part `{name}` or `{name*}`.
    pub fn has(&self, name: &str) -> bool {
        self.params.iter().any(|(n, _)| *n == name)
    }

    /// The parts of the path that stand for `{name*}`, at least one.
    ///
    /// # Panics
    ///
    /// If the endpoint's path has no such part.
    pub fn rest(&self, name: &str) -> &[String] {
        let found = self.params.iter().find(|(n, _)| *n == name);
        &found.expect("handlers ask for what stands in their endpoint's path").1
    }

    /// `{name}` as a number.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400).
    pub fn number(&self, name: &str) -> Result<u64, Problem> {
        let problem = || Problem::bad_path(format!("{name} is not a number"));
        number(self.param(name)).ok_or_else(problem)
    }

    /// `{name}` as 64 lower-case hex digits.
    ///
    /// # Errors
    ///
    /// [`Problem`] (400).
    pub fn digest(&self, name: &str) -> Result<Digest, Problem> {
        let problem = |_| Problem::bad_path(format!("{name} is not 64 lower-case hex digits"));
        self.param(name).parse().map_err(problem)
    }

    /// The query.
    pub fn query(&self) -> &Query {
        &self.context.query
    }
}

/// A method and a path: what answers there, and what a client has to know of it.
pub struct Endpoint {
    /// GET stands for HEAD, too.
    pub method: Method,
    /// Such as `/v1/rounds/{round}`; a last part `{path*}` takes the rest, at least one part.
    pub template: &'static str,
    /// Its documentation, as OpenAPI has it.
    pub operation: Operation,
    run: Arc<Handler>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.template)
    }
}

/// What a client has to know of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    /// What it is for, in a sentence.
    pub summary: &'static str,
    /// Schemas of the path's parts and of the query's values: name, whether it is in the path, schema.
    pub parameters: Vec<(&'static str, bool, Value)>,
    /// What it answers: status, what that means, content type (none without a body), schema.
    pub answers: Vec<(StatusCode, &'static str, Option<&'static str>, Value)>,
    /// Whether it answers ranges.
    pub ranges: bool,
    /// What it takes: content type and schema.
    pub body: Option<(&'static str, Value)>,
}

impl Endpoint {
    /// Something to read: answers GET and HEAD.
    pub fn get<F, Fut>(template: &'static str, summary: &'static str, run: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        Self::new(Method::GET, template, summary, run)
    }

    /// An endpoint of another method.
    pub fn new<F, Fut>(
        method: Method,
        template: &'static str,
        summary: &'static str,
        run: F,
    ) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let run = Arc::new(move |call| -> Pin<Box<dyn Future<Output = Answer> + Send>> {
            Box::pin(run(call))
        });
        let operation = Operation { summary, ..Operation::default() };
        Self { method, template, operation, run }
    }

    /// A part of the path and its JSON schema.
    pub fn path(mut self, name: &'static str, schema: Value) -> Self {
        self.operation.parameters.push((name, true, schema));
        self
    }

    /// A value in the query, never required, and its JSON schema.
    pub fn query(mut self, name: &'static str, schema: Value) -> Self {
        self.operation.parameters.push((name, false, schema));
        self
    }

    /// It answers with a JSON document of this schema.
    pub fn json(self, what: &'static str, schema: Value) -> Self {
        self.answer(StatusCode::OK, what, Some("application/json"), schema)
    }

    /// It answers with bytes, and with any range of them.
    pub fn blob(mut self, what: &'static str, content_type: &'static str) -> Self {
        self.operation.ranges = true;
        let bytes = json!({"type": "string", "format": "binary"});
        self.answer(StatusCode::OK, what, Some(content_type), bytes)
    }

    /// One more answer.
    pub fn answer(
        mut self,
        status: StatusCode,
        what: &'static str,
        content_type: Option<&'static str>,
        schema: Value,
    ) -> Self {
        self.operation.answers.push((status, what, content_type, schema));
        self
    }

    /// It answers with a problem of this status, beside those that any endpoint may answer with.
    pub fn problem(self, status: StatusCode, what: &'static str) -> Self {
        self.answer(status, what, Some(super::problem::PROBLEM_JSON), problem_schema())
    }

    /// It takes a body.
    pub fn takes(mut self, content_type: &'static str, schema: Value) -> Self {
        self.operation.body = Some((content_type, schema));
        self
    }

    /// The path's parts by name, if `parts` are such a path.
    pub fn matches(&self, parts: &[String]) -> Option<Vec<(&'static str, Vec<String>)>> {
        let mut params = Vec::new();
        let mut left = parts.iter();
        for piece in self.template.split('/').skip(1) {
            let Some(name) = piece.strip_prefix('{').and_then(|p| p.strip_suffix('}')) else {
                if left.next()? != piece {
                    return None;
                }
                continue;
            };
            if let Some(name) = name.strip_suffix('*') {
                let rest: Vec<String> = left.by_ref().cloned().collect();
                params.push((name, rest));
            } else {
                params.push((name, vec![left.next()?.clone()]));
            }
        }
        let whole = left.next().is_none();
        // A part that is there has a name; only a rest may end in a slash.
        let named = params.iter().all(|(_, parts)| {
            parts.first().is_some_and(|first| {
                !first.is_empty() || parts.len() == 1 && self.template.ends_with("*}")
            })
        });
        (whole && named).then_some(params)
    }

    /// Whether it answers this method.
    pub fn takes_method(&self, method: &Method) -> bool {
        self.method == *method || self.method == Method::GET && *method == Method::HEAD
    }

    /// The endpoint as a route of warp's.
    pub fn filter(self: Arc<Self>, node: &Arc<Node>) -> BoxedFilter<(Response,)> {
        let node = node.clone();
        let run = self.run.clone();
        warp::method()
            .and(warp::ext::get::<Arc<Context>>())
            .and_then(move |method, context: Arc<Context>| {
                let found =
                    self.takes_method(&method).then(|| self.matches(&context.parts)).flatten();
                let method = self.method.clone();
                let call = found.map(|params| (method, context, params));
                async move { call.ok_or_else(warp::reject::not_found) }
            })
            .and(warp::header::headers_cloned())
            .then(move |(method, context, params), headers| {
                let node = node.clone();
                let answer = run(Call { node, method, headers, context, params });
                async move { answer.await.unwrap_or_else(Response::from) }
            })
            .boxed()
    }
}

/// The JSON schema of a problem.
pub fn problem_schema() -> Value {
    json!({"$ref": "#/components/schemas/Problem"})
}

/// A JSON document as an answer.
///
/// # Errors
///
/// [`Problem`] (500) if it cannot be written as JSON.
pub fn json_answer(body: &impl serde::Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).map_err(Problem::internal)?;
    let mut response = Response::new(bytes.into());
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(template: &'static str) -> Endpoint {
        Endpoint::get(template, "", |_| async { Ok(Response::default()) })
    }

    fn params(template: &'static str, path: &str) -> Option<Vec<(&'static str, Vec<String>)>> {
        endpoint(template).matches(&super::super::path::split(path).unwrap())
    }

    #[test]
    fn a_template_matches_whole_paths() {
        let one = |value: &str| vec![value.to_owned()];
        assert_eq!(params("/a/{b}/c", "/a/x/c"), Some(vec![("b", one("x"))]));
        assert_eq!(params("/a/{b}/c", "/a/x%2Fy/c"), Some(vec![("b", one("x/y"))]));
        for path in ["/a/x", "/a/x/c/d", "/a/x/c/", "/a//c", "/b/x/c", "/"] {
            assert_eq!(params("/a/{b}/c", path), None, "{path}");
        }
        let rest =
            |parts: &[&str]| Some(vec![("p", parts.iter().map(|p| p.to_string()).collect())]);
        assert_eq!(params("/f/{p*}", "/f/a/b/"), rest(&["a", "b", ""]));
        assert_eq!(params("/f/{p*}", "/f/"), rest(&[""]));
        assert_eq!((params("/f/{p*}", "/f"), params("/f/{p*}", "/f//a")), (None, None));
    }

    #[test]
    fn get_answers_head() {
        let get = endpoint("/");
        assert!(get.takes_method(&Method::GET) && get.takes_method(&Method::HEAD));
        assert!(!get.takes_method(&Method::POST));
    }
}
