//! Our own accept loop: connections under a cap, request heads under a time and a size limit, peers
//! under a pace, and an orderly end.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Node,
    metrics::{Metrics, MetricsApp},
    pace::{Pace, Paced},
    routes::{App, Reply},
};
use crate::store::{config::CONNECTIONS_MAX, machine};

/// Most bytes of a request's head, and of what is read ahead.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;

/// How long the system is given when it has no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections too many that are told so at once; others are closed.
const REFUSALS_MAX: usize = 64;

/// How long one too many has to take its answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

const REFUSAL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: \
application/problem+json\r\ncontent-length: 135\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Too Many Requests\",\"status\":429,\"code\":\"busy\",\
\"detail\":\"there are too many connections\",\"request_id\":\"\"}";

/// What clients are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one address.
    pub connections_per_address_max: usize,
    /// Time without a whole request head, also between two requests.
    pub head_timeout: Duration,
    /// Time for 16 KiB of a body, in either direction.
    pub stall_timeout: Duration,
    /// Time for open requests when the server ends.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: 256,
            head_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// What whoever asks for metrics is held to.
const METRICS_LIMITS: Limits = Limits {
    connections_max: 16,
    connections_per_address_max: 16,
    head_timeout: Duration::from_secs(30),
    stall_timeout: Duration::from_secs(60),
    drain_timeout: Duration::ZERO,
};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ServeError {
    #[error(
        "listening on {address}: {source}. Is another server there? {flag} takes another address"
    )]
    Listen { address: SocketAddr, flag: &'static str, source: io::Error },
    #[error("starting the server: {0}")]
    Start(io::Error),
}

/// What answers the requests of a listener.
pub trait Answers: Send + Sync + 'static {
    /// Answers a request from `peer`.
    fn answer(
        self: Arc<Self>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Reply, Infallible>> + Send;
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    metrics: Option<TcpListener>,
    node: Arc<Node>,
    limits: Limits,
}

impl Server {
    /// Listens on `address`, and tells of itself on `metrics`; port 0 takes a free one. Within a runtime.
    ///
    /// # Errors
    ///
    /// [`ServeError::Listen`].
    pub async fn bind(
        node: Arc<Node>,
        address: SocketAddr,
        metrics: Option<SocketAddr>,
        limits: Limits,
    ) -> Result<Self, ServeError> {
        let listener = listen(address, "--listen").await?;
        let metrics = match metrics {
            Some(address) => Some(listen(address, "--metrics").await?),
            None => None,
        };
        let address = listener.local_addr().map_err(|source| ServeError::Listen {
            address,
            flag: "--listen",
            source,
        })?;
        Ok(Self { listener, address, metrics, node, limits: within_files(limits) })
    }

    /// What it serves.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it tells of itself.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref()?.local_addr().ok()
    }

    /// Serves until `stop` is ready, then lets open requests end, up to the time for that.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, metrics, node, limits, .. } = self;
        let app = Arc::new(App::new(&node, limits.stall_timeout));
        let door = Arc::new(Door::new(limits, node.metrics().clone()));
        let accepting = tokio::spawn(door.clone().accept(listener, app));
        let telling = metrics.map(|listener| {
            let door = Arc::new(Door::new(METRICS_LIMITS, Metrics::default()));
            tokio::spawn(door.accept(listener, Arc::new(MetricsApp(node.clone()))))
        });
        stop.await;
        node.drain();
        accepting.abort();
        // It was told to end, so how it ended says nothing.
        let _ = accepting.await;
        door.close().await;
        if let Some(telling) = telling {
            telling.abort();
        }
    }
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ServeError> {
    let refused = |source| ServeError::Listen { address, flag, source };
    TcpListener::bind(address).await.map_err(refused)
}

/// Fewer connections if the system would not give them files.
fn within_files(limits: Limits) -> Limits {
    let Some(files) = machine::open_files_max() else { return limits };
    let most = usize::try_from(machine::connections_within(files)).unwrap_or(usize::MAX);
    let asked = limits.connections_max;
    if asked > most {
        tracing::warn!(
            "at most {most} connections at once, not {asked}: {files} files may be open here, and `ulimit \
             -n {}` in the shell or unit that starts the server would allow all",
            machine::open_files_for(asked as u64)
        );
    }
    Limits { connections_max: asked.min(most), ..limits }
}

