//! Does a server anchor what it serves, once each head, whatever fails or is killed meanwhile? Are its
//! anchors judged like those of a directory?
//!
//! It anchors in a text file; what a chain does is tested in `tests/anchor.rs`.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "common/chain.rs"]
mod chain;
mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use chain::{HOTKEY, NETUID, TestChain};
use common::{
    Random,
    desk::{Desk, Run},
    model::{self, Model, copy_all},
    served::{self, Served, connect, head, read_reply},
};
use gradledger::{
    http::anchoring::{AnchorEvery, Anchorer},
    ledger::{
        anchor::{AnchorOptions, OpenChain, anchor},
        anchored::{AnchorTrust, Finality, judge_all, own_heads},
        fsck::fsck,
        import::{Gradients, Peers, import_templar},
        seal::{FoldOptions, seal},
        turns::Visits,
        writer::LedgerWriter,
    },
    store::anchors,
    types::{progress::Silent, rule::Dialect},
};
use gradledger_anchor::receipt::Proof;
use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// A run whose heads go into a text file.
struct Anchored {
    run: Run,
    file: PathBuf,
}

impl Anchored {
    fn new() -> Self {
        let run = Run::new(1, 64);
        let file = run.path("anchors.txt");
        Self { run, file }
    }

    fn serve(&self, more: &str) -> Desk {
        self.run.start(&format!(
            "serve LEDGER --uploads --listen 127.0.0.1:0 --metrics 127.0.0.1:0 --json --anchor \
             --anchor-file {}{more}",
            self.file.display()
        ))
    }

    fn seal(&self, round: u64) {
        self.run.document(&format!("seal LEDGER --round {round} --json"), "");
    }

    /// What was anchored, oldest first.
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < WAIT_MAX, "{what}: {}", self.run.log());
            thread::sleep(Duration::from_millis(30));
        }
    }

    fn until_anchored(&self) {
        self.until("anchored", || self.run.open().unanchored().is_empty());
    }

    /// That the file has a line an anchor of the log, none twice, each a head of the log with a receipt.
    fn check(&self) {
        let (ledger, lines) = (self.run.open(), self.lines());
        let told: Vec<_> = ledger.anchors().iter().map(|a| a.record.value.to_string()).collect();
        assert_eq!(told, lines);
        assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), lines.len(), "no head twice");
        let own = own_heads(&ledger).unwrap();
        assert!(lines.iter().all(|line| own.contains_key(&line.parse().unwrap())));
        let view = judge_all(&ledger, AnchorTrust::default()).unwrap();
        assert_eq!((view.receipts.len(), view.without_receipt.len()), (lines.len(), 0));
        fsck(&ledger, FoldOptions::default(), &Silent).unwrap();
    }
}

/// The number that a server tells under this name.
fn metric(desk: &Desk, name: &str) -> u64 {
    let mut stream = connect(desk.metrics.unwrap());
    write!(stream, "{}", head("GET", "/metrics", &[], true)).unwrap();
    let text = read_reply(&mut stream, "GET").unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("gradledger_{name} ")));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

fn get(desk: &Desk, path: &str) -> (u16, Vec<u8>) {
    let mut stream = connect(desk.url.trim_start_matches("http://").parse().unwrap());
    write!(stream, "{}", head("GET", path, &[], true)).unwrap();
    let reply = read_reply(&mut stream, "GET").unwrap();
    (reply.status, reply.body)
}

