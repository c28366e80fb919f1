//! What goes wrong on purpose: eight things that are refused, and one that is only seen afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gradledger_kernels::codes;

use super::{
    super::exit::CliError,
    miners::{Answer, CHEAT, Miner, RANGE, Sending, io, submit_as},
    model::Model,
};
use crate::{
    ledger::{At, Ledger, LedgerError, writer::LedgerWriter},
    store::{
        StoreError,
        files::Disk,
        segment::{
            LogicalBytes, SegmentError,
            delta::{DeltaSegments, DeltaWriter},
        },
    },
    types::{manifest::ManifestId, refusal::Code},
};

/// Something that should not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    NonFinite,
    PositionTwice,
    CodeOutOfRange,
    Truncated,
    WrongSignature,
    Copy,
    Again,
    WrongBase,
    DisguisedCopy,
}

/// Whose delta is copied.
pub const COPIED: &str = "cho";

/// In whose name a forged statement is handed in.
const IMPERSONATED: &str = "ben";

/// Who would like to count twice.
const TWICE: &str = "dia";

/// How many rounds ago the state was the newest from which the stale delta is made.
const STALE_ROUNDS: u64 = 2;

impl Trick {
    /// What is tried in a round, if anything is.
    pub fn of_round(round: u64) -> Option<Self> {
        Some(match round {
            2 => Self::NonFinite,
            3 => Self::PositionTwice,
            4 => Self::CodeOutOfRange,
            5 => Self::Truncated,
            6 => Self::WrongSignature,
            7 => Self::Copy,
            8 => Self::Again,
            9 => Self::WrongBase,
            10 => Self::DisguisedCopy,
            _ => return None,
        })
    }

    pub fn who(self) -> &'static str {
        if self == Self::Again { TWICE } else { CHEAT }
    }

    /// The code that it has to be refused with; none for what no rule forbids.
    pub fn code(self) -> Option<Code> {
        Some(match self {
            Self::NonFinite => Code::NonFinite,
            Self::PositionTwice => Code::DuplicateIndex,
            Self::CodeOutOfRange => Code::CodeOutOfRange,
            Self::Truncated => Code::Truncated,
            Self::WrongSignature => Code::BadSignature,
            Self::Copy => Code::DuplicateDelta,
            Self::Again => Code::DuplicateSubmission,
            Self::WrongBase => Code::WrongBase,
            Self::DisguisedCopy => return None,
        })
    }

    /// In a few words, for a table.
    pub fn short(self) -> &'static str {
        match self {
            Self::NonFinite => "a value that is not a number",
            Self::PositionTwice => "one position sent twice",
            Self::CodeOutOfRange => "a message hidden in spare bits",
            Self::Truncated => "half a file",
            Self::WrongSignature => "another miner's name",
            Self::Copy => "another miner's work",
            Self::Again => "a second delta, to count twice",
            Self::WrongBase => "old work as new",
            Self::DisguisedCopy => "a copy with a few bits changed",
        }
    }

    /// What is tried, and what it would do.
    pub fn story(self) -> &'static str {
        match self {
            Self::NonFinite => {
                "mallory sends a NaN (not a number): it would spread to every weight it is added to"
            }
            Self::PositionTwice => {
                "mallory sends one position twice: its weight would be changed twice in one round"
            }
            Self::CodeOutOfRange => {
                "mallory hides a message in the spare bits behind her codes: they mean nothing, and must be 0"
            }
            Self::Truncated => "mallory's upload ends half way",
            Self::WrongSignature => {
                "mallory hands a delta in as ben's, but has to sign with her own key"
            }
            Self::Copy => "mallory gets hold of cho's delta and hands it in as her own",
            Self::Again => "dia, who is honest otherwise, hands in a second delta to count twice",
            Self::WrongBase => {
                "mallory trained from the state of two rounds ago: her changes do not fit the newest"
            }
            Self::DisguisedCopy => {
                "mallory copies cho's delta again and changes a few bits, so that it is not the same"
            }
        }
    }
}

/// A round as the one who plays a trick finds it.
pub struct Scene<'a> {
    pub round: u64,
    /// The newest state.
    pub base: ManifestId,
    pub honest: &'a [Miner],
    /// What each of them has trained in this round.
    pub trained: &'a [Model],
    pub mallory: &'a Miner,
    /// What she made of the state: next to nothing.
    pub idle: &'a Model,
}

