//! Templar's files: a miner's gradient, a validator's aggregator, and the list of peers.
//!
//! `intake` gets a [`ForeignDelta`] per miner, from either kind of file: which parts each tensor has, where
//! they lie, and nothing about whether they fit the model. Bytes are streamed from the archive.
//! The layouts are those of Templar 2.1.28 and stand in `schema/foreign.md`.
//!
//! What is not there, or is there as another kind of value, is `None`: `intake` names the tensor that
//! misses it. A tensor that cannot be read ends up in [`ForeignDelta::fault`], so that one miner's
//! odd tensor spoils that miner's delta and not the aggregator that carries it.
//!
//! Trust: none. Sizes are bounded by the limits of `zip` and `pickle`, and by [`PARTS_MAX`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;

use super::{
    pickle::{Pickle, Value},
    source::Source,
    torch::{TensorRef, TorchArchive, TorchError},
    zip::ZipError,
};
use crate::types::{
    refusal::{Code, Refusal},
    tensor::Dtype,
};

/// Most miners of an aggregator; a round folds at most 255.
pub const UIDS_MAX: usize = 1024;

/// Most parts of all miners of a file together: 20 miners, 720 tensors and 3 parts each are 43,200.
pub const PARTS_MAX: usize = 1 << 20;

/// Longest list of peers in bytes.
pub const PEERS_BYTES_MAX: usize = 1 << 20;

const INDICES: &str = "idxs";
const VALUES: &str = "vals";
const QUANTISATION: &str = "quant_params";