fn document(desk: &Desk, path: &str) -> Value {
    let (status, body) = get(desk, path);
    assert_eq!(status, 200, "{path}");
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn heads_are_anchored_while_they_are_served_and_the_lag_is_told() {
    let it = Anchored::new();
    let desk = it.serve(" --anchor-every 2 --log info");
    it.seal(1);
    it.until("one round waits", || metric(&desk, "anchor_lag_rounds") == 1);
    // Longer than it takes to look again: one round is too few.
    it.until("it waits for seconds", || metric(&desk, "anchor_lag_seconds") >= 2);
    assert!(it.lines().is_empty());
    let view = document(&desk, "/v1/ledger");
    assert_eq!((&view["anchor"], &view["unanchored_rounds"]), (&Value::Null, &1.into()));
    it.seal(2);
    it.until_anchored();
    it.check();
    it.until("no lag", || metric(&desk, "anchor_lag_rounds") == 0);
    assert_eq!(
        (metric(&desk, "anchor_lag_seconds"), metric(&desk, "anchor_failures_total")),
        (0, 0)
    );
    let view = document(&desk, "/v1/ledger");
    assert_eq!((&view["anchor"]["size"], &view["unanchored_rounds"]), (&3.into(), &0.into()));
    assert_eq!(document(&desk, "/v1/anchors")["anchors"][0]["receipt"], true);
    let receipt = fs::read(it.run.ledger().join("anchors/3.json")).unwrap();
    for path in ["/v1/anchors/3", "/v1/files/anchors/3.json"] {
        assert_eq!(get(&desk, path), (200, receipt.clone()));
    }
    // The next two rounds, while it goes on.
    it.seal(3);
    it.seal(4);
    it.until_anchored();
    it.check();
    assert_eq!(it.lines().len(), 2);
    let log = it.run.log();
    assert!(log.contains("anchored") && log.contains("waited_seconds="), "{log}");
    assert!(desk.end());
}

#[test]
fn a_place_that_fails_stops_nothing_and_is_tried_again() {
    let mut it = Anchored::new();
    it.file = it.run.path("not-there").join("anchors.txt");
    let desk = it.serve(" --log warn");
    it.seal(1);
    it.until("it failed", || metric(&desk, "anchor_failures_total") >= 1);
    assert_eq!(get(&desk, "/readyz").0, 200);
    it.seal(2);
    assert_eq!(metric(&desk, "anchor_lag_rounds"), 2);
    let log = it.run.log();
    assert!(log.contains("not anchored") && log.contains("retry_seconds=2"), "{log}");
    fs::create_dir(it.run.path("not-there")).unwrap();
    it.until_anchored();
    // The transaction that failed was taken up, then the newer head came.
    assert_eq!(it.lines().len(), 2);
    it.check();
    assert!(desk.end());
}

#[test]
fn killed_between_submission_and_receipt_a_server_commits_once() {
    let it = Anchored::new();
    // Where the receipt is to be written first.
    let obstacle = it.run.ledger().join("anchors/2.json.new");
    fs::create_dir_all(&obstacle).unwrap();
    let desk = it.serve(" --log warn");
    it.seal(1);
    it.until("it failed", || metric(&desk, "anchor_failures_total") >= 1);
    desk.kill();
    assert_eq!((it.lines().len(), it.run.open().anchors().len()), (1, 0));
    fs::remove_dir(&obstacle).unwrap();
    let desk = it.serve(" --log info");
    it.until_anchored();
    it.check();
    assert_eq!(it.lines().len(), 1);
    it.until("it is told", || it.run.log().contains("resumed=true"));
    assert!(desk.end());
}

#[test]
fn killed_at_any_moment_a_server_commits_to_no_head_twice() {
    let seed = 20_261_128;
    println!("seed {seed}");
    let (it, mut random) = (Anchored::new(), Random(seed));
    for round in 1..=8 {
        let desk = it.serve(" --log error");
        it.seal(round);
        thread::sleep(Duration::from_millis(random.below(1_300)));
        desk.kill();
    }
    let desk = it.serve(" --log warn");
    it.until_anchored();
    it.check();
    assert!(desk.end());
    it.check();
}

#[test]
fn a_server_without_uploads_leaves_the_writer_to_others() {
    let it = Anchored::new();
    let config = format!("[serve.anchor]\nenabled = true\nfile = {:?}\n", it.file);
    fs::write(it.run.ledger().join("gradledger.toml"), config).unwrap();
    let desk =
        it.run.start("serve LEDGER --listen 127.0.0.1:0 --metrics 127.0.0.1:0 --json --log warn");
    let mut writer = LedgerWriter::open(&it.run.ledger(), None).unwrap();
    seal(&mut writer, 1, FoldOptions::default(), &Silent).unwrap();
    it.until("another process writes", || metric(&desk, "anchor_failures_total") >= 1);
    assert!(it.lines().is_empty());
    drop(writer);
    it.until_anchored();
    it.check();
    // Nobody holds it now, though the server runs.
    seal(
        &mut LedgerWriter::open(&it.run.ledger(), None).unwrap(),
        2,
        FoldOptions::default(),
        &Silent,
    )
    .unwrap();
    it.until_anchored();
    it.check();
    assert!(desk.end());
}

#[test]
fn an_anchor_to_nowhere_is_refused_before_it_serves() {
    let run = Run::new(1, 64);
    let refused = |more: &str, why: &str| {
        let output = run.run(&format!("serve LEDGER --listen 127.0.0.1:0 --metrics off{more}"), "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(why), "{more}: {said}");
    };
    refused(" --anchor", "anchor where?");
    let node = " --endpoint ws://127.0.0.1:1 --netuid 3 --hotkey KEY1";
    refused(node, "add --anchor");
    if cfg!(not(feature = "chain")) {
        refused(&format!(" --anchor{node}"), "--features chain");
    }
}

/// Judges with everything that an auditor knows; code and document.
fn verify(chain: &TestChain, authorities: &Path, target: &str, more: &[&str]) -> (i32, Value) {
    fs::write(authorities, serde_json::to_vec(&chain.authorities()).unwrap()).unwrap();
    let genesis = chain.anchor_place().chain_genesis.to_string();
    let (netuid, hotkey) = (NETUID.to_string(), HOTKEY.to_string());
    let place = ["--genesis", &genesis, "--netuid", &netuid, "--hotkey", &hotkey];
    let output = Command::new(env!("CARGO_BIN_EXE_gradledger"))
        .args(["anchor", "verify", target, "--json", "--authorities"])
        .arg(authorities)
        .args(place)
        .args(more)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::String(said));
    (output.status.code().unwrap(), document)
}

#[test]
fn anchors_behind_a_url_are_judged_like_those_in_a_directory() {
    let (run, chain) = (model::Run::new(&Model::small(Dialect::Templar)), TestChain::new());
    let fork = run.dir.path().join("fork");
    copy_all(&run.path(), &fork);
    let seal_in = |root: &Path, uid: u16| {
        let mut writer = LedgerWriter::open(root, None).unwrap();
        let round = writer.ledger().sealed().len() as u64 + 1;
        run.put(round, uid, b"no gradient");
        let (files, peers) = (run.files(round), Peers { listed: vec![uid], reserve: vec![] });
        let from = Gradients::Directory(&files);
        import_templar(&mut writer, round, &from, Some(peers), &Silent).unwrap();
        seal(&mut writer, round, model::fold_options(), &Silent).unwrap();
    };
    seal_in(&run.path(), 7);
    for _ in 0..2 {
        anchor(&mut run.writer(), &mut chain.clone(), AnchorOptions::default(), &Silent).unwrap();
        seal_in(&run.path(), 7);
    }
    let place = run.open().place().clone();
    for size in anchors::sizes(&place).unwrap() {
        let mut receipt = anchors::load(&place, size).unwrap().unwrap();
        let Proof::Subtensor(proof) = &mut receipt.proof else { panic!("of the chain") };
        chain.justify(proof);
        anchors::save(&place, &receipt).unwrap();
    }
    let authorities = run.dir.path().join("authorities.json");
    let judged = |target: &str, more: &[&str]| verify(&chain, &authorities, target, more);
    let served = Served::start(&run.path(), served::limits());
    let url = format!("http://{}", served.address);
    let (code, document) = judged(&url, &[]);
    assert_eq!((code, document["receipts"].as_array().map(Vec::len)), (0, Some(2)), "{document}");
    assert_eq!(document["receipts"][0]["finality"], "justified");
    assert_eq!(document["exclusive"]["exclusive"], true);
    assert_eq!(judged(run.path().to_str().unwrap(), &[]), (code, document));
    // A receipt that somebody kept, against the log that is served.
    let kept = run.dir.path().join("kept.json");
    fs::copy(run.path().join("anchors/2.json"), &kept).unwrap();
    let (code, document) = judged(kept.to_str().unwrap(), &["--ledger", &url]);
    assert_eq!((code, &document["receipts"][0]["relation"]), (0, &"in-log".into()), "{document}");
    // Another history is served under the same name.
    seal_in(&fork, 8);
    seal_in(&fork, 8);
    let contradicted = |target: &str, more: &[&str]| {
        let (code, said) = judged(target, more);
        assert!(code == 22 && said.as_str().unwrap().contains("contradiction"), "{said}");
    };
    let forked = Served::start(&fork, served::limits());
    let other = format!("http://{}", forked.address);
    contradicted(kept.to_str().unwrap(), &["--ledger", &other]);
    copy_all(&run.path().join("anchors"), &fork.join("anchors"));
    contradicted(&other, &[]);
    // Nobody answers there.
    drop(served);
    assert_eq!(judged(&url, &[]).0, 1);
}

/// A server's own thread, before a chain in memory: in the process, so that the chain is at hand.
#[test]
fn a_server_fetches_the_justifications_of_earlier_anchors() {
    let (run, chain) = (model::Run::new(&Model::small(Dialect::Templar)), TestChain::new());
    let seal_next = |round: u64| {
        run.put(round, 7, b"no gradient");
        run.import(round, &[7], &[]);
        run.seal(round);
    };
    let served = Served::start(&run.path(), served::limits());
    let visits = Visits { root: run.path(), key_file: None, last_heads: Vec::new() };
    let node = chain.clone();
    let open: OpenChain = Box::new(move |_| Ok(Box::new(node.clone())));
    let every = AnchorEvery {
        rounds: NonZeroU64::MIN,
        options: AnchorOptions::default(),
        justify_after: Duration::ZERO,
    };
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < WAIT_MAX, "{what}");
            thread::sleep(Duration::from_millis(30));
        }
    };
    let finality = |at: usize| {
        let trust = AnchorTrust { authorities: Some(&chain.authorities()), place: None };
        judge_all(&run.open(), trust).unwrap().receipts.get(at).map(|r| r.finality)
    };
    let anchorer = Anchorer::start(&served.node, visits, open, every);
    seal_next(1);
    until("the first anchor", &|| finality(0) == Some(Finality::Finalized));
    chain.blocks(3);
    chain.sign_newest();
    chain.blocks(2);
    // The one that waits for its turn is not sealed beside the thread's own writing.
    until("the writer", &|| LedgerWriter::open(&run.path(), None).is_ok());
    seal_next(2);
    until("the second anchor", &|| finality(1) == Some(Finality::Finalized));
    until("the first justification", &|| finality(0) == Some(Finality::Justified));
    assert_eq!(chain.commitments().len(), 2);
    anchorer.end(WAIT_MAX);
}