impl Scene<'_> {
    /// Plays the trick and gives what the ledger answers at once.
    pub fn play(&self, trick: Trick, writer: &mut LedgerWriter) -> Result<Answer, CliError> {
        let (round, mallory) = (self.round, self.mallory);
        let out = mallory.delta_path(round);
        let mut base = self.base;
        match trick {
            Trick::NonFinite => self.spoilt(writer.ledger(), |delta| {
                delta.book[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            })?,
            Trick::PositionTwice => self.spoilt(writer.ledger(), |delta| {
                let first = codes::indices(&delta.index).next().unwrap_or_default();
                let mut pair = Vec::new();
                codes::pack_index(&[first, first], &mut pair).expect("it was packed before");
                delta.index[..pair.len()].copy_from_slice(&pair);
            })?,
            // A block's 30 codes of 2 bits end half way through its eighth byte.
            Trick::CodeOutOfRange => self.spoilt(writer.ledger(), |delta| delta.code[7] |= 0xf0)?,
            Trick::Truncated => {
                mallory.make_delta(writer.ledger(), base, self.idle, round)?;
                cut(&out)?;
            }
            Trick::WrongSignature => return self.forge(writer),
            Trick::Copy => rewrite(&self.of(COPIED).delta_path(round), &out, &|_| {})?,
            Trick::Again => return self.again(writer),
            Trick::WrongBase => {
                base = writer.ledger().state(At::Round(round - 1 - STALE_ROUNDS))?;
                mallory.make_delta(writer.ledger(), base, self.idle, round)?;
            }
            Trick::DisguisedCopy => {
                let change = |delta: &mut Parts| delta.code[..4].iter_mut().for_each(|b| *b ^= 1);
                rewrite(&self.of(COPIED).delta_path(round), &out, &change)?;
            }
        }
        mallory.submit(writer, &out, round, base)
    }

    fn of(&self, name: &str) -> &Miner {
        self.honest.iter().find(|miner| miner.name == name).expect("the honest are those listed")
    }

    /// Mallory's delta with `spoil` done to one tensor.
    fn spoilt(&self, ledger: &Ledger, spoil: impl Fn(&mut Parts)) -> Result<(), CliError> {
        let out = self.mallory.delta_path(self.round);
        let made = out.with_extension("made");
        let sending = Sending { round: self.round, range: RANGE, state: None, out: &made };
        self.mallory.make(ledger, self.base, self.idle, &sending)?;
        rewrite(&made, &out, &spoil)?;
        fs::remove_dir_all(&made).map_err(io(&made))
    }

    /// A delta in another's name, signed with mallory's key.
    fn forge(&self, writer: &mut LedgerWriter) -> Result<Answer, CliError> {
        let Self { round, base, mallory, .. } = *self;
        mallory.make_delta(writer.ledger(), base, self.idle, round)?;
        let sign = |statement: &crate::codec::statement::Statement| {
            mallory.secret.sign(&statement.to_bytes())
        };
        submit_as(
            self.of(IMPERSONATED).hotkey(),
            sign,
            writer,
            &mallory.delta_path(round),
            round,
            base,
        )
    }

    /// The same training sent once more, with coarser codes.
    fn again(&self, writer: &mut LedgerWriter) -> Result<Answer, CliError> {
        let at = self.honest.iter().position(|miner| miner.name == TWICE);
        let (dia, trained) = at.map(|at| (&self.honest[at], &self.trained[at])).expect("listed");
        let out = dia.dir.join(format!("round-{}-again", self.round));
        let sending = Sending { round: self.round, range: RANGE / 2, state: None, out: &out };
        dia.make(writer.ledger(), self.base, trained, &sending)?;
        dia.submit(writer, &out, self.round, self.base)
    }
}

/// The tensor that is spoilt.
const SPOILT: &str = "out.weight";

/// One tensor's part of a delta: packed positions, packed codes, the book.
struct Parts {
    index: Vec<u8>,
    code: Vec<u8>,
    book: Vec<u8>,
}

/// Writes the delta in `from` into `to`, with `change` done to one tensor.
fn rewrite(from: &Path, to: &Path, change: &dyn Fn(&mut Parts)) -> Result<(), CliError> {
    let copy = || -> Result<(), SegmentError> {
        let delta = DeltaSegments::open(&Disk, from)?;
        let names: Vec<&str> = delta.tensors().collect();
        let mut writer: Option<DeltaWriter<'_>> = None;
        for name in names {
            let layout = delta.layout(name)?;
            let mut parts = Parts {
                index: whole(&*delta.index(name)?)?,
                code: whole(&*delta.code(name)?)?,
                book: whole(&*delta.book(name)?)?,
            };
            let blocks = parts.index.len() as u64 / layout.index_bytes();
            if name == SPOILT {
                change(&mut parts);
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                none => none.insert(DeltaWriter::create(&Disk, to, 1 << layout.bits)?),
            };
            let mut rows = writer.tensor(name, layout.k, blocks)?;
            rows.write_index(&parts.index)?;
            rows.write_code(&parts.code)?;
            rows.finish()?;
            writer.book(name, &parts.book)?;
        }
        writer.map_or(Ok(()), DeltaWriter::finish)
    };
    copy().map_err(|error| LedgerError::from(StoreError::from(error)).into())
}

fn whole(bytes: &dyn LogicalBytes) -> Result<Vec<u8>, SegmentError> {
    let mut all = vec![0; usize::try_from(bytes.len()).expect("a demo's delta is small")];
    bytes.read_at(0, &mut all)?;
    Ok(all)
}

/// Cuts the largest file of a delta in half.
fn cut(delta: &Path) -> Result<(), CliError> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(delta).map_err(io(delta))? {
        let entry = entry.map_err(io(delta))?;
        files.push((entry.metadata().map_err(io(delta))?.len(), entry.path()));
    }
    let (bytes, path) = files.into_iter().max().expect("a delta has files");
    let file = fs::OpenOptions::new().write(true).open(&path).map_err(io(&path))?;
    file.set_len(bytes / 2).map_err(io(&path))
}