/// Why a file is not one of Templar's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum TemplarError {
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error("{what} is {found}, not {expected}")]
    Layout { what: &'static str, expected: &'static str, found: &'static str },
    #[error("the key {key:?} stands twice in the state dict")]
    Twice { key: String },
    #[error("uid {uid} stands twice in {what}")]
    UidTwice { what: &'static str, uid: u16 },
    #[error("{what} holds {found}, which is no uid: 0 to 65535")]
    Uid { what: &'static str, found: String },
    #[error("the file has {found} miners; at most {UIDS_MAX} are read")]
    Uids { found: usize },
    #[error("the file has {found} parts of tensors; at most {PARTS_MAX} are read")]
    Parts { found: usize },
    #[error("the list of peers has {found} bytes; at most {PEERS_BYTES_MAX} are read")]
    PeersBytes { found: usize },
    #[error("the list of peers: {0}")]
    Peers(#[source] serde_json::Error),
}

impl TemplarError {
    /// The refusal of a submission that fails so; `None` if it is our system that failed.
    pub fn refusal(&self) -> Option<Refusal> {
        let layout = |expected| Refusal::new(Code::UnsafePickle, None, expected, self.to_string());
        match self {
            Self::Torch(error) => refusal_of(None, error),
            Self::Layout { .. } => Some(layout("the layout of a gradient file")),
            Self::Twice { .. } => Some(layout("each key once")),
            Self::Uid { .. } | Self::UidTwice { .. } => Some(layout("a list of distinct uids")),
            Self::Uids { .. } | Self::Parts { .. } => Some(layout("fewer entries")),
            Self::PeersBytes { .. } | Self::Peers(_) => Some(layout("a list of peers")),
        }
    }
}

/// The refusal of a submission whose archive, or whose `tensor` in it, fails so; `None` if it is our
/// system that failed.
pub fn refusal_of(tensor: Option<&str>, error: &TorchError) -> Option<Refusal> {
    let refuse = |code, expected: &str| Refusal::new(code, tensor, expected, error.to_string());
    Some(match error {
        TorchError::Zip(ZipError::Io(_)) => return None,
        TorchError::Zip(ZipError::Crc { name, stated, found }) => Refusal::new(
            Code::CrcMismatch,
            tensor,
            format!("CRC-32 {stated:08x}"),
            format!("{found:08x} of {name}"),
        ),
        TorchError::Zip(_) => refuse(Code::Truncated, "a whole archive of stored entries"),
        TorchError::Root { .. }
        | TorchError::NoEntry { .. }
        | TorchError::ByteOrder { .. }
        | TorchError::Version { .. }
        | TorchError::Note { .. } => refuse(Code::Truncated, "an archive of torch.save"),
        TorchError::Pickle(_) => refuse(Code::UnsafePickle, "a pickle of tensors and plain values"),
        TorchError::Strided { .. }
        | TorchError::Rank { .. }
        | TorchError::Size { .. }
        | TorchError::Long { .. } => refuse(Code::WrongShape, "a row-major tensor of its size"),
        TorchError::Tensor { .. }
        | TorchError::StorageType { .. }
        | TorchError::StorageBytes { .. }
        | TorchError::OutsideStorage { .. }
        | TorchError::Marked
        | TorchError::Range { .. } => refuse(Code::UnsafePickle, "a tensor within its storage"),
    })
}

/// What a file holds for one tensor of the model. A part that is absent or no tensor is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parts {
    /// `NAMEidxs`: packed 12-bit positions.
    pub idxs: Option<TensorRef>,
    /// `NAMEvals`: a code per byte.
    pub vals: Option<TensorRef>,
    /// `NAMEquant_params`: what codes mean.
    pub quant_params: Option<QuantParams>,
}

/// The five parts of `NAMEquant_params`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantParams {
    /// Added to every value.
    pub shift: Option<TensorRef>,
    /// The quantiser's scale, if it is a float: Templar checks no others.
    pub scale: Option<f64>,
    /// The quantiser's middle code.
    pub offset: Option<i64>,
    /// What each code stands for.
    pub lookup: Option<TensorRef>,
    /// The dtype of the values before quantisation.
    pub dtype: Option<Dtype>,
}

/// One miner's delta, as a file describes it.
#[derive(Debug, Default)]
pub struct ForeignDelta {
    /// By the tensor's name.
    pub parts: BTreeMap<Arc<str>, Parts>,
    /// Keys that are no part of a tensor; Templar takes no notice of them.
    pub other_keys: Vec<Arc<str>>,
    /// The round that the miner says it is for. An aggregator does not keep it.
    pub window: Option<i64>,
    /// The miner's own count of steps.
    pub global_step: Option<i64>,
    /// Of the tensors that cannot be read the first by its refusal's code, then by name.
    pub fault: Option<PartFault>,
    /// All of them.
    pub unreadable: BTreeSet<Arc<str>>,
}

/// A tensor of a delta that cannot be read.
#[derive(Debug)]
pub struct PartFault {
    /// The model's tensor it is a part of.
    pub tensor: Arc<str>,
    /// Why.
    pub error: TorchError,
}

impl PartFault {
    /// The refusal of the delta; `None` if it is our system that failed.
    pub fn refusal(&self) -> Option<Refusal> {
        refusal_of(Some(&self.tensor), &self.error)
    }
}

/// A file that one miner uploaded.
pub struct GradientFile {
    archive: TorchArchive,
    delta: ForeignDelta,
}

impl GradientFile {
    /// Opens a file and reads its layout; no tensor's bytes are read.
    ///
    /// # Errors
    ///
    /// [`TemplarError`]; its `refusal` is what the submission is refused with.
    pub fn open(source: Arc<dyn Source>) -> Result<Self, TemplarError> {
        let archive = TorchArchive::open(source)?;
        let delta = read_gradient(&archive)?;
        Ok(Self { archive, delta })
    }

    /// What the file holds.
    pub fn delta(&self) -> &ForeignDelta {
        &self.delta
    }

    /// Where its tensors are read from, and its CRCs checked.
    pub fn archive(&self) -> &TorchArchive {
        &self.archive
    }
}

/// A file in which a validator uploaded what it had gathered.
pub struct AggregatorFile {
    archive: TorchArchive,
    deltas: Vec<(u16, ForeignDelta)>,
    skipped: Vec<u16>,
    success_rate: Option<f64>,
    global_step: Option<i64>,
    unaligned: Vec<String>,
}

impl AggregatorFile {
    /// Opens a file and reads its layout; no tensor's bytes are read.
    ///
    /// # Errors
    ///
    /// [`TemplarError`].
    pub fn open(source: Arc<dyn Source>) -> Result<Self, TemplarError> {
        let archive = TorchArchive::open(source)?;
        let pickle = archive.pickle();
        let (outer, global_step) = root(pickle)?;
        let skipped = match pickle.field(outer, "skipped_uids") {
            Some(list) => uids(pickle, list, "skipped_uids")?,
            None => Vec::new(),
        };
        let success_rate = match pickle.field(outer, "success_rate") {
            Some(Value::Float(rate)) => Some(rate),
            _ => None,
        };
        let list = pickle.field(outer, "uids").unwrap_or(Value::None);
        let uids = uids(pickle, list, "uids")?;
        let inner = pickle.field(outer, "state_dict").unwrap_or(Value::None);
        let keys = keys(pickle, inner)?;
        let (deltas, unaligned) = read_lists(&archive, &keys, &uids)?;
        let deltas = uids.into_iter().zip(deltas).collect();
        Ok(Self { archive, deltas, skipped, success_rate, global_step, unaligned })
    }

    /// The miners and their deltas, in the order in which they were gathered.
    pub fn deltas(&self) -> &[(u16, ForeignDelta)] {
        &self.deltas
    }

    /// Those who gave nothing, or nothing usable.
    pub fn skipped(&self) -> &[u16] {
        &self.skipped
    }

    /// The share of peers that succeeded.
    pub fn success_rate(&self) -> Option<f64> {
        self.success_rate
    }

    /// The validator's count of steps.
    pub fn global_step(&self) -> Option<i64> {
        self.global_step
    }

    /// Keys whose lists are not one entry per miner. Whose entries they hold cannot be told, so no
    /// miner has them.
    pub fn unaligned(&self) -> &[String] {
        &self.unaligned
    }

    /// Where its tensors are read from, and its CRCs checked.
    pub fn archive(&self) -> &TorchArchive {
        &self.archive
    }
}

/// Who was expected in a round: `peers_{window}_v{version}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PeersFile {
    /// The miners whose deltas are gathered.
    pub peers: Vec<u16>,
    /// Who replaces those that are missing, in order.
    #[serde(default)]
    pub reserve_peers: Vec<u16>,
}

