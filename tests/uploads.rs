//! Uploads: a real server, the real client, hostile ones, and kills at any moment.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    process::Stdio,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::{
    Random,
    desk::{Miner, Run, listing, problem, text},
    miner::public,
    served::{Served, connect, head, limits, read_reply},
};
use gradledger::{
    http::uploads::Door,
    ledger::{
        check::check_round,
        fsck::fsck,
        seal::FoldOptions,
        submit::{Receipt, Submitter},
        uploads::{Commit, UploadDesk, UploadError},
        writer::LedgerWriter,
    },
    store::config::UploadsChoice,
    types::{
        digest::Digest,
        progress::{Progress, Silent},
        record::Verdict,
        refusal::Code,
        submission::{SignatureHex, Submission},
        upload::UploadState,
    },
};

/// Small parts, so that a delta of a megabyte has many.
const SMALL: &str = "part_bytes = 65536\ndisk_reserve_bytes = 0";

fn key_of(run: &Run) -> String {
    run.open().genesis().log_keys.rounds.clone()
}

#[test]
fn a_delta_is_submitted_over_http_sealed_beside_the_server_and_answered_again() {
    let run = Run::new(3, 256);
    run.configure(SMALL);
    let desk = run.serve("");
    let submit =
        format!("submit URL DELTA1 --round 1 --key KEY1 --json --log-key {}", key_of(&run));
    let first = run.document(&submit, &desk.url);
    assert_eq!(first["rejected"], serde_json::Value::Null);
    let receipt: Receipt = serde_json::from_value(first["receipt"].clone()).unwrap();
    receipt.verify(&run.open().genesis().log_keys.submissions.parse().unwrap()).unwrap();
    assert!(!run.path("delta-1.upload").exists(), "what was staged is gone");
    // Another came between, so the log's head is another; the receipt is the same.
    run.document("submit URL DELTA2 --round 1 --key KEY2 --json", &desk.url);
    assert_eq!(run.document(&submit, &desk.url), first);
    // One writer, and any number of readers.
    let second = run.run("submit LEDGER DELTA3 --round 1 --key KEY3", "");
    assert_eq!(second.status.code(), Some(11));
    let reader = run.start("serve LEDGER --listen 127.0.0.1:0 --metrics off --json");
    let refused = run.run("submit URL DELTA3 --round 1 --key KEY3", &reader.url);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("uploads-off"), "{said}");
    // `seal` asks the server, which holds the writer.
    let report = run.document("seal LEDGER --round 1 --json", "");
    assert_eq!(report["accepted"].as_array().unwrap().len(), 2);
    let again = run.document("seal LEDGER --round 1 --json", "");
    assert_eq!((&again["record"], &again["already"]), (&report["record"], &true.into()));
    // A late miner whose answer was lost, one who has none, and the next round.
    let late = run.document(&submit, &desk.url);
    assert_eq!(late["receipt"]["index"], first["receipt"]["index"]);
    let late = run.run("submit URL DELTA3 --round 1 --key KEY3", &desk.url);
    assert_eq!(late.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&late.stderr).contains("late"));
    run.document("submit URL DELTA3 --round 2 --key KEY3 --json", &desk.url);
    assert!(desk.end());
    assert!(!run.ledger().join("serve.sock").exists());
    fsck(&run.open(), FoldOptions::default(), &Silent).unwrap();
    assert_eq!(run.document("seal LEDGER --round 2 --json", "")["round"], 2);
}

