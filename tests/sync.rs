//! `sync`: the real program against servers that are honest, slow to have things, or liars.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, all_files, copy_all, rule},
    server::{Act, Asked, Server},
    signed::program,
};
use gradledger::{
    ledger::{At, Ledger, check::check_round},
    types::{progress::Silent, rule::Dialect, tensor::Dtype},
};
use serde_json::Value;
use tempfile::TempDir;

const ROUNDS: [u64; 4] = [5, 8, 9, 12];

/// Four rounds of one miner. A state has 9 MiB, of which a round changes 8; a delta has 3.6.
fn run() -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| {
        let mut random = Random(31);
        let frozen = (0..1 << 20).map(|_| random.next() as u8).collect();
        let tensors = vec![
            Tensor::random("a.weight", &[2048, 1000], &mut random),
            Tensor::random("b.bias", &[100], &mut random),
            Tensor::new("c.table", Dtype::I64, &[1 << 17], frozen),
        ];
        let model = Model { tensors, rule: rule(Dialect::Templar, 8, 64, 4) };
        let run = Run::frozen(&model, true).unwrap().0;
        for round in ROUNDS {
            run.put(round, 3, &Gradient::of(&model, round, &model.delta(&mut random)).write());
            run.import(round, &[3], &[]);
            run.seal(round);
        }
        run
    })
}

/// A copy of the run's ledger, to be thinned or damaged.
fn other(change: impl FnOnce(&Path)) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    copy_all(&run().path(), &path);
    change(&path);
    (dir, path)
}

fn thinned(keep_every: &str) -> (TempDir, PathBuf) {
    other(|path| {
        let gc = program(&["gc", path.to_str().unwrap(), "--keep-every", keep_every]).output();
        assert!(gc.unwrap().status.success());
    })
}

struct Joiner {
    dir: TempDir,
}

impl Joiner {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn command(&self, urls: &[&str], options: &[&str]) -> Command {
        let mut command = program(&["sync"]);
        command.args(urls).arg(self.path()).args(options).arg("--json");
        command
    }

    fn run(&self, urls: &[&str], options: &[&str]) -> Output {
        let output = self.command(urls, options).output().unwrap();
        assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
        output
    }

