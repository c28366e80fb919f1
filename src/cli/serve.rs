//! `serve`: the ledger over HTTP, until it is told to end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    http::{
        Limits, Node, ServeError, Server,
        control::{self, Control},
        hub,
        uploads::{self, Door},
    },
    ledger::{Ledger, LedgerError, submit::Submitter, uploads::UploadDesk},
    store::{
        StoreError,
        config::{Config, MetricsAddress, ServeChoice, UploadsChoice},
    },
    types::{progress::Silent, record::MinersPolicy},
};

use super::{FoldArgs, WriterArgs, commands::open_writer, exit::CliError, output::print};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8472);

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8473);

/// Threads that may wait for the disk at once.
const BLOCKING_THREADS_MAX: usize = 64;

/// Serves the ledger over HTTP.
///
/// On loopback unless told otherwise. TLS, and other names and ports, are for a reverse proxy. Ends on
/// SIGINT and SIGTERM once open requests are answered. Each flag has a key of the same name in
/// `[serve]` of the ledger's gradledger.toml, with underscores.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The ledger.
    ledger: PathBuf,
    /// Where to listen [default: 127.0.0.1:8472].
    #[arg(long, value_name = "ADDRESS:PORT", env = "GRADLEDGER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where Prometheus finds /metrics, or `off` [default: 127.0.0.1:8473].
    #[arg(long, value_name = "ADDRESS:PORT|off", env = "GRADLEDGER_METRICS")]
    metrics: Option<MetricsAddress>,
    /// Most connections at once [default: 1024, or what the limit of open files allows].
    #[arg(long, value_name = "N", env = "GRADLEDGER_CONNECTIONS_MAX")]
    connections_max: Option<NonZeroUsize>,
    /// Most connections at once from one address [default: 256].
    #[arg(long, value_name = "N", env = "GRADLEDGER_CONNECTIONS_PER_ADDRESS_MAX")]
    connections_per_address_max: Option<NonZeroUsize>,
    /// Seconds for a request's head [default: 30].
    #[arg(long, value_name = "SECONDS", env = "GRADLEDGER_HEAD_TIMEOUT_S")]
    head_timeout_s: Option<NonZeroU64>,
    /// Seconds for 16 KiB of a body [default: 60].
    #[arg(long, value_name = "SECONDS", env = "GRADLEDGER_STALL_TIMEOUT_S")]
    stall_timeout_s: Option<NonZeroU64>,
    /// Seconds for open requests when the server ends [default: 30].
    #[arg(long, value_name = "SECONDS", env = "GRADLEDGER_DRAIN_TIMEOUT_S")]
    drain_timeout_s: Option<u64>,
    /// Takes uploads of miners: the server is the ledger's writer then. `[serve.uploads]` in the
    /// ledger's gradledger.toml has the limits, and `enabled = true` in place of this flag.
    #[arg(long)]
    uploads: bool,
    /// With uploads, seals the open round every so many seconds [default: when `gradledger seal` says].
    #[arg(long, value_name = "SECONDS", env = "GRADLEDGER_SEAL_EVERY_S")]
    seal_every_s: Option<NonZeroU64>,
    #[command(flatten)]
    writer: WriterArgs,
    #[command(flatten)]
    fold: FoldArgs,
    /// How the log on stderr is written.
    #[arg(long, value_enum, default_value = "text", env = "GRADLEDGER_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged: a level, or directives as of tracing's EnvFilter.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "GRADLEDGER_LOG")]
    log: String,
    /// One JSON document on stdout once it listens.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Serialize)]
struct ServeDocument {
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
}

pub fn serve(args: &ServeArgs) -> Result<(), CliError> {
    log_to_stderr(args)?;
    let ledger = Ledger::open(&args.ledger)?;
    let config = Config::load(ledger.place()).map_err(StoreError::from);
    let config = config.map_err(LedgerError::from)?;
    let chosen = config.serve;
    let desk = if args.uploads || chosen.uploads.enabled {
        Some(open_desk(args, &chosen.uploads)?)
    } else {
        None
    };
    let node = Node::new(ledger)?;
    let hub = config.hub.enabled.unwrap_or(true).then(|| hub::Worker::start(&node)).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(ServeError::Start)?;
    runtime.block_on(async {
        let listen = args.listen.or(chosen.listen).unwrap_or(LISTEN);
        let metrics = match args.metrics.or(chosen.metrics) {
            Some(MetricsAddress::Off) => None,
            Some(MetricsAddress::At(address)) => Some(address),
            None => Some(METRICS),
        };
        let server = Server::bind(node, listen, metrics, limits(args, &chosen)).await?;
        let taking = match &desk {
            Some((_, desk)) => Some(take_uploads(args, server.node(), desk.clone())?),
            None => None,
        };
        let document =
            ServeDocument { listen: server.address(), metrics: server.metrics_address() };
        print(args.json, &document, || format!("listening on http://{}\n", document.listen))?;
        let stop = stop_signal().map_err(ServeError::Start)?;
        server.run(stop).await;
        drop(taking);
        Ok::<_, CliError>(())
    })?;
    drop(hub);
    // What blocks ends what it is at; then the logs are closed.
    drop(runtime);
    if let Some((submitter, _)) = desk {
        submitter.finish();
    }
    Ok(())
}