#[test]
fn a_receipt_that_is_not_signed_by_the_given_key_is_no_success() {
    let (run, other) = (Run::new(1, 64), Run::new(1, 64));
    let desk = run.serve("");
    let words = format!("submit URL DELTA1 --round 1 --key KEY1 --log-key {}", key_of(&other));
    let output = run.run(&words, &desk.url);
    assert_eq!(output.status.code(), Some(21), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_request_that_is_not_signed_for_just_this_is_refused() {
    let run = Run::new(2, 64);
    let desk = run.serve("");
    let miner = Miner::new(&run, &desk.url, 1, 1);
    let refused = |what: &str, sent: gradledger::store::remote::Sent, code: &str| {
        assert_eq!(problem(&sent), (401, code.to_owned()), "{what}: {}", text(&sent));
    };
    let good = miner.creating().sign();
    for at in 0..good.headers.len() {
        let mut without = good.clone();
        let (name, _) = without.headers.remove(at);
        refused(name, miner.send(&without), "not-signed");
    }
    let mut body = good.clone();
    *body.body.last_mut().unwrap() = b' ';
    refused("wrong body", miner.send(&body), "bad-signature");
    let mut forged = good.clone();
    let signature =
        forged.headers.iter_mut().find(|(name, _)| name.ends_with("signature")).unwrap();
    let last = signature.1.pop().unwrap();
    signature.1.push(if last == '0' { '1' } else { '0' });
    refused("forged", miner.send(&forged), "bad-signature");
    let mut uuid = good.clone();
    let header = uuid.headers.iter_mut().find(|(name, _)| name.ends_with("uuid")).unwrap();
    header.1 = "00000000-0000-4000-8000-000000000000".to_owned();
    refused("another uuid", miner.send(&uuid), "bad-signature");
    for skew_ms in [-9_000, 9_000] {
        let mut signing = miner.creating();
        signing.skew_ms = skew_ms;
        refused("clock", miner.send(&signing.sign()), "clock");
    }
    // Signed for another path or method, by the right hotkey.
    let mut signing = miner.creating();
    signing.request.path = format!("/v1/uploads/{}/commit", miner.id());
    refused("path", miner.send(&signing.sign()), "wrong-path");
    let mut signing = miner.creating();
    signing.request.method = "PUT".to_owned();
    refused("method", miner.send(&signing.sign()), "wrong-path");
    // Nothing of that made an upload; the good one does, once.
    assert!(!run.ledger().join("uploads").exists());
    assert_eq!(miner.send(&good).status, 201);
    refused("replayed", miner.send(&good), "replayed");
    assert_eq!(miner.send(&miner.creating().sign()).status, 200, "signed anew");
    // Another listed hotkey's upload is not committed by this one, nor by a stranger.
    let mut other = miner.committing();
    other.number = 2;
    let sent = miner.send(&other.sign());
    assert_eq!(problem(&sent), (400, "other-upload".to_owned()));
    let mut stranger = miner.creating();
    stranger.number = 3;
    assert_eq!(problem(&miner.send(&stranger.sign())), (403, "not-listed".to_owned()));
    // A commit whose statement is signed by nobody.
    let mut commit = miner.committing();
    commit.request.signature = Some(SignatureHex([1; 64]));
    refused("statement", miner.send(&commit.sign()), "bad-signature");
    assert_eq!(run.open().submissions_log().size(), 0);
}

#[test]
fn what_the_log_would_not_take_is_not_announced() {
    let run = Run::new(2, 64);
    let desk = run.serve("");
    let miner = Miner::new(&run, &desk.url, 1, 1);
    let refused = |change: &dyn Fn(&mut gradledger::types::upload::UploadRequest)| {
        let mut signing = miner.creating();
        change(&mut signing.request);
        problem(&miner.send(&signing.sign()))
    };
    assert_eq!(refused(&|r| r.run = Digest([1; 32])), (401, "bad-signature".into()));
    assert_eq!(refused(&|r| r.round = 2), (409, "wrong-round".into()));
    assert_eq!(refused(&|r| r.round = 0), (409, "late".into()));
    assert_eq!(refused(&|r| r.base = Digest([1; 32])), (409, "wrong-base".into()));
    assert_eq!(refused(&|r| r.delta.bytes += 1), (422, "wrong-shape".into()));
    assert_eq!(refused(&|r| r.delta.bytes = u64::MAX >> 12), (422, "wrong-shape".into()));
    assert_eq!(refused(&|r| r.delta.count = 1), (422, "wrong-shape".into()));
    assert_eq!(refused(&|r| r.signature = Some(SignatureHex([0; 64]))), (400, "bad-body".into()));
    miner.send_all();
    let receipt = miner.commit();
    assert_eq!(miner.commit(), receipt);
    // A second delta of the same hotkey; the first once more.
    let second = Miner::new(&run, &desk.url, 1, 2);
    let sent = second.send(&second.creating().sign());
    assert_eq!(problem(&sent), (409, "duplicate-submission".into()));
    assert!(miner.create().committed);
    // After the seal the round takes nothing, and its hotkey's receipt is still there.
    run.document("seal LEDGER --round 1 --json", "");
    let other = Miner::with(&run, &desk.url, 2, miner.staged.clone());
    assert_eq!(problem(&other.send(&other.creating().sign())).1, "late");
    assert_eq!(miner.commit().index, receipt.index);
}

#[test]
fn parts_are_taken_from_whoever_has_the_token_and_only_as_announced() {
    let run = Run::new(2, 512);
    run.configure(SMALL);
    let desk = run.serve("");
    let (miner, other) = (Miner::new(&run, &desk.url, 1, 1), Miner::new(&run, &desk.url, 2, 2));
    let (state, others) = (miner.create(), other.create());
    let (token, stolen) = (state.token.unwrap(), others.token.unwrap());
    assert_ne!(token, stolen);
    let part = state.missing[1];
    let bytes = miner.staged.part(part).unwrap();
    let at = |offset: u64| format!("offset={offset}");
    let hashes = miner.staged.hashes().unwrap();
    assert_eq!(problem(&miner.put_part(token, part)), (409, "hashes-first".into()));
    // Hashes of another delta, of no delta, of another length.
    let others_hashes = other.staged.hashes().unwrap();
    assert_eq!(others_hashes.len(), hashes.len());
    assert_eq!(
        problem(&miner.put("hashes", None, token, &others_hashes)),
        (422, "wrong-hashes".into())
    );
    let mut broken = hashes.clone();
    broken[0] ^= 1;
    assert_eq!(problem(&miner.put("hashes", None, token, &broken)).1, "wrong-hashes");
    assert_eq!(problem(&miner.put("hashes", None, token, &hashes[1..])).1, "too-short");
    assert_eq!(problem(&miner.put("hashes", None, stolen, &hashes)), (403, "wrong-token".into()));
    assert_eq!(miner.put("hashes", None, token, &hashes).status, 204);
    // Parts.
    let put = |query: &str, body: &[u8]| problem(&miner.put("parts", Some(query), token, body));
    assert_eq!(problem(&miner.put("parts", Some(&at(part.offset)), stolen, &bytes)).0, 403);
    assert_eq!(put(&at(part.offset + 1), &bytes), (409, "wrong-offset".into()));
    assert_eq!(put(&at(1 << 52), &bytes), (409, "wrong-offset".into()));
    assert_eq!(put("offset=x", &bytes).0, 400);
    assert_eq!(put("", &bytes).0, 400);
    assert_eq!(put(&at(part.offset), &bytes[1..]), (400, "too-short".into()));
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(put(&at(part.offset), &longer), (413, "too-long".into()));
    let mut wrong = bytes.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(put(&at(part.offset), &wrong), (422, "wrong-piece".into()));
    let sent =
        miner.put_as("parts", Some(&at(part.offset)), token, &bytes, Digest::of(b"something"));
    assert_eq!(problem(&sent), (422, "wrong-sha256".into()));
    let sent = other.put_part(token, others.missing[0]);
    assert_eq!(problem(&sent), (403, "wrong-token".into()));
    // None of it arrived.
    let commit = miner.send(&miner.committing().sign());
    assert_eq!(problem(&commit), (409, "incomplete".into()));
    let left = miner.create();
    assert_eq!(left.missing, state.missing);
    let files = listing(&run.ledger().join("uploads").join(miner.id().to_hex()));
    assert_eq!(files.len(), 2, "the record and the hashes: {files:?}");
    // What was announced arrives, in any order, twice.
    for part in state.missing.iter().rev().chain(&state.missing[..2]) {
        assert_eq!(miner.put_part(token, *part).status, 204);
    }
    assert_eq!(miner.commit().index, 0);
    assert_eq!(problem(&miner.put_part(token, part)), (409, "committed".into()));
    fsck(&run.open(), FoldOptions::default(), &Silent).unwrap();
}

#[test]
fn values_that_do_not_count_are_logged_with_the_reason() {
    let run = Run::new(1, 64);
    let dir = run.delta(1);
    // A NaN in a book, which has the shape of one.
    let books = dir.join("books.parquet");
    let mut bytes = fs::read(&books).unwrap();
    let at = bytes.windows(4).position(|w| w == (-1.0_f32).to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&books, bytes).unwrap();
    let desk = run.serve("");
    let document = run.document("submit URL DELTA1 --round 1 --key KEY1 --json", &desk.url);
    assert_eq!(document["rejected"]["code"], "non-finite");
    run.document("seal LEDGER --round 1 --json", "");
    let round = check_round(&run.open(), 0).unwrap();
    assert!(matches!(round.disposed.dispositions[0].verdict, Verdict::Rejected(_)));
}

#[test]
fn too_much_at_once_is_told_when_to_come_back() {
    let run = Run::new(3, 64);
    let limits =
        "uploads_per_hotkey = 1\nrequests_per_minute_per_hotkey = 5\ndisk_reserve_bytes = 0";
    run.configure(limits);
    let desk = run.serve("");
    let first = Miner::new(&run, &desk.url, 1, 1);
    let state = first.create();
    let second = Miner::new(&run, &desk.url, 1, 2);
    let sent = second.send(&second.creating().sign());
    assert_eq!(problem(&sent), (429, "quota".into()));
    assert!(sent.retry_after_s.unwrap() > 0);
    // It gives the first up, with the token only.
    let path = format!("/v1/uploads/{}", first.id());
    let delete = |token: Digest| {
        let headers = [("authorization", format!("Bearer {token}"))];
        let question = gradledger::store::remote::Question {
            method: "DELETE",
            path: &path,
            query: None,
            headers: &headers,
            body: b"",
        };
        first.http.send(&question).unwrap()
    };
    assert_eq!(problem(&delete(Digest([1; 32]))), (403, "wrong-token".into()));
    assert_eq!(delete(state.token.unwrap()).status, 204);
    assert_eq!(problem(&delete(state.token.unwrap())), (404, "unknown-upload".into()));
    assert_eq!(second.send(&second.creating().sign()).status, 201);
    // One of a hotkey too many within the minute; another hotkey's is taken.
    let sent = (0..50).map(|_| second.send(&second.creating().sign()));
    let last = sent.into_iter().find(|sent| sent.status != 200).unwrap();
    assert_eq!(problem(&last), (429, "rate".into()));
    assert!(last.retry_after_s.unwrap() >= 1);
    assert_eq!(Miner::new(&run, &desk.url, 2, 1).create().id, {
        Miner::new(&run, &desk.url, 2, 1).id()
    });
    drop(desk);
    // By address.
    run.configure("requests_per_minute_per_address = 3\ndisk_reserve_bytes = 0");
    let desk = run.serve("");
    let third = Miner::new(&run, &desk.url, 3, 3);
    assert_eq!(third.send(&third.creating().sign()).status, 201);
    let mut sent = (0..50).map(|_| third.send(&third.creating().sign()));
    let last = sent.find(|sent| sent.status != 200).unwrap();
    assert_eq!(problem(&last), (429, "rate".into()));
    drop(desk);
    // Who may upload at all.
    run.configure(&format!("hotkeys = [\"{}\"]\ndisk_reserve_bytes = 0", public(2)));
    let desk = run.serve("");
    let third = Miner::new(&run, &desk.url, 3, 3);
    assert_eq!(problem(&third.send(&third.creating().sign())), (403, "not-listed".into()));
}

#[test]
fn an_abandoned_upload_expires() {
    let run = Run::new(1, 64);
    run.configure("expire_s = 0\ndisk_reserve_bytes = 0");
    let desk = run.serve("");
    let miner = Miner::new(&run, &desk.url, 1, 1);
    let token = miner.create().token.unwrap();
    // A seal sweeps, too.
    thread::sleep(Duration::from_millis(20));
    run.document("seal LEDGER --round 1 --json", "");
    let sent = miner.put("hashes", None, token, &miner.staged.hashes().unwrap());
    assert_eq!(problem(&sent), (404, "unknown-upload".into()));
    assert!(listing(&run.ledger().join("uploads")).is_empty());
}

#[test]
fn a_disk_without_room_takes_nothing_until_there_is_some() {
    let run = Run::new(2, 256);
    run.configure("disk_reserve_bytes = 9000000000000000");
    let desk = run.serve("");
    let miner = Miner::new(&run, &desk.url, 1, 1);
    let sent = miner.send(&miner.creating().sign());
    assert_eq!(problem(&sent), (429, "disk-full".into()));
    assert!(sent.retry_after_s.unwrap() > 0);
    drop(desk);
    run.configure(SMALL);
    let desk = run.serve("");
    miner_at(&run, &desk.url, 1).send_all();
    miner_at(&run, &desk.url, 1).commit();
}

fn miner_at(run: &Run, url: &str, number: u8) -> Miner {
    Miner::new(run, url, number, u64::from(number))
}

/// Whatever was acknowledged is there after a kill: parts, and statements with their deltas; nothing
/// of what was not whole is in the log.
#[test]
fn a_server_killed_at_any_moment_loses_nothing_it_acknowledged() {
    let seed = 11;
    println!("seed {seed}");
    let (run, mut random) = (Run::new(4, 1024), Random(seed));
    run.configure(SMALL);
    let staged: Vec<_> = (1..=4).map(|n| Arc::new(run.stage(n))).collect();
    let mut receipts: Vec<Option<Receipt>> = vec![None; 4];
    let mut arrived = vec![std::collections::BTreeSet::new(); 4];
    let mut asked = [false; 4];
    let (mut kills, mut cut) = (0, 0);
    while receipts.iter().any(Option::is_none) {
        let desk = run.serve("");
        let url = desk.url.clone();
        // Some life: a few milliseconds up to what all four take.
        let life = Duration::from_millis(random.below(60) + 20 * kills);
        let miners: Vec<_> = (0..4u8)
            .filter(|n| receipts[usize::from(*n)].is_none())
            .map(|n| {
                let miner = Miner::with(&run, &url, n + 1, staged[usize::from(n)].clone());
                let mut known = arrived[usize::from(n)].clone();
                thread::spawn(move || {
                    let mut asked = false;
                    let receipt = live(&miner, &mut known, &mut asked);
                    (n, receipt, known, asked)
                })
            })
            .collect();
        let begun = Instant::now();
        while begun.elapsed() < life && miners.iter().any(|miner| !miner.is_finished()) {
            thread::sleep(Duration::from_millis(1));
        }
        desk.kill();
        kills += 1;
        for miner in miners {
            let (n, receipt, known, asks) = miner.join().unwrap();
            asked[usize::from(n)] |= asks;
            cut += usize::from(receipt.is_none());
            arrived[usize::from(n)] = known;
            receipts[usize::from(n)] = receipt;
        }
        // What the log tells of is whole, and what was answered is in it.
        let ledger = run.open();
        fsck(&ledger, FoldOptions::default(), &Silent).unwrap();
        let logged = ledger.submissions(0..ledger.submissions_log().size()).unwrap();
        let mut hotkeys: Vec<_> = logged.iter().map(|(_, s)| s.miner()).collect();
        hotkeys.sort();
        hotkeys.dedup();
        assert_eq!(hotkeys.len(), logged.len(), "each statement once");
        for (hotkey, n) in hotkeys.iter().flat_map(|hotkey| (0..4).map(move |n| (hotkey, n))) {
            let visible = *hotkey == gradledger::types::submission::Miner::Hotkey(public(n + 1));
            assert!(!visible || asked[usize::from(n)], "{hotkey} is there and did not commit");
        }
        for receipt in receipts.iter().flatten() {
            let (_, entry) = &logged[receipt.index as usize];
            let Submission::Signed(signed) = entry else { unreachable!() };
            assert_eq!(receipt.verify(&key(&run)).unwrap(), *signed);
        }
        assert!(kills < 200, "it comes to an end");
    }
    println!("{kills} kills, {cut} miners cut off");
    assert!(cut > 3, "the kills came too late");
}

fn key(run: &Run) -> gradledger::merkle::note::VerifierKey {
    run.open().genesis().log_keys.submissions.parse().unwrap()
}

/// Sends what is missing until the server dies or gives the receipt; `known` are acknowledged parts,
/// none of which may be asked for again, and `asked` is whether a commit was sent.
fn live(
    miner: &Miner,
    known: &mut std::collections::BTreeSet<u64>,
    asked: &mut bool,
) -> Option<Receipt> {
    let ask = |request: &common::desk::SignedRequest| {
        let common::desk::SignedRequest { method, path, headers, body } = request;
        let question =
            gradledger::store::remote::Question { method, path, query: None, headers, body };
        miner.http.send(&question).ok()
    };
    let sent = ask(&miner.creating().sign())?;
    assert!(matches!(sent.status, 200 | 201), "{}", text(&sent));
    let state: UploadState = serde_json::from_slice(&sent.body).unwrap();
    let put = |path: &str, query: Option<String>, token: Digest, body: &[u8]| {
        let path = format!("/v1/uploads/{}/{path}", miner.id());
        let headers = [
            ("authorization", format!("Bearer {token}")),
            ("x-content-sha256", Digest::of(body).to_hex()),
        ];
        let question = gradledger::store::remote::Question {
            method: "PUT",
            path: &path,
            query: query.as_deref(),
            headers: &headers,
            body,
        };
        let sent = miner.http.send(&question).ok()?;
        assert_eq!(sent.status, 204, "{}", text(&sent));
        Some(())
    };
    if !state.committed {
        let token = state.token.unwrap();
        if state.hashes_bytes.is_some() {
            assert!(known.is_empty(), "the hashes were lost");
            put("hashes", None, token, &miner.staged.hashes().unwrap())?;
        }
        for part in state.missing {
            assert!(!known.contains(&part.offset), "{part:?} was acknowledged and is lost");
            let bytes = miner.staged.part(part).unwrap();
            put("parts", Some(format!("offset={}", part.offset)), token, &bytes)?;
            known.insert(part.offset);
        }
    }
    *asked = true;
    loop {
        let sent = ask(&miner.committing().sign())?;
        match sent.status {
            200 => return Some(serde_json::from_slice(&sent.body).unwrap()),
            202 => thread::sleep(Duration::from_millis(50)),
            _ => panic!("{}", text(&sent)),
        }
    }
}

/// The client itself, against a server that is killed and started again on the same port.
#[test]
fn a_client_goes_on_when_the_server_comes_back_and_when_it_was_killed_itself() {
    let run = Run::new(1, 512);
    run.configure(SMALL);
    let desk = run.serve("");
    let (url, address) = (desk.url.clone(), desk.url.trim_start_matches("http://").to_owned());
    // Killed in the middle.
    let submit = "submit URL DELTA1 --round 1 --key KEY1 --json";
    let mut client = run.command(submit, &url).spawn().unwrap();
    let uploads = run.ledger().join("uploads");
    let begun = Instant::now();
    let parts = || {
        if uploads.exists() {
            let is_part = |(path, _): &(std::path::PathBuf, u64)| {
                path.extension().is_some_and(|extension| extension == "part")
            };
            listing(&uploads).iter().filter(|file| is_part(file)).count()
        } else {
            0
        }
    };
    while parts() < 3 && begun.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(1));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    let before = parts();
    assert!(before >= 3);
    // The server too; the next client finds nobody for a while, then goes on.
    desk.kill();
    let client = run.command(submit, &url).stdout(Stdio::piped()).spawn().unwrap();
    let words =
        format!("serve LEDGER --uploads --listen {address} --metrics off --json --log warn");
    let desk = run.start(&words);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success());
    let first: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(first["receipt"]["index"], 0);
    assert_eq!(run.document(submit, &url)["receipt"], first["receipt"]);
    drop(desk);
    fsck(&run.open(), FoldOptions::default(), &Silent).unwrap();
}

