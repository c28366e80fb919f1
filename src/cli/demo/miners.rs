//! The miners: each with a key, a part of the text and a directory, doing what a real one does.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use gradledger_kernels::bytes::{of_f32, of_f32_mut};
use serde_json::json;

use super::{
    super::{exit::CliError, submit::admit_delta},
    model::{Model, TENSORS},
    train::Trainer,
};
use crate::{
    codec::{sr25519::SecretKey, ss58, statement::Statement},
    delta::{self, BAND_BYTES, DeltaJob, Format, Output, Weights},
    import::{
        checkpoint::Checkpoint,
        safetensors_writer::{Part, header},
    },
    ledger::{
        Ledger, LedgerError,
        submit::{Known, Receipt, SignedStatement, submit_batch},
        writer::LedgerWriter,
    },
    store::files::{Disk, Files},
    types::{
        digest::Digest,
        manifest::{ManifestId, group},
        progress::Silent,
        refusal::Refusal,
        tensor::Dtype,
    },
};

/// What is trained on. Each honest miner has a part of it that no other sees.
pub const TEXT: &str = include_str!("../../../LICENSE");

/// Those who train.
pub const HONEST: [&str; 5] = ["ana", "ben", "cho", "dia", "eli"];

/// The one who does not, and would like to be paid all the same.
pub const CHEAT: &str = "mallory";

/// Standard deviations that the codes of a delta span; the default of `delta`.
pub const RANGE: u32 = 6;

/// What is kept of the error; the default of `delta`.
const DECAY: f32 = 0.95;

/// Writes an error of the file system at `path`.
pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path, source }
}

/// A miner.
pub struct Miner {
    pub name: &'static str,
    pub secret: SecretKey,
    /// Where its files lie.
    pub dir: PathBuf,
    text: &'static [u8],
    trainer: Trainer,
}

/// How a delta is made, and where it goes.
pub struct Sending<'a> {
    pub round: u64,
    /// Standard deviations that the codes span.
    pub range: u32,
    /// Where what is not sent is kept.
    pub state: Option<&'a Path>,
    pub out: &'a Path,
}

/// What came of handing a delta in: a receipt, or a refusal at the door.
pub type Answer = Result<Receipt, Refusal>;

impl Miner {
    /// A miner with its directory below `dir`, and its hotkey as a wallet file in it.
    ///
    /// Keys are made from names, so that every demo has the same miners: they protect nothing.
    pub fn new(dir: &Path, name: &'static str, text: &'static [u8]) -> Result<Self, CliError> {
        let dir = dir.join("miners").join(name);
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let seed = Digest::of(format!("gradledger demo: {name}").as_bytes());
        let secret = SecretKey::from_seed(&seed.0);
        let key = secret.public().to_digest();
        let wallet = json!({
            "accountId": format!("0x{key}"),
            "publicKey": format!("0x{key}"),
            "secretSeed": format!("0x{seed}"),
            "ss58Address": ss58::encode(key),
        });
        let path = dir.join("hotkey");
        fs::write(&path, wallet.to_string()).map_err(io(&path))?;
        let first = u64::from_le_bytes(*seed.0.first_chunk().expect("a digest has 32 bytes"));
        Ok(Self { name, secret, dir, text, trainer: Trainer::new(first) })
    }

    /// The honest ones, each with its part of the text.
    pub fn honest(dir: &Path) -> Result<Vec<Self>, CliError> {
        let part = TEXT.len().div_ceil(HONEST.len());
        let parts = TEXT.as_bytes().chunks(part);
        HONEST.into_iter().zip(parts).map(|(name, text)| Self::new(dir, name, text)).collect()
    }

    pub fn hotkey(&self) -> Digest {
        self.secret.public().to_digest()
    }

    pub fn train(&mut self, base: &Model, steps: u32) -> Model {
        self.trainer.train(base, self.text, steps)
    }

    /// Where this miner's delta of a round lies.
    pub fn delta_path(&self, round: u64) -> PathBuf {
        self.dir.join(format!("round-{round}"))
    }

