//! All rooms' endpoints as one service, and what is done for every request: an id, CORS for reads, the
//! bodies of problems, HEAD without a body, and a line in the log once the answer is sent.

use std::{
    collections::hash_map::RandomState,
    convert::Infallible,
    hash::{BuildHasher, Hasher},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, CONTENT_LENGTH, HeaderName,
        HeaderValue, X_CONTENT_TYPE_OPTIONS,
    },
    service::Service,
};
use hyper_util::service::TowerToHyperService;
use tracing::Instrument as _;
use warp::{Filter, filters::BoxedFilter};

use super::{
    Node,
    body::{BodySlot, RequestBody},
    endpoint::{Context, Endpoint, Response},
    files, health, hub, log, manifests,
    metrics::Metrics,
    openapi,
    pace::Pace,
    path::{Query, split},
    problem::Problem,
    proofs, rounds,
    serve::Answers,
    submissions, uploads,
};

/// What is sent back, whatever made it.
pub type Reply = hyper::Response<BoxBody<Bytes, warp::Error>>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a page of another origin may read of an answer.
const EXPOSED: &str = "accept-ranges, content-length, content-range, etag, link, location, \
                       retry-after, x-request-id, x-repo-commit, x-error-code";

/// All endpoints, the first that matches being the one that answers. A room is a line here.
pub fn table() -> Vec<Endpoint> {
    let rooms = [
        health::endpoints(),
        rounds::endpoints(),
        manifests::endpoints(),
        submissions::endpoints(),
        proofs::endpoints(),
        log::endpoints(),
        files::endpoints(),
        uploads::endpoints(),
        hub::endpoints(),
    ];
    let mut table: Vec<Endpoint> = rooms.into_iter().flatten().collect();
    table.push(openapi::endpoint(&table));
    table
}

type Routing = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// What warp makes of all filters. Bodies go past it.
type Routes = dyn Fn(Request<Empty<Bytes>>) -> Routing + Send + Sync;

/// The routes of a node.
pub struct App {
    table: Vec<Arc<Endpoint>>,
    routes: Box<Routes>,
    ids: Ids,
    metrics: Metrics,
    body_timeout: Duration,
}

impl App {
    /// All endpoints over `node`; bodies have to move within `body_timeout`.
    pub fn new(node: &Arc<Node>, body_timeout: Duration) -> Self {
        let table: Vec<_> = table().into_iter().map(Arc::new).collect();
        let filters = table.iter().map(|endpoint| endpoint.clone().filter(node)).collect();
        let nothing = Problem::not_found("there is nothing at this path");
        let fallback = warp::any().map(move || Response::from(nothing.clone())).boxed();
        let all = joined(filters).or(fallback).unify().boxed();
        let service = TowerToHyperService::new(warp::service(all));
        let routes = Box::new(move |request| -> Routing { Box::pin(service.call(request)) });
        let (ids, metrics) = (Ids::default(), node.metrics().clone());
        Self { table, routes, ids, metrics, body_timeout }
    }

    async fn route(&self, peer: SocketAddr, id: &str, request: Request<Incoming>) -> Response {
        let (mut parts, incoming) = request.into_parts();
        let read = || -> Result<_, Problem> {
            Ok((split(parts.uri.path())?, Query::parse(parts.uri.query())?))
        };
        let (path, query) = match read() {
            Ok(read) => read,
            Err(problem) => return problem.into(),
        };
        if let Some(response) = self.without_handler(&parts.method, &path) {
            return response;
        }
        let body = BodySlot::new(RequestBody::new(incoming, Pace::new(self.body_timeout)));
        let request_id = id.to_owned();
        let raw = parts.uri.path().to_owned();
        let context = Context { request_id, peer, path: raw, parts: path, query, body };
        parts.extensions.insert(Arc::new(context));
        let request = Request::from_parts(parts, Empty::<Bytes>::new());
        (self.routes)(request).await.unwrap_or_else(|never| match never {})
    }