impl PeersFile {
    /// Reads the JSON; keys other than the two lists are left alone.
    ///
    /// # Errors
    ///
    /// [`TemplarError`]: not such an object, or a uid twice in one list.
    pub fn read(text: &[u8]) -> Result<Self, TemplarError> {
        if text.len() > PEERS_BYTES_MAX {
            return Err(TemplarError::PeersBytes { found: text.len() });
        }
        let file: Self = serde_json::from_slice(text).map_err(TemplarError::Peers)?;
        check_distinct(&file.peers, "peers")?;
        check_distinct(&file.reserve_peers, "reserve_peers")?;
        Ok(file)
    }
}

/// Which part of which tensor a key of a state dict is.
#[derive(Clone, Copy)]
enum Part {
    Indices,
    Values,
    Quantisation,
}

fn part_of(key: &str) -> Option<(&str, Part)> {
    let part = |suffix, part| key.strip_suffix(suffix).map(|name| (name, part));
    part(INDICES, Part::Indices)
        .or_else(|| part(VALUES, Part::Values))
        .or_else(|| part(QUANTISATION, Part::Quantisation))
}

/// The value of `state_dict` in the outermost dict, and its `global_step`.
fn root(pickle: &Pickle) -> Result<(Value, Option<i64>), TemplarError> {
    let root = pickle.root();
    if pickle.pairs(root).is_none() {
        return Err(layout("the pickle's value", "a dict", root));
    }
    let state = pickle.field(root, "state_dict").unwrap_or(Value::None);
    let step = pickle.field(root, "global_step").and_then(|step| pickle.int(step));
    Ok((state, step))
}

fn layout(what: &'static str, expected: &'static str, found: Value) -> TemplarError {
    TemplarError::Layout { what, expected, found: found.kind() }
}

/// The pairs of a state dict, each key once.
fn keys(pickle: &Pickle, state: Value) -> Result<Vec<(&str, Value)>, TemplarError> {
    let pairs = pickle.pairs(state).ok_or_else(|| layout("state_dict", "a dict", state))?;
    if pairs.len() > PARTS_MAX {
        return Err(TemplarError::Parts { found: pairs.len() });
    }
    let mut seen = BTreeSet::new();
    let mut keys = Vec::with_capacity(pairs.len());
    for &(key, value) in pairs {
        let text = pickle.text(key).ok_or_else(|| layout("a key of state_dict", "text", key))?;
        if !seen.insert(text) {
            return Err(TemplarError::Twice { key: text.to_owned() });
        }
        keys.push((text, value));
    }
    Ok(keys)
}

fn read_gradient(archive: &TorchArchive) -> Result<ForeignDelta, TemplarError> {
    let pickle = archive.pickle();
    let (state, global_step) = root(pickle)?;
    let mut delta = ForeignDelta { global_step, ..ForeignDelta::default() };
    for (key, value) in keys(pickle, state)? {
        match part_of(key) {
            Some((name, part)) => add_part(archive, &mut delta, name.into(), part, value),
            None if key == "metadata" => {
                let window = pickle.field(value, "window");
                delta.window = window.and_then(|window| pickle.int(window));
            }
            None => delta.other_keys.push(key.into()),
        }
    }
    Ok(delta)
}

type Lists = (Vec<ForeignDelta>, Vec<String>);

