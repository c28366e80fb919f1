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
        anchoring::{AnchorEvery, Anchorer},
        control::{self, Control},
        hub,
        uploads::{self, Door},
    },
    ledger::{
        Ledger, LedgerError,
        anchor::{AnchorOptions, OpenChain},
        submit::Submitter,
        turns::Visits,
        uploads::UploadDesk,
    },
    store::{
        StoreError,
        config::{AnchorChoice, Config, MetricsAddress, ServeChoice, UploadsChoice},
    },
    types::{progress::Silent, record::MinersPolicy},
};

use super::{
    FoldArgs, WriterArgs,
    anchor::{Anchorage, ChainArgs},
    commands::{last_heads, open_writer},
    exit::CliError,
    output::print,
};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8472);

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8473);

/// How long between two looks for justifications, which walk through hundreds of blocks.
const JUSTIFY_AFTER: Duration = Duration::from_secs(3600);

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
    anchor: AnchorArgs,
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

/// Anchoring while it serves; `[serve.anchor]` in gradledger.toml has the same.
#[derive(Debug, Args)]
struct AnchorArgs {
    /// Anchors the newest head on a chain while it serves (with --endpoint, --netuid and --hotkey).
    #[arg(long)]
    anchor: bool,
    /// Anchors once so many sealed rounds stand in no anchored head [default: 1].
    #[arg(long, value_name = "ROUNDS", requires = "anchor")]
    anchor_every: Option<NonZeroU64>,
    /// A text file to anchor in, a digest a line, instead of a chain.
    #[arg(long, value_name = "FILE", requires = "anchor", conflicts_with = "endpoint")]
    anchor_file: Option<PathBuf>,
    #[command(flatten)]
    chain: ChainArgs,
    /// Takes the word of a node that cannot prove its state, until another one is asked.
    #[arg(long, requires = "anchor")]
    unproven: bool,
    /// Keeps what stands in the hotkey's slot and is not ours as the first fields, where the runtime
    /// takes several.
    #[arg(long, requires = "anchor")]
    keep_foreign: bool,
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
    let anchoring = anchoring(&args.anchor, &chosen.anchor, &ledger)?;
    let visits = visits(args)?;
    let node = Node::new(ledger)?;
    let hub = config.hub.enabled.unwrap_or(true).then(|| hub::Worker::start(&node)).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(ServeError::Start)?;
    let limits = limits(args, &chosen);
    let drain_timeout = limits.drain_timeout;
    let anchorer = runtime.block_on(async {
        let listen = args.listen.or(chosen.listen).unwrap_or(LISTEN);
        let metrics = match args.metrics.or(chosen.metrics) {
            Some(MetricsAddress::Off) => None,
            Some(MetricsAddress::At(address)) => Some(address),
            None => Some(METRICS),
        };
        let server = Server::bind(node, listen, metrics, limits).await?;
        let taking = match &desk {
            Some((_, desk)) => Some(take_uploads(args, server.node(), desk.clone())?),
            None => None,
        };
        let document =
            ServeDocument { listen: server.address(), metrics: server.metrics_address() };
        print(args.json, &document, || format!("listening on http://{}\n", document.listen))?;
        let stop = stop_signal().map_err(ServeError::Start)?;
        let anchorer = anchoring.map(|(open, every)| match &desk {
            Some((submitter, _)) => Anchorer::start(server.node(), submitter.handle(), open, every),
            None => Anchorer::start(server.node(), visits.clone(), open, every),
        });
        server
            .run(async {
                stop.await;
                anchorer.iter().for_each(Anchorer::stop);
            })
            .await;
        drop(taking);
        Ok::<_, CliError>(anchorer)
    })?;
    if let Some(anchorer) = anchorer {
        anchorer.end(drain_timeout);
    }
    drop(hub);
    // What blocks ends what it is at; then the logs are closed.
    drop(runtime);
    if let Some((submitter, _)) = desk {
        submitter.finish();
    }
    Ok(())
}

/// How heads are anchored, if they are: flags, then the ledger's own choice.
fn anchoring(
    args: &AnchorArgs,
    chosen: &AnchorChoice,
    ledger: &Ledger,
) -> Result<Option<(OpenChain, AnchorEvery)>, CliError> {
    if !args.anchor && !chosen.enabled {
        let stray = args.chain.endpoint.is_some() || args.chain.netuid.is_some();
        return if stray { Err(CliError::AnchorFlag) } else { Ok(None) };
    }
    let (given, chosen_file) = (&args.chain, chosen.file.as_deref());
    let chain = ChainArgs {
        endpoint: given.endpoint.clone().or_else(|| chosen.endpoint.clone()),
        netuid: given.netuid.or(chosen.netuid),
        hotkey: given.hotkey.clone().or_else(|| chosen.hotkey.clone()),
        password_file: given.password_file.clone().or_else(|| chosen.password_file.clone()),
    };
    // A flag for a node comes before a file that was chosen.
    let file = args.anchor_file.as_deref().or(chosen_file.filter(|_| given.endpoint.is_none()));
    let unproven = args.unproven || chosen.unproven;
    let open = Anchorage { chain: &chain, file, unproven }.opener(Some(ledger))?;
    let rounds = args.anchor_every.or(chosen.every_rounds).unwrap_or(NonZeroU64::MIN);
    let options = AnchorOptions { keep_foreign: args.keep_foreign || chosen.keep_foreign };
    Ok(Some((open, AnchorEvery { rounds, options, justify_after: JUSTIFY_AFTER })))
}

/// A server that takes no uploads leaves the writer to other processes between its turns.
fn visits(args: &ServeArgs) -> Result<Visits, CliError> {
    let (root, key_file) = (args.ledger.clone(), args.writer.key.log_key_file.clone());
    Ok(Visits { root, key_file, last_heads: last_heads(&args.writer)? })
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
