//! Miners who sign for their deltas: hotkeys, key files, delta segments, and what they hand in.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use gradledger::{
    codec::{sr25519::SecretKey, ss58, statement::Statement},
    intake::{
        admit::Expected,
        native::{NativeAdmission, admit_segments},
    },
    ledger::{Ledger, LedgerError, submit::SignedStatement},
    store::{files::Disk, place::Place, segment::delta::DeltaWriter},
    sync::submit::Staged,
    types::{digest::Digest, manifest::ManifestId},
};

use super::{Random, memfs::MemFs};

/// A miner's secret, by its number.
pub fn hotkey(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// What the genesis lists it as.
pub fn public(number: u8) -> Digest {
    hotkey(number).public().to_digest()
}

/// Writes a plain key file, as a wallet holds it.
pub fn write_key(path: &Path, number: u8) {
    let seed = format!("0x{}", Digest([number; 32]));
    let key =
        serde_json::json!({ "secretSeed": seed, "ss58Address": ss58::encode(public(number)) });
    fs::write(path, key.to_string()).expect("a new file");
}

/// Writes the list of miners 1 to `miners` that `init` takes.
pub fn write_list(path: &Path, miners: u8) {
    let lines = (1..=miners).map(|number| format!("{}\n", ss58::encode(public(number))));
    fs::write(path, lines.collect::<String>()).expect("a new file");
}

/// Delta segments of tensors with so many blocks each, four values a block, 2 bits a value.
pub fn write_delta(dir: &Path, seed: u64, tensors: &[(&str, u64)]) {
    let mut random = Random(seed);
    let mut writer = DeltaWriter::create(&Disk, dir, 4).expect("a new directory");
    for (name, blocks) in tensors {
        let (mut index, mut code) = (Vec::new(), Vec::new());
        for _ in 0..*blocks {
            let first = random.below(4);
            for [a, b] in [[first, first + 1], [first + 2, first + 3]] {
                index.extend([a as u8, (b << 4) as u8, (b >> 4) as u8]);
            }
            code.push(random.next() as u8);
        }
        let values = [-1.0, -0.25, 0.25, 1.0, 0.125_f32].map(f32::to_le_bytes);
        let mut rows = writer.tensor(name, 4, *blocks).expect("a tensor of the model");
        rows.write_index(&index).expect("whole blocks");
        rows.write_code(&code).expect("whole blocks");
        rows.finish().expect("all rows");
        writer.book(name, values.as_flattened()).expect("a book");
    }
    writer.finish().expect("all tensors");
}

/// Signatures by statement. They are randomised, and two runs of one scenario must be the same.
#[derive(Default)]
pub struct Signatures(Mutex<BTreeMap<Digest, [u8; 64]>>);

impl Signatures {
    pub fn of(&self, statement: &Statement, number: u8) -> [u8; 64] {
        let mut known = self.0.lock().expect("no panic while it is held");
        let sign = || statement.sign(&hotkey(number)).expect("the hotkey's own statement");
        *known.entry(statement.id()).or_insert_with(sign)
    }
}

/// What miner `number` signs.
pub fn statement(
    run: Digest,
    round: u64,
    base: Digest,
    delta: ManifestId,
    number: u8,
) -> Statement {
    let (delta, delta_bytes) = (delta.root, delta.bytes);
    Statement { run, round, base, delta, delta_bytes, hotkey: public(number) }
}

/// The delta in `dir` as a miner sends it, held in memory.
pub fn stage(ledger: &Ledger, round: u64, dir: &Path) -> Staged {
    stage_in(&Place::new(Arc::new(MemFs::new()), Path::new("/miner")), ledger, round, dir)
}

/// The delta in `dir` as a miner sends it, out of `place`.
pub fn stage_in(place: &Place, ledger: &Ledger, round: u64, dir: &Path) -> Staged {
    let layout = ledger.layout().expect("a ledger's model");
    let expected = Expected { layout: &layout, rule: ledger.rule(), round };
    place.files.create_dir_all(&place.tmp()).expect("an empty disk");
    match admit_segments(dir, expected, place, "stage").expect("a disk that takes it") {
        NativeAdmission::Stored { delta, .. } => {
            Staged::open(place, &layout, delta).expect("it was stored")
        }
        NativeAdmission::Malformed(refusal) => panic!("{refusal}"),
    }
}

/// Stores the delta in `dir` and signs for it as the command does: by the newest state.
pub fn hand_in(
    ledger: &Ledger,
    round: u64,
    number: u8,
    dir: &Path,
    signatures: &Signatures,
) -> Result<SignedStatement, LedgerError> {
    let layout = ledger.layout()?;
    let expected = Expected { layout: &layout, rule: ledger.rule(), round };
    let (delta, refused) = match admit_segments(dir, expected, ledger.place(), "submit")? {
        NativeAdmission::Stored { delta, refused } => (delta, refused),
        NativeAdmission::Malformed(refusal) => panic!("{refusal}"),
    };
    let statement = statement(ledger.run_id(), round, ledger.newest().root, delta, number);
    let signature = signatures.of(&statement, number);
    Ok(SignedStatement { statement, signature, delta, refused })
}