    /// OPTIONS, and methods that a path does not take.
    fn without_handler(&self, method: &Method, parts: &[String]) -> Option<Response> {
        let mut here = self.table.iter().filter(|e| e.matches(parts).is_some()).peekable();
        here.peek()?;
        let mut methods = vec!["OPTIONS"];
        for endpoint in here {
            if endpoint.takes_method(method) {
                return None;
            }
            methods.push(endpoint.method.as_str());
            methods.extend((endpoint.method == Method::GET).then_some("HEAD"));
        }
        methods.sort_unstable();
        methods.dedup();
        let allowed = methods.join(", ");
        Some(if method == Method::OPTIONS {
            preflight(&allowed)
        } else {
            Problem::method_not_allowed(&allowed).into()
        })
    }
}

impl Answers for App {
    async fn answer(
        self: Arc<Self>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Reply, Infallible> {
        let begun = Instant::now();
        let id = self.ids.next();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let span = tracing::info_span!("request", id, %peer, %method, path);
        let mut response = self.route(peer, &id, request).instrument(span.clone()).await;
        finish(&mut response, &id, &method);
        let status = response.status().as_u16();
        let (parts, body) = response.into_parts();
        let body = if method == Method::HEAD { empty() } else { body.boxed() };
        let stated = || parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let bytes = body.size_hint().exact().or_else(stated);
        let (metrics, method) = (self.metrics.clone(), label(&method));
        let log = SendLog { span, metrics, method, status, sent: 0, bytes, begun };
        Ok(Reply::from_parts(parts, Logged { body, log }.boxed()))
    }
}

/// A method as it is counted: clients make up no labels.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 6] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// A browser asks what it may send.
fn preflight(allowed: &str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(allowed).ok().map(|allowed| (ALLOW, allowed)));
    for (name, value) in [
        // Nothing is written from a page of another origin: that takes a signature.
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "if-match, if-none-match, if-range, range"),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// All filters as one: the first that takes a request answers it.
fn joined(mut filters: Vec<BoxedFilter<(Response,)>>) -> BoxedFilter<(Response,)> {
    // Halved each time, so that a request passes few layers.
    match filters.len() {
        0 => unreachable!("there are endpoints"),
        1 => filters.remove(0),
        n => {
            let after = filters.split_off(n / 2);
            joined(filters).or(joined(after)).unify().boxed()
        }
    }
}

/// What every answer has.
fn finish(response: &mut Response, id: &str, method: &Method) {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let (bytes, headers) = problem.render(id);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        response.headers_mut().extend(headers);
        *response.body_mut() = bytes.into();
    }
    let exact = response.body().size_hint().exact();
    let without_body = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    let bodiless = without_body.contains(&response.status());
    let headers: &mut HeaderMap = response.headers_mut();
    if let Some(bytes) = exact.filter(|_| method == Method::HEAD && !bodiless) {
        headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from(bytes));
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(HeaderValue::from_str(id).ok().map(|id| (REQUEST_ID, id)));
}

fn empty() -> BoxBody<Bytes, warp::Error> {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// Names for requests: a random number of this process and how many came before.
#[derive(Default)]
struct Ids {
    process: RandomState,
    next: AtomicU64,
}

impl Ids {
    fn next(&self) -> String {
        let mut hasher = self.process.build_hasher();
        hasher.write_u64(self.next.fetch_add(1, Ordering::Relaxed));
        format!("{:016x}", hasher.finish())
    }
}

/// A body that says in the log what became of it.
struct Logged {
    body: BoxBody<Bytes, warp::Error>,
    log: SendLog,
}

struct SendLog {
    span: tracing::Span,
    metrics: Metrics,
    method: &'static str,
    status: u16,
    /// Bytes that were handed over, and that there are, as far as that is known.
    sent: u64,
    bytes: Option<u64>,
    begun: Instant,
}

impl Drop for SendLog {
    fn drop(&mut self) {
        let Self { status, sent, bytes, .. } = *self;
        let took = self.begun.elapsed();
        self.metrics.answered(self.method, status, sent, took);
        let ms = took.as_millis() as u64;
        let _in = self.span.enter();
        if bytes.is_none_or(|bytes| bytes == sent) {
            tracing::info!(status, sent, ms, "answered");
        } else {
            tracing::info!(status, sent, ms, "cut off");
        }
    }
}

impl Body for Logged {
    type Data = Bytes;
    type Error = warp::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, warp::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.log.sent += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