    /// `delta`, as on the command line: what training made of the state `base` becomes a small delta,
    /// and what that leaves out is kept in the state file for the next round.
    pub fn make_delta(
        &self,
        ledger: &Ledger,
        base: ManifestId,
        trained: &Model,
        round: u64,
    ) -> Result<ManifestId, CliError> {
        let state = self.dir.join("feedback.safetensors");
        let out = self.delta_path(round);
        let sending = Sending { round, range: RANGE, state: Some(&state), out: &out };
        self.make(ledger, base, trained, &sending)
    }

    /// The same, sent as `sending` says.
    pub fn make(
        &self,
        ledger: &Ledger,
        base: ManifestId,
        trained: &Model,
        sending: &Sending<'_>,
    ) -> Result<ManifestId, CliError> {
        let path = self.dir.join("trained.safetensors");
        write_checkpoint(&path, trained)?;
        let trained = Weights::Foreign(Box::new(Checkpoint::open(&path, None)?), "trained model");
        let stored = ledger.checkpoint(base).map_err(LedgerError::from)?;
        let job = DeltaJob {
            base: &Weights::Stored(Box::new(stored)),
            trained: &trained,
            layout: &ledger.layout()?,
            rule: ledger.rule(),
            round: sending.round,
            range: sending.range,
            decay: DECAY,
            state: sending.state,
            output: Some(Output { path: sending.out, format: Format::Native }),
            threads: 0,
            band_bytes: BAND_BYTES,
        };
        let files: Arc<dyn Files> = Arc::new(Disk);
        Ok(delta::make(&job, &files, &Silent)?.delta)
    }

    /// `submit`, as on the command line: the delta is looked through and stored, the statement about it
    /// signed and put into the log.
    pub fn submit(
        &self,
        writer: &mut LedgerWriter,
        delta: &Path,
        round: u64,
        base: ManifestId,
    ) -> Result<Answer, CliError> {
        let sign = |statement: &Statement| self.secret.sign(&statement.to_bytes());
        submit_as(self.hotkey(), sign, writer, delta, round, base)
    }
}

/// Submits a delta in the name of `hotkey`, with whatever signature `sign` gives.
pub fn submit_as(
    hotkey: Digest,
    sign: impl Fn(&Statement) -> [u8; 64],
    writer: &mut LedgerWriter,
    delta: &Path,
    round: u64,
    base: ManifestId,
) -> Result<Answer, CliError> {
    let (delta, refused) = match admit_delta(writer.ledger(), writer.ledger().place(), delta, round)
    {
        Err(CliError::Refused(refusal)) => return Ok(Err(refusal)),
        admitted => admitted?,
    };
    let statement = Statement {
        run: writer.ledger().run_id(),
        round,
        base: base.root,
        delta: delta.root,
        delta_bytes: delta.bytes,
        hotkey,
    };
    let submission = SignedStatement { statement, signature: sign(&statement), delta, refused };
    let answers = submit_batch(writer, &mut Known::default(), &[submission])?;
    Ok(answers.into_iter().next().expect("one statement, one answer"))
}

/// The model that a ledger's state holds, re-hashed as it is read.
pub fn read_state(ledger: &Ledger, state: ManifestId) -> Result<Model, CliError> {
    let stored = ledger.checkpoint(state).map_err(LedgerError::from)?;
    let mut model = Model::zeros();
    for (values, (name, _)) in model.tensors_mut().into_iter().zip(TENSORS) {
        let position = stored.manifest().position(group::WEIGHTS, name);
        let position = position.ok_or_else(|| CliError::Demo(format!("{name} is missing")))?;
        let mut reader = stored.tensor(position).map_err(LedgerError::from)?;
        reader.read_exact(of_f32_mut(values)).map_err(LedgerError::from)?;
    }
    Ok(model)
}

/// Writes a model as a safetensors file.
pub fn write_checkpoint(path: &Path, model: &Model) -> Result<(), CliError> {
    let part = |&(name, shape)| Part { name, dtype: Dtype::F32, shape };
    let mut bytes = header(&BTreeMap::new(), TENSORS.iter().map(part));
    model.tensors().iter().for_each(|values| bytes.extend(of_f32(values)));
    fs::write(path, bytes).map_err(io(path))
}