/// Turns lists per key into deltas per miner.
fn read_lists(
    archive: &TorchArchive,
    keys: &[(&str, Value)],
    uids: &[u16],
) -> Result<Lists, TemplarError> {
    let found = keys.len().saturating_mul(uids.len());
    if found > PARTS_MAX {
        return Err(TemplarError::Parts { found });
    }
    let mut deltas: Vec<ForeignDelta> = uids.iter().map(|_| ForeignDelta::default()).collect();
    let mut unaligned = Vec::new();
    for &(key, list) in keys {
        let items = archive.pickle().items(list).filter(|items| items.len() == uids.len());
        let Some((items, (name, part))) = items.zip(part_of(key)) else {
            unaligned.push(key.to_owned());
            continue;
        };
        // One name for all miners: it may be long, and they may be many.
        let name: Arc<str> = name.into();
        for (delta, &value) in deltas.iter_mut().zip(items) {
            add_part(archive, delta, name.clone(), part, value);
        }
    }
    Ok((deltas, unaligned))
}

fn add_part(
    archive: &TorchArchive,
    delta: &mut ForeignDelta,
    name: Arc<str>,
    part: Part,
    value: Value,
) {
    let mut fault = None;
    let mut tensor = |value| match archive.tensor(value) {
        Some(Ok(tensor)) => Some(tensor),
        Some(Err(error)) => {
            fault.get_or_insert(error);
            None
        }
        None => None,
    };
    let parts = delta.parts.entry(name.clone()).or_default();
    match part {
        Part::Indices => parts.idxs = tensor(value),
        Part::Values => parts.vals = tensor(value),
        Part::Quantisation => {
            let pickle = archive.pickle();
            if let Some(&[shift, scale, offset, lookup, dtype]) = pickle.tuple(value) {
                parts.quant_params = Some(QuantParams {
                    shift: tensor(shift),
                    scale: if let Value::Float(scale) = scale { Some(scale) } else { None },
                    offset: pickle.int(offset),
                    lookup: tensor(lookup),
                    dtype: archive.dtype(dtype),
                });
            }
        }
    }
    let Some(error) = fault else { return };
    let fault = PartFault { tensor: name.clone(), error };
    let key = |f: &PartFault| (f.refusal().map(|refusal| refusal.code), f.tensor.clone());
    if delta.fault.as_ref().is_none_or(|first| key(&fault) < key(first)) {
        delta.fault = Some(fault);
    }
    delta.unreadable.insert(name);
}

fn uids(pickle: &Pickle, list: Value, what: &'static str) -> Result<Vec<u16>, TemplarError> {
    let items = pickle.items(list).ok_or_else(|| layout(what, "a list", list))?;
    if items.len() > UIDS_MAX {
        return Err(TemplarError::Uids { found: items.len() });
    }
    let uid = |item: &Value| {
        let number = pickle.int(*item).and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| {
            let found = match item {
                Value::Int(number) => number.to_string(),
                other => other.kind().to_owned(),
            };
            TemplarError::Uid { what, found }
        })
    };
    let uids = items.iter().map(uid).collect::<Result<Vec<_>, _>>()?;
    check_distinct(&uids, what)?;
    Ok(uids)
}

fn check_distinct(uids: &[u16], what: &'static str) -> Result<(), TemplarError> {
    let mut seen = BTreeSet::new();
    match uids.iter().find(|uid| !seen.insert(**uid)) {
        Some(&uid) => Err(TemplarError::UidTwice { what, uid }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_peers_may_hold_other_keys_but_no_uid_twice() {
        let text = br#"{"peers": [7, 3], "reserve_peers": [9], "sync_window": 5, "x": {"y": []}}"#;
        let peers = PeersFile::read(text).unwrap();
        assert_eq!((peers.peers, peers.reserve_peers), (vec![7, 3], vec![9]));
        let peers = PeersFile::read(br#"{"peers": []}"#).unwrap();
        assert_eq!(peers, PeersFile { peers: vec![], reserve_peers: vec![] });
        assert!(matches!(
            PeersFile::read(br#"{"peers": [7, 7]}"#),
            Err(TemplarError::UidTwice { what: "peers", uid: 7 })
        ));
        for text in
            ["{}", "[]", r#"{"peers": [65536]}"#, r#"{"peers": [-1]}"#, r#"{"peers": [1.5]}"#]
        {
            assert!(
                matches!(PeersFile::read(text.as_bytes()), Err(TemplarError::Peers(_))),
                "{text}"
            );
        }
    }
}
