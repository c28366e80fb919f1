//! Samples find what they draw, and read hardly more than that.

use super::*;

#[test]
fn a_sample_of_all_pieces_finds_what_the_whole_audit_finds() {
    let (run, _) = sealed(320);
    let trust = trust(rounds_key(&run));
    let sample = |count: u64, plan: bool| AuditOptions {
        sample: Some((count, b"seed".to_vec())),
        plan,
        ..Default::default()
    };
    let honest = audited(&run.path(), &sample(99, true), &trust);
    let undone = with(&honest.checks, Status::NotDone);
    assert_eq!(undone, [Check::Acceptances, Check::Refusals], "{:#?}", honest.checks);
    let view = honest.scope.sample.unwrap();
    // Three pieces of a.weight and one of b.bias, in two rounds; the skipped tensor's witness besides.
    assert_eq!((view.pieces, view.of), (8, 8));
    assert_eq!(view.missed[4].probability, "0.000000");
    let without = audited(&run.path(), &sample(99, false), &trust);
    assert!(with(&without.checks, Status::NotDone).contains(&Check::Plan));
    assert_eq!(without.verdict, Verdict::Incomplete);

    with_a_wrong_piece(&run, 2);
    for options in [sample(99, true), AuditOptions::default()] {
        let report = audited(&run.path(), &options, &trust);
        assert_eq!(with(&report.checks, Status::Failed), [Check::Fold], "{:#?}", report.checks);
        let line = report.checks.iter().find(|line| line.check == Check::Fold).unwrap();
        assert_eq!(line.found, 1);
        let text = format!("{:?}", line.findings[0]);
        assert!(text.contains("a.weight") && text.contains('2'), "{text}");
    }
    let mut found = 0;
    for seed in 0..20u8 {
        let options = AuditOptions { sample: Some((4, vec![seed])), ..Default::default() };
        found += u32::from(audited(&run.path(), &options, &trust).verdict == Verdict::Mismatch);
    }
    // One wrong piece of 8, half of them drawn.
    assert!((3..=17).contains(&found), "{found} of 20 samples found it");
}

/// The disk, counting the bytes that are read below `segments/` and below `hashes/`.
#[derive(Default)]
struct Counting {
    tensors: Arc<AtomicU64>,
    deltas: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
}

struct CountingFile(Arc<dyn ReadFile>, Arc<AtomicU64>);

impl ReadFile for CountingFile {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buffer, offset)
    }
}

impl Files for Counting {
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn WriteFile>> {
        panic!("an audit writes {}", path.display())
    }
    fn create_secret(&self, path: &Path) -> std::io::Result<Box<dyn WriteFile>> {
        self.create(path)
    }
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn ReadFile>> {
        let text = path.to_str().unwrap();
        let counter = match () {
            () if text.contains("/segments/tensors/") => &self.tensors,
            () if text.contains("/segments/deltas/") => &self.deltas,
            () => &self.others,
        };
        Ok(Arc::new(CountingFile(Disk.open(path)?, counter.clone())))
    }
    fn rename(&self, _: &Path, to: &Path) -> std::io::Result<()> {
        panic!("an audit renames {}", to.display())
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit removes {}", path.display())
    }
    fn remove_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.remove(path)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit makes {}", path.display())
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        panic!("an audit syncs {}", path.display())
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<PathBuf>> {
        Disk.list(path)
    }
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        Disk.exists(path)
    }
}

#[test]
fn a_sample_reads_hardly_more_than_the_pieces_it_must_touch() {
    let mut random = Random(3);
    let shape = [4096, 1024];
    let tensors = vec![Tensor::random("w", &shape, &mut random)];
    let model = Model { tensors, rule: rule(Dialect::Templar, 64, 64, 4) };
    let run = Run::new(&model);
    for uid in [1, 2, 3] {
        let delta = model.delta(&mut random);
        run.put(1, uid, &Gradient::of(&model, 1, &delta).write());
    }
    run.import(1, &[1, 2, 3], &[]);
    run.seal(1);
    let ledger = run.open();
    let layout = ledger.layout().unwrap();
    let tensor = &layout.tensors[0];
    for count in [1, 8, 40] {
        let files = Counting::default();
        let (tensors, deltas, others) =
            (files.tensors.clone(), files.deltas.clone(), files.others.clone());
        let options = AuditOptions { sample: Some((count, vec![1])), ..Default::default() };
        let trust = trust(rounds_key(&run));
        let report = audit(Arc::new(files), &run.path(), &options, &trust, &Silent).unwrap();
        assert_eq!(with(&report.checks, Status::Failed), []);
        let drawn = gradledger::audit::sample::draw(&[1], count, 256);
        let mut touched = std::collections::BTreeSet::new();
        let mut base = 0;
        for piece in drawn {
            base += 65_536;
            for run in runs(&tensor.grid, piece) {
                for (column, width) in
                    [(0, tensor.index_bytes_per_block()), (1, tensor.code_bytes_per_block())]
                {
                    let bytes = tensor.grid.blocks() * width;
                    let (from, to) =
                        (run.first_block * width, (run.first_block + run.blocks) * width);
                    for piece in from / 65_536..=(to - 1) / 65_536 {
                        touched.insert((column, piece, (bytes - piece * 65_536).min(65_536)));
                    }
                }
            }
        }
        let rows: u64 = touched.iter().map(|(_, _, bytes)| bytes).sum();
        let must = base + 3 * rows;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let read = load(&tensors) + load(&deltas);
        println!(
            "{count} pieces: must touch {must}, read {read} of segments ({:.3}), {} of logs and hashes",
            read as f64 / must as f64,
            load(&others)
        );
        assert!(read as f64 <= 1.1 * must as f64, "{read} of {must}");
    }
}