    fn sync(&self, urls: &[&str], options: &[&str]) -> Value {
        let output = self.run(urls, options);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fails(&self, code: i32, urls: &[&str], options: &[&str]) -> String {
        let output = self.run(urls, options);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    /// That the copy has the state after `round`, bit for bit, by its own `export`.
    fn has(&self, round: &str) {
        let sums = |ledger: &Path, out: &str| {
            let out = self.dir.path().join(out);
            let output = program(&["export", "--round", round, "--json"])
                .arg(ledger)
                .arg("--out")
                .arg(&out)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            let sums = fs::read_to_string(out.join("SHA256SUMS")).unwrap();
            fs::remove_dir_all(out).unwrap();
            sums
        };
        assert_eq!(sums(&self.path(), "here"), sums(&run().path(), "there"));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn root(at: At) -> String {
    run().open().state(at).unwrap().root.to_hex()
}

#[test]
fn a_joiner_ends_at_the_exact_root_with_a_copy_that_reads_as_a_ledger() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    let since = Instant::now();
    let mut child = joiner
        .command(&[&server.url()], &[])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut first).unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert!(child.wait().unwrap().success());
    joiner.has("12");
    let show = |ledger: &Path| -> Value {
        let output = program(&["show", "--json"]).arg(ledger).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (copy, original) = (show(&joiner.path()), show(&run().path()));
    for same in ["run_id", "head", "rounds", "log_keys"] {
        assert_eq!(copy[same], original[same], "{same}");
    }
    let log = program(&["log", "--submissions", "--json"]).arg(joiner.path()).output().unwrap();
    assert!(log.status.success());
    // Once more: only the heads are asked for.
    let before = server.bytes();
    let report = joiner.sync(&[&server.url()], &[]);
    assert_eq!((&report["taken"], number(&report["folded"])), (&Value::Null, 0));
    assert!(server.bytes() - before < 4096, "{}", server.bytes() - before);
    assert!(report["signatures"].as_str().unwrap().contains("own key only"));
}

/// Bytes of the deltas of these rounds, and of what a round changes in a state.
fn delta_bytes(positions: std::ops::Range<usize>) -> u64 {
    let ledger = run().open();
    positions.flat_map(|at| check_round(&ledger, at).unwrap().deltas).map(|(_, id)| id.bytes).sum()
}

#[test]
fn a_joiner_behind_downloads_the_cheaper_way_and_hardly_more() {
    let server = Server::honest(&run().path());
    let changed: u64 = 4 * (2048 * 1000 + 100);
    for behind in 1..=3usize {
        let joiner = Joiner::new();
        let from = ROUNDS[3 - behind].to_string();
        joiner.sync(&[&server.url()], &["--round", &from]);
        let before = (server.bytes(), server.asked().len());
        let report = joiner.sync(&[&server.url()], &["--keep"]);
        let deltas = delta_bytes(4 - behind..4);
        let (cheaper, way) =
            if deltas < changed { (deltas, "deltas") } else { (changed, "checkpoint") };
        assert_eq!(report["taken"]["way"], way, "{behind} behind: {report:#}");
        let network = server.bytes() - before.0;
        println!("{behind} rounds behind: {way}, {cheaper} bytes, {network} from the network");
        assert!(network * 100 <= cheaper * 101, "{behind} behind: {network} for {cheaper}");
        assert_eq!(number(&report["network_bytes"]), network);
        // What was counted beforehand is what came.
        let counted = number(&report["taken"]["bytes"]);
        assert!(counted.abs_diff(network) * 100 <= network, "{counted} counted, {network} came");
        assert_eq!(report["ways"].as_array().unwrap().len(), 2);
        // The frozen tensor was there: its file was not asked for again.
        let frozen = run().open().checkpoint(run().open().newest()).unwrap();
        let frozen = frozen.manifest().find("weights", "c.table").unwrap().root.to_hex();
        assert!(!server.asked()[before.1..].iter().any(|asked| asked.path.contains(&frozen)));
        joiner.has("12");
        if way == "deltas" {
            let rounds = format!("{}..12", ROUNDS[4 - behind]);
            let replayed = program(&["replay", "--round", &rounds, "--json"])
                .arg(joiner.path())
                .output()
                .unwrap();
            assert!(replayed.status.success(), "{}", text(&replayed.stderr));
        }
    }
}

#[test]
fn a_state_that_no_server_keeps_is_folded_from_an_older_one() {
    let (_dir, ledger) = thinned("2");
    let (server, joiner) = (Server::honest(&ledger), Joiner::new());
    let report = joiner.sync(&[&server.url()], &["--round", "9"]);
    assert_eq!(report["taken"]["way"], "checkpoint");
    assert_eq!((number(&report["taken"]["from"]["round"]), number(&report["folded"])), (8, 1));
    assert_eq!(report["state"]["root"], root(At::Round(9)));
    joiner.has("9");
    // Only that state stays.
    let kept = all_files(&joiner.path().join("segments"));
    assert_eq!(kept.len(), 3, "{kept:?}");
    let report = joiner.sync(&[&server.url()], &["--round", "genesis"]);
    assert_eq!(report["state"]["round"], Value::Null);
    joiner.has("genesis");
}

#[test]
fn a_sync_killed_twenty_times_downloads_hardly_more() {
    // Enough bytes that a request is a thousandth of them.
    let mut random = Random(8);
    let mut tensors: Vec<Tensor> = (0..6)
        .map(|i| {
            let bytes = (0..16 << 20).map(|_| random.next() as u8).collect();
            Tensor::new(&format!("t{i}"), Dtype::I64, &[2 << 20], bytes)
        })
        .collect();
    tensors.push(Tensor::random("a.weight", &[8, 8], &mut random));
    let model = Model { tensors, rule: rule(Dialect::Templar, 8, 4, 4) };
    let big = Run::frozen(&model, true).unwrap().0;
    let options = ["--connections", "1"];
    let (server, joiner) = (Server::honest(&big.path()), Joiner::new());
    joiner.sync(&[&server.url()], &options);
    let undisturbed = server.bytes();

    let (server, joiner) = (Server::honest(&big.path()), Joiner::new());
    let step = undisturbed / 21;
    for kill in 1..=20u64 {
        let mut child = joiner
            .command(&[&server.url()], &options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = kill * step + random.below(step / 2);
        let since = Instant::now();
        while server.bytes() < until {
            assert!(child.try_wait().unwrap().is_none(), "it ended before kill {kill}");
            assert!(since.elapsed() < Duration::from_secs(60), "kill {kill}");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let report = joiner.sync(&[&server.url()], &options);
    assert!(number(&report["resumed_bytes"]) > 0);
    let killed = server.bytes();
    println!("undisturbed {undisturbed}, killed 20 times {killed}");
    assert!(killed * 100 <= undisturbed * 102, "{killed} for {undisturbed}");
    let ledger = Ledger::open(&joiner.path()).unwrap();
    let state = ledger.checkpoint(ledger.newest()).unwrap();
    for position in 0..7 {
        state.tensor(position).unwrap().verify_to_end(&Silent).unwrap();
    }
    assert!(all_files(&joiner.path().join("sync")).iter().all(|path| path.ends_with("boot")));
}

#[test]
fn a_lying_mirror_is_named_and_the_result_is_exact() {
    // Slow, so that there is something left to ask the liar for.
    let honest = Server::start(&run().path(), |asked| match asked.path.starts_with("segments/") {
        true => Act::Silent(Duration::from_millis(5)),
        false => Act::Honest,
    });
    type Lie = fn(&Asked) -> Act;
    let lies: [(&str, Lie); 5] = [
        ("segments", |asked| match asked.range {
            Some((Some(first), _)) if asked.path.starts_with("segments/") => {
                Act::Flip { at: first + 100 }
            }
            _ => Act::Honest,
        }),
        ("footers", |asked| match asked.range {
            Some((None, _)) if asked.path.starts_with("segments/") => {
                Act::Say(206, vec!["Content-Range: bytes 0-7/8".into()], b"PAR1PAR1".to_vec())
            }
            _ => Act::Honest,
        }),
        ("hashes", |asked| match asked.path.starts_with("hashes") {
            true => Act::Flip { at: 40 },
            false => Act::Honest,
        }),
        ("log", |asked| match asked.path.contains("log/rounds/tile/entries") {
            true => Act::Flip { at: 300 },
            false => Act::Honest,
        }),
        ("head", |asked| match asked.path.ends_with("rounds/checkpoint") {
            true => Act::Flip { at: 30 },
            false => Act::Honest,
        }),
    ];
    for (what, lie) in lies {
        let (liar, joiner) = (Server::start(&run().path(), lie), Joiner::new());
        let output = joiner.run(&[&liar.url(), &honest.url()], &[]);
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [first, second] = &report["mirrors"].as_array().unwrap()[..] else { panic!() };
        assert!(first["url"] == liar.url().as_str() && second["dropped"].is_null(), "{what}");
        assert!(!first["dropped"].is_null(), "{what}: {report:#}");
        assert_eq!(first["lied"], true, "{what}: {report:#}");
        let said = text(&output.stderr);
        assert!(
            said.contains(&format!("mirror {} lies and is left", liar.url())),
            "{what}: {said}"
        );
        joiner.has("12");
        // Alone, it leads nowhere, and the copy goes on with an honest one.
        let alone = Joiner::new();
        let said = alone.fails(20, &[&liar.url()], &[]);
        assert!(said.contains(&liar.url()), "{what}: {said}");
        alone.sync(&[&honest.url()], &[]);
        alone.has("12");
    }
}

/// A mirror without a tensor.
fn lacking() -> Server {
    Server::start(&run().path(), |asked| match asked.path.starts_with("segments/tensors") {
        true => Act::Say(404, vec![], vec![]),
        false => Act::Honest,
    })
}

#[test]
fn mirrors_that_lack_things_or_fail_are_gone_around() {
    let lacking = lacking();
    let joiner = Joiner::new();
    let said = joiner.fails(1, &[&lacking.url()], &[]);
    assert!(said.contains("no mirror has"), "{said}");
    let busy = Server::start(&run().path(), |asked| match asked.number % 10 {
        2 => Act::Say(503, vec!["Retry-After: 0".into()], vec![]),
        7 => Act::Cut,
        _ => Act::Honest,
    });
    let report = joiner.sync(&[&lacking.url(), &busy.url()], &[]);
    assert!(
        report["mirrors"].as_array().unwrap().iter().all(|m| m["dropped"].is_null()),
        "{report:#}"
    );
    joiner.has("12");
    let gone = { Server::honest(&run().path()).url() };
    let report = joiner.sync(&[&gone, &busy.url()], &["--round", "8"]);
    assert!(report["mirrors"][0]["dropped"].as_str().unwrap().contains("cannot be reached"));
    assert_eq!(report["mirrors"][0]["lied"], false);
    joiner.has("8");
}

#[test]
fn trust_comes_from_outside_and_another_log_is_never_followed() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    let key = run().open().genesis().log_keys.rounds.clone();
    let model = Model::small(Dialect::Templar);
    let stranger = Run::new(&model);
    let strange = stranger.open().genesis().log_keys.rounds.clone();
    let said = joiner.fails(21, &[&server.url()], &["--log-key", &strange]);
    assert!(said.contains("not signed"), "{said}");
    let report = joiner.sync(&[&server.url()], &["--log-key", &key]);
    assert_eq!(report["signatures"], "the keys given");
    let kept = joiner.path();
    let before: Vec<_> = all_files(&kept).iter().map(|path| fs::read(path).unwrap()).collect();
    let other_run = Server::honest(&stranger.path());
    let said = joiner.fails(20, &[&other_run.url()], &[]);
    assert!(said.contains(&other_run.url()), "{said}");
    let after: Vec<_> = all_files(&kept).iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(before == after, "the copy is as it was");
    let report = joiner.sync(&[&server.url(), &other_run.url()], &[]);
    assert!(
        report["mirrors"][1]["dropped"].as_str().unwrap().contains("another log"),
        "{report:#}"
    );
}

#[test]
fn a_server_that_is_behind_takes_nothing_back() {
    let joiner = Joiner::new();
    let model = Model::small(Dialect::Templar);
    let run = Run::new(&model);
    let seal = |round: u64| {
        run.put(round, 3, &Gradient::of(&model, round, &model.delta(&mut Random(round))).write());
        run.import(round, &[3], &[]);
        run.seal(round);
    };
    seal(1);
    let behind = tempfile::tempdir().unwrap();
    copy_all(&run.path(), &behind.path().join("ledger"));
    seal(2);
    let (new, old_server) =
        (Server::honest(&run.path()), Server::honest(&behind.path().join("ledger")));
    let report = joiner.sync(&[&old_server.url()], &[]);
    assert_eq!(number(&report["state"]["round"]), 1);
    let report = joiner.sync(&[&old_server.url(), &new.url()], &[]);
    assert_eq!(number(&report["state"]["round"]), 2);
    let report = joiner.sync(&[&old_server.url()], &[]);
    assert_eq!(number(&report["state"]["round"]), 2, "what is known stays known");
}

#[test]
fn after_a_reboot_what_is_here_is_hashed_again() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    joiner.sync(&[&server.url()], &["--round", "9"]);
    let tensors = all_files(&joiner.path().join("segments/tensors"));
    let largest = tensors.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(largest, bytes).unwrap();
    fs::write(joiner.path().join("sync/boot"), "another").unwrap();
    let output = joiner.run(&[&server.url()], &["--round", "9"]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("is damaged and is fetched again"));
    joiner.has("9");
}

/// Exit code, what was said, and the document if there is one.
fn fsck(copy: &Path) -> (i32, String, Value) {
    let output = program(&["fsck", "--json"]).arg(copy).output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), text(&output.stderr), document)
}

#[test]
fn fsck_checks_what_a_copy_holds_and_asks_for_nothing_else() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    joiner.sync(&[&server.url()], &["--round", "9"]);
    let (code, said, report) = fsck(&joiner.path());
    assert_eq!(code, 0, "{said}");
    let all = |report: &Value| {
        ["checkpoints", "deltas", "rounds", "dropped"].map(|name| number(&report[name]))
    };
    assert_eq!((all(&report), &report["copy"]), ([1, 0, 0, 0], &true.into()));
    let text_of = program(&["fsck"]).arg(joiner.path()).output().unwrap();
    assert!(text(&text_of.stdout).starts_with("what this copy holds agrees"));
    // What is not here is named, with what is and how to come by it.
    for (what, words) in [
        ("the state after round 12", vec!["export", "--round", "12", "--out", "OUT"]),
        ("the state after round 5", vec!["export", "--round", "5", "--out", "OUT"]),
        ("the genesis", vec!["export", "--round", "genesis", "--out", "OUT"]),
        ("the state after round 8", vec!["replay", "--round", "8"]),
        ("the state after round 5", vec!["diff", "--from", "5", "--to", "9"]),
    ] {
        let out = joiner.dir.path().join("out");
        let words: Vec<_> = words
            .iter()
            .map(|word| if *word == "OUT" { out.to_str().unwrap() } else { word })
            .collect();
        let output = program(&words).arg(joiner.path()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains(&format!("{what} is not in this copy")), "{words:?}: {said}");
        assert!(said.contains("holds the state after round 9"), "{words:?}: {said}");
    }
    let gc = program(&["gc", "--dry-run"]).arg(joiner.path()).output().unwrap();
    assert!(gc.status.code() == Some(2) && text(&gc.stderr).contains("is a copy"));
    // With the deltas that came, the rounds between are folded again.
    joiner.sync(&[&server.url()], &["--keep"]);
    let (code, said, report) = fsck(&joiner.path());
    assert_eq!((code, all(&report)), (0, [2, 1, 1, 0]), "{said}");
}

#[test]
fn fsck_finds_what_is_damaged_in_a_copy_and_sync_mends_it() {
    let server = Server::honest(&run().path());
    for dir in ["segments/tensors", "segments/deltas", "hashes"] {
        for gone in [false, true] {
            let joiner = Joiner::new();
            joiner.sync(&[&server.url()], &["--round", "9"]);
            joiner.sync(&[&server.url()], &["--keep"]);
            let files = all_files(&joiner.path().join(dir)).into_iter();
            let path = files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            if gone {
                fs::remove_file(&path).unwrap()
            } else {
                fs::write(&path, bytes).unwrap()
            }
            let (code, said, _) = fsck(&joiner.path());
            // A delta without one of its files is another one.
            let expected = if gone && dir != "segments/deltas" { 1 } else { 20 };
            assert_eq!(code, expected, "{dir}, gone {gone}: {said}");
            assert!(said.contains("is not whole in this copy"), "{dir}, gone {gone}: {said}");
            let boot = joiner.path().join("sync/boot");
            assert!(said.contains(&format!("Remove {}", boot.display())), "{said}");
            fs::remove_file(boot).unwrap();
            joiner.sync(&[&server.url()], &["--keep"]);
            let (code, said, _) = fsck(&joiner.path());
            assert_eq!(code, 0, "{dir}, gone {gone}: {said}");
            joiner.has("12");
        }
    }
}

#[test]
fn a_copy_without_a_state_yet_says_so() {
    let lacking = lacking();
    let joiner = Joiner::new();
    joiner.fails(1, &[&lacking.url()], &[]);
    let (code, said, _) = fsck(&joiner.path());
    assert!(code == 2 && said.contains("it holds no state yet"), "{said}");
}

#[test]
fn a_copy_that_is_served_is_a_mirror_for_others() {
    let (server, first) = (Server::honest(&run().path()), Joiner::new());
    first.sync(&[&server.url()], &["--round", "9"]);
    let (mirror, second) = (Serving::start(&first.path()), Joiner::new());
    let report = second.sync(&[&mirror.1], &["--round", "9"]);
    assert_eq!(
        (&report["state"]["root"], number(&report["folded"])),
        (&root(At::Round(9)).into(), 0)
    );
    second.has("9");
    // What it does not hold, nor its deltas, comes from elsewhere or not at all.
    let said = second.fails(1, &[&mirror.1], &["--round", "12"]);
    assert!(said.contains("no mirror has"), "{said}");
    second.sync(&[&mirror.1, &server.url()], &["--round", "12"]);
    second.has("12");
}

#[test]
fn what_is_no_copy_is_left_alone_and_a_second_sync_waits_its_turn() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    fs::create_dir(joiner.path()).unwrap();
    fs::write(joiner.path().join("thesis.tex"), "x").unwrap();
    assert!(joiner.fails(2, &[&server.url()], &[]).contains("neither a copy"));
    let output = program(&["sync", &server.url()]).arg(run().path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a ledger is no copy");
    assert_eq!(all_files(&joiner.path()).len(), 1);
    let joiner = Joiner::new();
    assert!(joiner.fails(2, &["ftp://x"], &[]).contains("neither http nor https"));
    let empty = tempfile::tempdir().unwrap();
    let nothing = Server::honest(empty.path());
    joiner.fails(10, &[&nothing.url()], &[]);
    assert!(joiner.fails(2, &[&server.url()], &["--round", "7"]).contains("no round 7"));
}

/// The program's own server, until it is dropped.
struct Serving(std::process::Child, String);

impl Serving {
    fn start(ledger: &Path) -> Self {
        let mut child =
            program(&["serve", "--json", "--listen", "127.0.0.1:0", "--metrics", "off"])
                .arg(ledger)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        let mut documents = serde_json::Deserializer::from_reader(child.stdout.take().unwrap())
            .into_iter::<Value>();
        let document = documents.next().unwrap().unwrap();
        let url = format!("http://{}", document["listen"].as_str().unwrap());
        Self(child, url)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_own_server_serves_a_joiner_an_auditor_and_an_export() {
    let (_dir, ledger) = thinned("2");
    let (server, joiner) = (Serving::start(&ledger), Joiner::new());
    let key = run().open().genesis().log_keys.rounds.clone();
    let report = joiner.sync(&[&server.1], &["--round", "9", "--log-key", &key]);
    assert_eq!(number(&report["folded"]), 1);
    joiner.sync(&[&server.1], &["--log-key", &key]);
    joiner.has("12");
    let report = |ledger: &str| -> Value {
        let output = program(&["audit", ledger, "--json", "--log-key", &key]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report.as_object_mut().unwrap().remove("run");
        report
    };
    assert_eq!(report(&server.1), report(ledger.to_str().unwrap()));
    let out = joiner.dir.path().join("out");
    let export =
        program(&["export", &server.1, "--round", "12", "--out"]).arg(&out).output().unwrap();
    assert!(export.status.success(), "{}", text(&export.stderr));
}

#[test]
fn a_fork_that_the_same_key_signed_is_not_followed() {
    let model = Model::small(Dialect::Templar);
    let ours = Run::new(&model);
    let seal = |run: &Run, round: u64, seed: u64| {
        run.put(round, 3, &Gradient::of(&model, round, &model.delta(&mut Random(seed))).write());
        run.import(round, &[3], &[]);
        run.seal(round);
    };
    seal(&ours, 1, 1);
    // A copy with its keys goes on in another way.
    let theirs = Run { dir: tempfile::tempdir().unwrap() };
    copy_all(&ours.path(), &theirs.path());
    seal(&ours, 2, 2);
    seal(&theirs, 2, 3);
    seal(&theirs, 3, 4);
    let (server, fork) = (Server::honest(&ours.path()), Server::honest(&theirs.path()));
    let key = ours.open().genesis().log_keys.rounds.clone();
    let joiner = Joiner::new();
    joiner.sync(&[&server.url()], &["--log-key", &key]);
    let said = joiner.fails(20, &[&fork.url()], &["--log-key", &key]);
    assert!(said.contains("the root of 3 entries") || said.contains("entries is"), "{said}");
    let report = joiner.sync(&[&fork.url(), &server.url()], &["--log-key", &key]);
    assert_eq!(report["mirrors"][0]["lied"], true, "{report:#}");
    assert_eq!(report["state"]["root"], ours.open().newest().root.to_hex());
}

#[test]
fn a_sync_killed_at_any_moment_ends_at_the_same_state() {
    let (server, joiner) = (Server::honest(&run().path()), Joiner::new());
    let (mut random, mut ended) = (Random(3), 0);
    for (number, round) in ["5", "8", "5", "12", "8", "9"].into_iter().enumerate() {
        let mut kills = 0;
        let since = Instant::now();
        loop {
            let mut child = joiner
                .command(&[&server.url()], &["--round", round])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Each life is longer than the one before, so that one comes to its end.
            thread::sleep(Duration::from_millis(random.below(200 + 400 * kills)));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "round {round}, after {kills} kills");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            assert!(since.elapsed() < Duration::from_secs(120), "{number}: {kills} kills");
        }
        ended += kills;
        joiner.has(round);
    }
    println!("{ended} kills");
    assert!(ended >= 6);
}