/// Who comes in, and who is in.
struct Door {
    limits: Limits,
    room: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
    graceful: Mutex<Option<GracefulShutdown>>,
    inside: Mutex<JoinSet<()>>,
    metrics: Metrics,
}

/// A place inside, free again when it is dropped.
struct Place {
    _room: OwnedSemaphorePermit,
    address: IpAddr,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
    metrics: Metrics,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.connections.dec();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

impl Door {
    fn new(limits: Limits, metrics: Metrics) -> Self {
        Self {
            limits,
            room: Arc::new(Semaphore::new(limits.connections_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            addresses: Arc::default(),
            graceful: Mutex::new(Some(GracefulShutdown::new())),
            inside: Mutex::default(),
            metrics,
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, app: Arc<impl Answers>) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer, &app),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A place for a connection from `address`, if there is one.
    fn place(&self, address: IpAddr) -> Option<Place> {
        let room = self.room.clone().try_acquire_owned().ok()?;
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_insert(0);
        if *count >= self.limits.connections_per_address_max {
            return None;
        }
        *count += 1;
        drop(addresses);
        self.metrics.connections.inc();
        let (addresses, metrics) = (self.addresses.clone(), self.metrics.clone());
        Some(Place { _room: room, address, addresses, metrics })
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, app: &Arc<impl Answers>) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        while inside.try_join_next().is_some() {}
        match self.place(home(peer.ip())) {
            Some(place) => {
                let serving = self.connection(stream, peer, app.clone());
                inside.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            None => {
                tracing::warn!(%peer, "one connection too many");
                self.metrics.refused.inc();
                if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
                    inside.spawn(async move {
                        let _ = timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    fn connection<A: Answers>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        app: Arc<A>,
    ) -> impl Future<Output = ()> + Send + use<A> {
        let graceful = self.graceful.lock().unwrap_or_else(PoisonError::into_inner);
        let watcher = graceful.as_ref().map(GracefulShutdown::watcher);
        let Limits { head_timeout, stall_timeout, .. } = self.limits;
        async move {
            // Answers are written whole, so there is nothing to gather.
            let _ = stream.set_nodelay(true);
            let io = TokioIo::new(Paced::new(stream, Pace::new(stall_timeout)));
            let service =
                service_fn(move |request: Request<Incoming>| app.clone().answer(peer, request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(head_timeout)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(io, service);
            let ended = match watcher {
                Some(watcher) => watcher.watch(connection).await,
                None => connection.await,
            };
            match ended {
                // No request came of it, so no other line tells of it.
                Err(error) if error.is_parse() || error.is_timeout() => {
                    tracing::info!(%peer, %error, "a connection without a request that reads");
                }
                Err(error) => tracing::debug!(%peer, %error, "a connection ended early"),
                Ok(()) => {}
            }
        }
    }

    /// Lets those inside end what they are at, then ends them.
    async fn close(&self) {
        let graceful = self.graceful.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(graceful) = graceful {
            let open = graceful.count();
            tracing::info!(open, "draining");
            if timeout(self.limits.drain_timeout, graceful.shutdown()).await.is_err() {
                tracing::warn!("connections were still open and are cut off");
            }
        }
        let mut inside =
            std::mem::take(&mut *self.inside.lock().unwrap_or_else(PoisonError::into_inner));
        inside.shutdown().await;
    }
}

/// What counts as one address: of IPv6 the first half, since a host has all of the other.
fn home(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Tells one too many to come again, and reads what it sent: else it might not see the answer.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_address() {
        let of = |text: &str| home(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(
            (of("::ffff:192.0.2.7"), of("192.0.2.7")),
            ("192.0.2.7".into(), "192.0.2.7".into())
        );
    }

    #[test]
    fn the_refusal_has_the_length_it_says() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).unwrap().is_object());
    }
}