/// With `GRADLEDGER_UPLOAD_SIDE=24064` the deltas have 507 MB each, and all are the same one.
#[test]
fn twenty_miners_at_once_are_all_logged_in_bounded_memory() {
    const MINERS: u8 = 20;
    let side = std::env::var("GRADLEDGER_UPLOAD_SIDE").ok().and_then(|side| side.parse().ok());
    let run = Run::new(MINERS, side.unwrap_or(1024));
    let part_bytes = if side.is_some() { 16 << 20 } else { 256 << 10 };
    run.configure(&format!(
        "part_bytes = {part_bytes}\ndisk_reserve_bytes = 0\nrequests_per_minute_per_address = 60000"
    ));
    let desk = run.serve("");
    let one = side.map(|_| Arc::new(run.stage(1)));
    let stage = |n| one.clone().unwrap_or_else(|| Arc::new(run.stage(u64::from(n))));
    let miners: Vec<_> = (1..=MINERS).map(|n| Miner::with(&run, &desk.url, n, stage(n))).collect();
    let (delta_bytes, before, begun) =
        (miners[0].staged.delta().bytes, desk.peak_bytes(), Instant::now());
    let sending: Vec<_> = miners
        .into_iter()
        .map(|miner| {
            thread::spawn(move || {
                miner.send_all();
                miner.commit().index
            })
        })
        .collect();
    let mut indices: Vec<u64> = sending.into_iter().map(|m| m.join().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..u64::from(MINERS)).collect::<Vec<_>>());
    let (peak, took) = (desk.peak_bytes(), begun.elapsed());
    println!(
        "{MINERS} x {delta_bytes} bytes in {took:?}: at the peak {} MiB, before it {}",
        peak >> 20,
        before >> 20
    );
    assert!(peak < 512 << 20, "{peak}");
    assert!(side.is_some() || peak - before < 64 << 20, "{}", peak - before);
    let report = run.document("seal LEDGER --round 1 --json", "");
    let accepted = if side.is_some() { 1 } else { usize::from(MINERS) };
    assert_eq!(report["accepted"].as_array().unwrap().len(), accepted);
}

