//! What the operator chose for one ledger: `gradledger.toml` in its directory. See `schema/ledger.md`.
//!
//! Flags and `GRADLEDGER_*` come before it. Losing it costs choosing again.

use std::{
    io,
    net::{AddrParseError, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{files::read_whole, hub::RepositoryName, place::Place};
use crate::{
    codec::{parts::PART_BYTES_MAX, ss58},
    types::{digest::Digest, manifest::PIECE_BYTES},
};

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Most connections at once, if nobody chooses.
pub const CONNECTIONS_MAX: usize = 1024;

/// A configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum ConfigError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The source names line and column.
    #[error("{path}: {source}", path = path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
}

/// The choices; what is not there is left to the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which states are kept.
    pub retention: RetentionChoice,
    /// How the ledger is served.
    pub serve: ServeChoice,
    /// What Hub clients get.
    pub hub: HubChoice,
}

/// `[retention]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionChoice {
    /// Every how many rounds a state is kept.
    pub keep_every: Option<NonZeroU64>,
}

/// `[serve]`: the server's addresses and limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeChoice {
    /// Where it listens.
    pub listen: Option<SocketAddr>,
    /// Where it tells of itself to Prometheus: an address, or `off`.
    pub metrics: Option<MetricsAddress>,
    /// Most connections at once.
    pub connections_max: Option<NonZeroUsize>,
    /// Most connections at once from one address.
    pub connections_per_address_max: Option<NonZeroUsize>,
    /// How long a connection may be without a whole request head.
    pub head_timeout_s: Option<NonZeroU64>,
    /// How long a peer may take for 16 KiB of a body.
    pub stall_timeout_s: Option<NonZeroU64>,
    /// How long open requests may take when the server stops.
    pub drain_timeout_s: Option<u64>,
    /// What miners may send.
    pub uploads: UploadsChoice,
    /// Where heads are anchored.
    pub anchor: AnchorChoice,
}

/// `[serve.anchor]`: the newest head goes to a chain while the ledger is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorChoice {
    /// Whether heads are anchored.
    pub enabled: bool,
    /// Once so many sealed rounds stand in no anchored head.
    pub every_rounds: Option<NonZeroU64>,
    /// A node of the chain.
    pub endpoint: Option<String>,
    /// The subnet.
    pub netuid: Option<u16>,
    /// The hotkey file that signs.
    pub hotkey: Option<PathBuf>,
    /// A file with the hotkey's password.
    pub password_file: Option<PathBuf>,
    /// A text file instead of a chain.
    pub file: Option<PathBuf>,
    /// Whether a node's word is taken where it proves nothing.
    pub unproven: bool,
    /// Whether what stands in the slot and is not ours is kept as the first fields.
    pub keep_foreign: bool,
}

/// `[hub]`: the run as model repositories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubChoice {
    /// Whether states are hashed for Hub clients.
    pub enabled: Option<bool>,
    /// Who owns the repositories.
    pub owner: Option<RepositoryName>,
    /// What the one in bf16 is called.
    pub name: Option<RepositoryName>,
}

/// Where the server tells of itself, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

impl<'de> Deserialize<'de> for MetricsAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("neither an address with a port, nor \"off\""))
    }
}

/// `[serve.uploads]`: who may send deltas over HTTP, and how much.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadsChoice {
    /// Whether uploads are taken; then the server is the ledger's writer.
    pub enabled: bool,
    /// Of the hotkeys that the genesis lists, those who may upload; all if it is not there. SS58 or 64
    /// hex digits.
    pub hotkeys: Option<Vec<Hotkey>>,
    /// What deltas are cut by, in bytes: 65,536 to 67,108,864.
    #[serde(deserialize_with = "part_bytes")]
    pub part_bytes: u64,
    /// Uploads under way of one hotkey, at most.
    pub uploads_per_hotkey: usize,
    /// Bytes of all uploads under way of one hotkey, at most.
    pub bytes_per_hotkey: u64,
    /// Requests a minute of one hotkey; as many may come at once.
    pub requests_per_minute_per_hotkey: u32,
    /// Requests a minute of one address; as many may come at once.
    pub requests_per_minute_per_address: u32,
    /// An upload to which nothing was added for so many seconds is dropped.
    pub expire_s: u64,
    /// Free bytes of the disk that uploads leave alone.
    pub disk_reserve_bytes: u64,
}

impl Default for UploadsChoice {
    fn default() -> Self {
        Self {
            enabled: false,
            hotkeys: None,
            part_bytes: 16 << 20,
            uploads_per_hotkey: 2,
            bytes_per_hotkey: 16 << 30,
            requests_per_minute_per_hotkey: 600,
            requests_per_minute_per_address: 3_000,
            expire_s: 3_600,
            disk_reserve_bytes: 4 << 30,
        }
    }
}

fn part_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let bytes = u64::deserialize(deserializer)?;
    if (PIECE_BYTES..=PART_BYTES_MAX).contains(&bytes) {
        return Ok(bytes);
    }
    Err(D::Error::custom(format!("part_bytes is {PIECE_BYTES} to {PART_BYTES_MAX}")))
}

/// A hotkey as an operator writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Hotkey(pub Digest);

impl TryFrom<String> for Hotkey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let key = text.parse().ok().or_else(|| ss58::decode(&text).ok());
        key.map(Self).ok_or("a hotkey is an SS58 address or 64 hex digits")
    }
}

impl Config {
    /// The ledger's choices; none if there is no file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file cannot be read, is larger than 1 MiB, or has a key that is not
    /// known.
    pub fn load(place: &Place) -> Result<Self, ConfigError> {
        let path = place.config();
        let bytes = match read_whole(&*place.files, &path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        toml::from_slice(&bytes)
            .map_err(|source| ConfigError::Toml { path, source: Box::new(source) })
    }
}
