//! What Prometheus is told: on an address of its own, in OpenMetrics' text.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::{Node, routes::Reply, serve::Answers};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Method and status of an answer, by the names of their labels.
type Labels = [(&'static str, String); 2];

/// What is counted. Cloning shares the counts.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    seconds: Histogram,
    sent_bytes: Counter,
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections that were one too many.
    pub refused: Counter,
    /// Tries to anchor that failed.
    pub anchor_failures: Counter,
    ledger: LedgerGauges,
    registry: Arc<Registry>,
}

/// What the ledger is like when it is asked.
#[derive(Clone, Default)]
struct LedgerGauges {
    rounds: Gauge<u64, AtomicU64>,
    submissions: Gauge<u64, AtomicU64>,
    anchor_lag_rounds: Gauge<u64, AtomicU64>,
    anchor_lag_seconds: Gauge<u64, AtomicU64>,
}

impl LedgerGauges {
    fn register(&self, registry: &mut Registry) {
        let mut gauge = |name, help, gauge: &Gauge<u64, AtomicU64>| {
            registry.register(name, help, gauge.clone());
        };
        gauge("rounds", "Sealed rounds", &self.rounds);
        gauge("submissions", "Entries of the submissions log", &self.submissions);
        let help = "Sealed rounds that no anchored head holds";
        gauge("anchor_lag_rounds", help, &self.anchor_lag_rounds);
        let help = "For how long the oldest of them waits, as this server saw it";
        gauge("anchor_lag_seconds", help, &self.anchor_lag_seconds);
    }

    fn set(&self, node: &Node) {
        let ledger = &node.snapshot().ledger;
        self.rounds.set(ledger.sealed().len() as u64);
        self.submissions.set(ledger.submissions_log().size());
        let (rounds, since) = node.lag(ledger);
        self.anchor_lag_rounds.set(rounds);
        self.anchor_lag_seconds.set(since.as_secs());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gradledger");
        let requests = Family::<Labels, Counter>::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        // From 1 ms to some minutes.
        let seconds = Histogram::new(exponential_buckets(0.001, 4.0, 10));
        registry.register("http_request_seconds", "Time to the last byte", seconds.clone());
        let sent_bytes = Counter::default();
        registry.register("http_sent_bytes", "Bytes of bodies sent", sent_bytes.clone());
        let connections = Gauge::default();
        registry.register("http_connections", "Connections that are open", connections.clone());
        let refused = Counter::default();
        registry.register("http_connections_refused", "Connections too many", refused.clone());
        let anchor_failures = Counter::default();
        let help = "Tries to anchor that failed";
        registry.register("anchor_failures", help, anchor_failures.clone());
        let ledger = LedgerGauges::default();
        ledger.register(&mut registry);
        let registry = Arc::new(registry);
        Self {
            requests,
            seconds,
            sent_bytes,
            connections,
            refused,
            anchor_failures,
            ledger,
            registry,
        }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, method: &'static str, status: u16, bytes: u64, took: Duration) {
        let labels = [("method", method.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
        self.sent_bytes.inc_by(bytes);
        self.seconds.observe(took.as_secs_f64());
    }

    fn text(&self, node: &Node) -> Result<String, fmt::Error> {
        self.ledger.set(node);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The server of `/metrics`, and of nothing else.
pub struct MetricsApp(pub Arc<Node>);

impl Answers for MetricsApp {
    async fn answer(
        self: Arc<Self>,
        _: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Reply, Infallible> {
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, text) = match request.uri().path() {
            "/metrics" if read => {
                self.0.fresh().await;
                match self.0.metrics().text(&self.0) {
                    Ok(text) => (StatusCode::OK, text),
                    Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
                }
            }
            "/metrics" => (StatusCode::METHOD_NOT_ALLOWED, "it takes GET\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "there is /metrics alone\n".to_owned()),
        };
        let mut reply = Reply::new(Full::from(text).map_err(|never| match never {}).boxed());
        *reply.status_mut() = status;
        let content_type = if status == StatusCode::OK { OPEN_METRICS } else { "text/plain" };
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(reply)
    }
}