/// What a server's log says of requests: status and path of each, and what was no request.
fn logged(log: &str) -> (Vec<(u64, String)>, Vec<String>) {
    let (mut answered, mut others) = (Vec::new(), Vec::new());
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = &line["fields"];
        match fields["message"].as_str().unwrap() {
            "answered" => {
                let path = line["span"]["path"].as_str().unwrap().to_owned();
                assert!(line["span"]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
                answered.push((fields["status"].as_u64().unwrap(), path));
            }
            message => others.push(format!("{message} {}", fields["error"])),
        }
    }
    (answered, others)
}

/// Bytes as they are, and what comes back until the server closes.
fn raw(url: &str, bytes: &[u8]) -> String {
    let mut stream = connect(url.trim_start_matches("http://").parse().unwrap());
    // A server that has heard enough closes before all is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The tricks of a hostile client, one after the other: each is refused, and told of in the log.
#[test]
fn what_a_hostile_client_tries_is_refused_and_logged() {
    let run = Run::new(2, 256);
    run.configure(SMALL);
    let words =
        "serve LEDGER --uploads --listen 127.0.0.1:0 --metrics off --json --log-format json";
    let desk = run.start(&format!("{words} --head-timeout-s 1 --connections-per-address-max 8"));
    let (miner, other) = (Miner::new(&run, &desk.url, 1, 1), Miner::new(&run, &desk.url, 2, 2));
    let (state, others) = (miner.create(), other.create());
    let (token, stolen) = (state.token.unwrap(), others.token.unwrap());
    assert_eq!(miner.put("hashes", None, token, &miner.staged.hashes().unwrap()).status, 204);
    let (mut expected, parts) = (Vec::new(), format!("/v1/uploads/{}/parts", miner.id()));
    let mut refused =
        |sent: gradledger::store::remote::Sent, path: &str, status: u16, code: &str| {
            assert_eq!(problem(&sent), (status, code.to_owned()), "{}", text(&sent));
            expected.push((u64::from(status), path.to_owned()));
        };
    // Replayed signature, wrong body, wrong path, wrong method, forged, too old.
    let good = miner.creating().sign();
    assert_eq!(miner.send(&good).status, 200);
    refused(miner.send(&good), "/v1/uploads", 401, "replayed");
    let mut body = miner.creating().sign();
    body.body.push(b' ');
    refused(miner.send(&body), "/v1/uploads", 401, "bad-signature");
    let mut elsewhere = miner.creating();
    elsewhere.path = format!("/v1/uploads/{}/commit", miner.id());
    refused(miner.send(&elsewhere.sign()), &elsewhere.path, 401, "wrong-path");
    let mut old = miner.creating();
    old.skew_ms = -9_000;
    refused(miner.send(&old.sign()), "/v1/uploads", 401, "clock");
    // A stolen token, a made-up one, a part that is too long, one that is another.
    let part = state.missing[0];
    let (bytes, at) = (miner.staged.part(part).unwrap(), format!("offset={}", part.offset));
    let put = |token, bytes: &[u8]| miner.put("parts", Some(&at), token, bytes);
    refused(put(stolen, &bytes), &parts, 403, "wrong-token");
    refused(put(Digest([7; 32]), &bytes), &parts, 403, "wrong-token");
    refused(put(token, &[&bytes[..], &[0]].concat()), &parts, 413, "too-long");
    refused(put(token, &vec![0; bytes.len()]), &parts, 422, "wrong-piece");
    // Traversal.
    let key = fs::read_to_string(run.ledger().join("keys/log.key")).unwrap();
    for path in ["/v1/files/log/../keys/log.key", "/v1/files/tables/..%2fkeys%2flog.key"] {
        let answer = raw(&desk.url, head("GET", path, &[], true).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains(&key), "{answer}");
        expected.push((404, path.to_owned()));
    }
    // A flood of ranges is one answer, the whole; it costs no more than a plain request.
    let path = "/v1/files/log/rounds/tree-state";
    let ranges = format!("range: bytes={}", ["0-0"; 9_000].join(","));
    let whole = fs::read(run.ledger().join("log/rounds/tree-state")).unwrap();
    let answer = raw(&desk.url, head("GET", path, &[&ranges], true).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), whole.len());
    expected.push((200, path.to_owned()));
    // An endless header, a head that never ends, no HTTP at all.
    let begun = Instant::now();
    let endless = [b"GET /healthz HTTP/1.1\r\nx: ".to_vec(), vec![b'y'; 1 << 20]].concat();
    let answer = raw(&desk.url, &endless);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(raw(&desk.url, b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: y"), "");
    let answer = raw(&desk.url, b"\x16\x03\x01 is TLS\r\n\r\n");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // More connections than one address may have.
    let address = desk.url.trim_start_matches("http://").parse().unwrap();
    let flood: Vec<_> = (0..8).map(|_| connect(address)).collect();
    let mut more = connect(address);
    assert_eq!(read_reply(&mut more, "GET").unwrap().status, 429);
    drop((flood, more));

    let begun = Instant::now();
    loop {
        let (answered, others) = logged(&run.log());
        let told =
            |what: &str, times| others.iter().filter(|line| line.contains(what)).count() >= times;
        let every = expected.iter().all(|line| {
            let count = |all: &[(u64, String)]| all.iter().filter(|other| *other == line).count();
            count(&answered) >= count(&expected)
        });
        if every && told("without a request that reads", 3) && told("one connection too many", 1) {
            break;
        }
        let left = begun.elapsed() < Duration::from_secs(10);
        assert!(left, "{expected:?} in {answered:?}, and {others:?}");
        thread::sleep(Duration::from_millis(50));
    }
    // It goes on to serve who is honest, and nothing of what was refused is in the log.
    assert_eq!(run.open().submissions_log().size(), 0);
    let free = (0..200).any(|_| {
        thread::sleep(Duration::from_millis(50)); // Until it has seen that the connections ended.
        miner.send(&miner.creating().sign()).status == 200
    });
    assert!(free, "connections that ended count for ever");
    miner.send_all();
    assert_eq!(miner.commit().index, 0);
}

/// A seal that waits in its first step until it is let go.
struct Held {
    begun: Mutex<Option<mpsc::Sender<()>>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Progress for Held {
    fn begin(&self, _: &str, _: u64) {
        if let Some(begun) = self.begun.lock().unwrap().take() {
            begun.send(()).unwrap();
            self.go.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
        }
    }
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn note(&self, _: &str) {}
}

#[test]
fn what_comes_while_the_round_is_sealed_is_told_to_wait_and_then_that_it_is_late() {
    let run = Run::new(4, 64);
    let submitter = Submitter::start(LedgerWriter::open(&run.ledger(), None).unwrap());
    let choice = UploadsChoice { disk_reserve_bytes: 0, ..UploadsChoice::default() };
    let desk = Arc::new(UploadDesk::open(&run.open(), submitter.handle(), choice).unwrap());
    let served = Served::start(&run.ledger(), limits());
    served.node.open_uploads(Arc::new(Door::new(desk.clone())));
    let url = format!("http://{}", served.address);
    let miner = |number: u8| Miner::new(&run, &url, number, number.into());
    let [counts, slow, waits, comes] = [1, 2, 3, 4].map(miner);
    for sends in [&counts, &slow, &waits] {
        sends.send_all();
    }
    let receipt = counts.commit();
    // It was taken before the seal began, and its delta is in no place yet.
    let committing = slow.committing();
    let begun = desk.commit(slow.id(), &committing.request, public(2)).unwrap();
    let Commit::Pending(pending) = begun else { panic!("nothing was committed yet") };

    let (begun, begins) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let held = Arc::new(Held { begun: Mutex::new(Some(begun)), go: Mutex::new(go) });
    let sealing = desk.clone();
    let sealing = thread::spawn(move || sealing.seal(None, FoldOptions::default(), held));
    begins.recv_timeout(Duration::from_secs(60)).unwrap();
    for request in [waits.committing().sign(), comes.creating().sign()] {
        let sent = comes.send(&request);
        assert_eq!(problem(&sent), (409, "sealing".into()), "{}", request.path);
        assert_eq!(sent.retry_after_s, Some(10));
        assert!(text(&sent).contains("round 1 is being sealed"), "{}", text(&sent));
    }
    assert_eq!(run.open().submissions_log().size(), 1);
    let_go.send(()).unwrap();
    let report = sealing.join().unwrap().unwrap();
    assert_eq!((report.round, report.accepted.len()), (1, 1));

    assert_eq!(problem(&waits.send(&waits.committing().sign())), (409, "late".into()));
    assert_eq!(problem(&comes.send(&comes.creating().sign())), (409, "late".into()));
    let late = pending.run().unwrap_err();
    assert!(matches!(&late, UploadError::Refused(r) if r.code == Code::Late), "{late}");
    assert_eq!(counts.commit(), receipt, "what counted has its receipt still");
    assert_eq!(run.open().submissions_log().size(), 1);
    drop(served);
    submitter.finish();
    fsck(&run.open(), FoldOptions::default(), &Silent).unwrap();
}

#[test]
fn a_server_seals_by_itself_when_told_to() {
    let run = Run::new(1, 64);
    let _desk = run.serve(" --seal-every-s 1");
    let begun = Instant::now();
    while run.open().sealed().len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", run.log());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(run.open().sealed()[1].record.round, 2);
}