/// The writer behind its thread, and the desk before it.
fn open_desk(
    args: &ServeArgs,
    choice: &UploadsChoice,
) -> Result<(Submitter, Arc<UploadDesk>), CliError> {
    let mut writer = open_writer(&args.ledger, &args.writer)?;
    if !matches!(writer.ledger().genesis().miners, MinersPolicy::Hotkeys(_)) {
        return Err(CliError::NoUploads);
    }
    // A late miner asks for its receipt; if there is no index, the log is read for it.
    if let Err(error) = writer.index(&Silent) {
        tracing::warn!(%error, "no index");
    }
    let ledger = writer.ledger().clone();
    let submitter = Submitter::start(writer);
    let desk = UploadDesk::open(&ledger, submitter.handle(), choice.clone())?;
    Ok((submitter, Arc::new(desk)))
}

/// What runs beside the server while uploads are taken; ended when it is dropped.
fn take_uploads(
    args: &ServeArgs,
    node: &Arc<Node>,
    desk: Arc<UploadDesk>,
) -> Result<JoinSet<()>, CliError> {
    let path = control::path(&args.ledger);
    let control = Control::bind(&args.ledger);
    let control = control.map_err(|source| CliError::Io { path, source })?;
    let door = Arc::new(Door::new(desk));
    node.open_uploads(door.clone());
    let mut beside = JoinSet::new();
    beside.spawn(uploads::sweep(node.clone(), door.clone()));
    let (listening, taking) = (node.clone(), door.clone());
    beside.spawn(async move { control.run(listening, taking).await });
    if let Some(every) = args.seal_every_s {
        let every = Duration::from_secs(every.get());
        beside.spawn(seal_every(node.clone(), door, every, args.fold.threads));
    }
    Ok(beside)
}

async fn seal_every(node: Arc<Node>, door: Arc<Door>, every: Duration, threads: usize) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await; // The first is now.
    loop {
        ticks.tick().await;
        if let Err(error) = control::seal_round(&node, &door, None, threads).await {
            tracing::error!(%error, "the open round was not sealed; it will be tried again");
        }
    }
}

/// Flag or variable, then the ledger's own choice, then the default.
fn limits(args: &ServeArgs, chosen: &ServeChoice) -> Limits {
    let default = Limits::default();
    let seconds = |flag: Option<NonZeroU64>, chosen: Option<NonZeroU64>, default: Duration| {
        flag.or(chosen).map_or(default, |s| Duration::from_secs(s.get()))
    };
    let count = |flag: Option<NonZeroUsize>, chosen: Option<NonZeroUsize>, default: usize| {
        flag.or(chosen).map_or(default, NonZeroUsize::get)
    };
    let drain = args.drain_timeout_s.or(chosen.drain_timeout_s);
    Limits {
        connections_max: count(
            args.connections_max,
            chosen.connections_max,
            default.connections_max,
        ),
        connections_per_address_max: count(
            args.connections_per_address_max,
            chosen.connections_per_address_max,
            default.connections_per_address_max,
        ),
        head_timeout: seconds(args.head_timeout_s, chosen.head_timeout_s, default.head_timeout),
        stall_timeout: seconds(args.stall_timeout_s, chosen.stall_timeout_s, default.stall_timeout),
        drain_timeout: drain.map_or(default.drain_timeout, Duration::from_secs),
    }
}

fn log_to_stderr(args: &ServeArgs) -> Result<(), CliError> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).map_err(|error| {
        CliError::LogFilter { filter: args.log.clone(), reason: error.to_string() }
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().with_span_list(false).init(),
    }
    Ok(())
}

/// Ready once the process is told to end: by Ctrl-C, or as a service is.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(std::future::poll_fn(move |cx| {
        if interrupt.poll_recv(cx).is_ready() || terminate.poll_recv(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    }))
}
