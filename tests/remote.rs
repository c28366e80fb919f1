//! A ledger behind a URL: every reading command says of it what it says of the directory, and no server
//! makes a client read without end, believe a byte, or go elsewhere.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    Random,
    gradient::Gradient,
    model::{Model, Run, Tensor, rule},
    server::{Act, Asked, Server},
    signed::program,
};
use gradledger::{
    ledger::{At, Ledger},
    store::{
        files::{Files, read_whole},
        remote::{HttpOptions, Remote, RemoteError},
    },
    types::{rule::Dialect, tensor::Dtype},
};
use serde_json::Value;

/// Rounds 5 and 8, with a refused file, an absent miner and a frozen tensor; a tensor of 17 pieces.
fn sealed() -> Run {
    let mut random = Random(77);
    let tensors = vec![
        Tensor::random("a.weight", &[512, 520], &mut random),
        Tensor::random("b.bias", &[10], &mut random),
        Tensor::new("c.step", Dtype::I64, &[2], vec![3; 16]),
    ];
    let model = Model { tensors, rule: rule(Dialect::Templar, 8, 4, 4) };
    let run = Run::frozen(&model, true).unwrap().0;
    for round in [5, 8] {
        for uid in [3, 4, 12] {
            run.put(round, uid, &Gradient::of(&model, round, &model.delta(&mut random)).write());
        }
        run.put(round, 9, b"cut");
        run.import(round, &[3, 4, 9, 7], &[12]);
        run.seal(round);
    }
    run
}

fn output(arguments: &[&str]) -> Output {
    let output = program(arguments).env_remove("GRADLEDGER_HEADS").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    output
}

fn document(arguments: &[&str], code: i32) -> Value {
    let output = output(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn log_key(ledger: &Path) -> String {
    Ledger::open(ledger).unwrap().genesis().log_keys.rounds.clone()
}

/// Short waits, so that a test of many faults ends soon.
fn hasty() -> HttpOptions {
    HttpOptions {
        proxy: None,
        silence_max: Duration::from_millis(500),
        attempts: 3,
        wait: Duration::from_millis(5),
    }
}

fn remote(server: &Server) -> Remote {
    Remote::new(&server.url(), &hasty()).unwrap()
}

#[test]
fn every_reading_command_says_of_a_url_what_it_says_of_the_directory() {
    let run = sealed();
    let (dir, server) = (run.path(), Server::honest(&run.path()));
    let key = log_key(&dir);
    let commands: [&[&str]; 9] = [
        &["show"],
        &["show", "--round", "8"],
        &["log"],
        &["log", "--submissions"],
        &["log", "--miner", "3"],
        &["replay", "--round", "5..8"],
        &["replay", "--round", "8", "--tensor", "a.weight"],
        &["diff", "--from", "5", "--to", "8"],
        &["diff"],
    ];
    for command in commands {
        let of = |ledger: &str| {
            let (verb, options) = command.split_first().unwrap();
            document(&[&[*verb, ledger, "--json"], options].concat(), 0)
        };
        assert_eq!(of(dir.to_str().unwrap()), of(&server.url()), "{command:?}");
    }
    for audit in [&["--tensor", "b.bias"][..], &["--sample", "2", "--seed", "07"], &[]] {
        let of = |ledger: &str, heads: &Path| {
            let fixed =
                ["audit", ledger, "--json", "--log-key", &key, "--heads", heads.to_str().unwrap()];
            let code = if audit.contains(&"--sample") { 3 } else { 0 };
            // Twice: the second time there are heads to be consistent with.
            document(&[&fixed[..], audit].concat(), code);
            let mut report = document(&[&fixed[..], audit].concat(), code);
            report.as_object_mut().unwrap().remove("run");
            assert!(report.to_string().contains("consistency"));
            report
        };
        let here = of(dir.to_str().unwrap(), &run.dir.path().join("heads"));
        assert_eq!(here, of(&server.url(), &run.dir.path().join("heads-url")), "{audit:?}");
    }
}

#[test]
fn exports_and_bundles_of_a_url_are_those_of_the_directory() {
    let run = sealed();
    let (dir, server) = (run.path(), Server::honest(&run.path()));
    let (dir, url) = (dir.to_str().unwrap(), server.url());
    let made = |ledger: &str, name: &str| -> (Value, Vec<u8>) {
        let out = |suffix: &str| run.dir.path().join(name.to_owned() + suffix);
        let (weights, bundle) = (out("-weights"), out(".tar"));
        let (weights, bundle) = (weights.to_str().unwrap(), bundle.to_str().unwrap());
        let exported = document(&["export", ledger, "--round", "8", "--out", weights, "--json"], 0);
        let piece = ["--round", "8", "--tensor", "a.weight", "--piece", "1"];
        output(&[&["prove", ledger, "--out", bundle], &piece[..]].concat());
        (exported, std::fs::read(bundle).unwrap())
    };
    assert_eq!(made(dir, "here"), made(&url, "there"));
}

#[test]
fn a_dispute_may_be_with_a_server() {
    let run = sealed();
    let (url, mut random) = (Server::honest(&run.path()), Random(9));
    let copy = Run { dir: tempfile::tempdir().unwrap() };
    common::model::copy_all(&run.path(), &copy.path());
    let (dir, url) = (copy.path(), url.url());
    let dir = dir.to_str().unwrap();
    document(&["diff", "--dispute", &url, dir, "--json"], 0);
    // Each goes on with what it got.
    let model = Model {
        tensors: ["a.weight", "b.bias"]
            .map(|name| {
                let shape: &[u64] = if name == "a.weight" { &[512, 520] } else { &[10] };
                Tensor::random(name, shape, &mut random)
            })
            .into(),
        rule: rule(Dialect::Templar, 8, 4, 4),
    };
    for run in [&run, &copy] {
        run.put(9, 3, &Gradient::of(&model, 9, &model.delta(&mut random)).write());
        run.import(9, &[3], &[]);
        run.seal(9);
    }
    let (server, out) = (Server::honest(&run.path()), copy.dir.path().join("dispute.tar"));
    let out = out.to_str().unwrap();
    let said = document(&["diff", "--dispute", &server.url(), dir, "--out", out, "--json"], 20);
    assert_eq!(said["difference"]["differs"], "piece");
    assert_eq!(said["difference"]["round"], 9);
    let verified = document(&["verify", out, "--json", "--log-key", &log_key(&run.path())], 0);
    assert!(verified["subject"].as_str().unwrap().contains("a follows, b follows"), "{verified}");
}

#[test]
fn a_dropped_state_of_a_url_is_folded_again() {
    let run = sealed();
    let before = run.stored(At::Round(5), "a.weight");
    assert_eq!(
        output(&["gc", run.path().to_str().unwrap(), "--keep-every", "9"]).status.code(),
        Some(0)
    );
    let server = Server::honest(&run.path());
    let out = run.dir.path().join("out");
    let said = document(
        &["export", &server.url(), "--round", "5", "--out", out.to_str().unwrap(), "--json"],
        0,
    );
    assert_eq!(said["files"][0]["name"], "model.safetensors");
    let file = std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(file.windows(before.len()).any(|bytes| bytes == before));
    assert!(!out.with_extension("rebuilt").exists());
}

#[test]
fn what_is_read_front_to_back_is_fetched_in_runs_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i >> 8) as u8 ^ i as u8).collect();
    std::fs::create_dir(dir.path().join("hashes")).unwrap();
    std::fs::write(dir.path().join("hashes/file"), &bytes).unwrap();
    let server = Server::honest(dir.path());
    let remote = remote(&server);
    let path = remote.root().join("hashes/file");
    let mut found = vec![0; bytes.len()];
    for (at, part) in found.chunks_mut(50_000).enumerate() {
        // Opened each time, as a fold of very many deltas does.
        remote.open(&path).unwrap().read_exact_at(part, at as u64 * 50_000).unwrap();
    }
    assert!(found == bytes);
    assert_eq!(server.bytes(), bytes.len() as u64, "no byte twice");
    assert!(server.asked().len() <= 12, "{} questions", server.asked().len());
    assert_eq!(remote.traffic().bytes, bytes.len() as u64);
    let past = remote.open(&path).unwrap().read_exact_at(&mut [0; 2], 9_000_000).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn long_lists_come_in_pages_and_writing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<PathBuf> = (0..2_345).map(|i| PathBuf::from(format!("n-{i:04}"))).collect();
    for name in &names {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let server = Server::honest(dir.path());
    let remote = remote(&server);
    assert_eq!(remote.list(remote.root()).unwrap(), names);
    assert_eq!(server.asked().len(), 3);
    let path = remote.root().join("new");
    assert_eq!(remote.remove(&path).unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(remote.create(&path).is_err());
    assert!(!remote.exists(&path).unwrap() && remote.exists(remote.root()).unwrap());
    let elsewhere = remote.open(Path::new("http://127.0.0.1:1/v1/files/x")).err().unwrap();
    assert!(elsewhere.to_string().contains("does not lie on this server"), "{elsewhere}");
}

#[test]
fn a_busy_server_is_asked_again_when_it_says_so() {
    let run = sealed();
    let server = Server::start(&run.path(), |asked| match asked.number % 3 {
        0 => Act::Say(429, vec!["Retry-After: 0".into()], vec![]),
        1 => Act::Say(503, vec![], vec![]),
        _ => Act::Honest,
    });
    let remote = remote(&server);
    let ledger = Ledger::open_in(Arc::new(remote.clone()), remote.root()).unwrap();
    assert_eq!(ledger.sealed().len(), 2);
    let waiting =
        Server::start(&run.path(), |_| Act::Say(503, vec!["Retry-After: 86400".into()], vec![]));
    let error = open_error(&waiting);
    assert!(error.contains("asks to come back in 86400 s"), "{error}");
    assert_eq!(waiting.asked().len(), 1);
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let run = sealed();
    let server = Server::start(&run.path(), |asked| match asked.number % 2 {
        0 => Act::Cut,
        _ => Act::Honest,
    });
    let remote = remote(&server);
    Ledger::open_in(Arc::new(remote.clone()), remote.root()).unwrap();
}

fn open_error(server: &Server) -> String {
    let remote = remote(server);
    Ledger::open_in(Arc::new(remote.clone()), remote.root()).err().unwrap().to_string()
}

#[test]
fn hostile_answers_are_refused_in_bounded_time_and_never_believed() {
    let run = sealed();
    let list = |json: &str| Act::Say(200, vec![], json.as_bytes().to_vec());
    let acts: Vec<(Act, &str)> = vec![
        (Act::Longer(1 << 50), ""),
        (Act::Shifted, "the answer is of"),
        (Act::Endless, "more than the"),
        (Act::Cut, "ends after"),
        (Act::Garbage, "cannot be reached"),
        (Act::Silent(Duration::from_secs(3)), "in time"),
        (
            Act::Say(302, vec!["Location: http://127.0.0.1:1/".into()], vec![]),
            "redirects are not followed",
        ),
        (Act::Say(200, vec![], vec![0; 100]), ""),
        (Act::Say(200, vec![], vec![0; 1 << 20]), "the answer is of"),
        (
            Act::Say(
                206,
                vec!["Content-Range: bytes 0-99/18446744073709551616".into()],
                vec![0; 100],
            ),
            "the answer is of",
        ),
        (Act::Say(206, vec!["Content-Range: bytes 0-99/100".into()], vec![0; 101]), ""),
        (Act::Say(206, vec!["Content-Range: bytes 9-1/100".into()], vec![]), "the answer is of"),
        (Act::Say(416, vec!["Content-Range: bytes */0".into()], vec![]), ""),
        (Act::Say(416, vec![], vec![]), "the answer is of"),
        (Act::Say(401, vec![], vec![]), "without credentials"),
        (Act::Say(500, vec![], vec![]), "answers 500"),
        (Act::Say(600, vec![], vec![]), "answers 600"),
        (list("{}"), ""),
    ];
    for (act, why) in acts {
        let doing = act.clone();
        let server = Server::start(&run.path(), move |_| doing.clone());
        let (since, error) = (Instant::now(), open_error(&server));
        assert!(since.elapsed() < Duration::from_secs(8), "{act:?}: {:?}", since.elapsed());
        assert!(error.contains(why), "{act:?}: {error}");
        // Whatever is wrong with an answer, the message says where it came from.
        assert!(error.contains(&server.url()), "{act:?}: {error}");
    }
}

#[test]
fn hostile_lists_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lists = [
        r#"{"names":["b","a"],"next":null}"#,
        r#"{"names":["a","a"],"next":null}"#,
        r#"{"names":["../x"],"next":null}"#,
        r#"{"names":[".."],"next":null}"#,
        r#"{"names":[""],"next":null}"#,
        r#"{"names":[],"next":"a"}"#,
        r#"{"names":["a"],"next":"a"}"#,
        r#"["a"]"#,
        "",
    ];
    for json in lists {
        let body = json.as_bytes().to_vec();
        let server = Server::start(dir.path(), move |_| Act::Say(200, vec![], body.clone()));
        let error =
            remote(&server).list(remote(&server).root()).err().unwrap_or_else(|| panic!("{json}"));
        assert!(error.get_ref().unwrap().is::<RemoteError>(), "{json}: {error}");
        assert!(server.asked().len() < 5, "{json}");
    }
}

#[test]
fn random_answers_never_panic() {
    let run = sealed();
    let mut random = Random(5);
    for _ in 0..40 {
        let seed = random.next();
        let server = Server::start(&run.path(), move |asked: &Asked| {
            let mut random = Random(seed ^ asked.number);
            match random.below(4) {
                0 => Act::Flip { at: random.below(2_000) },
                1 => Act::Longer(random.below(1 << 40)),
                _ => Act::Honest,
            }
        });
        let remote = remote(&server);
        // Whatever is wrong, it ends; what is right is right.
        if let Ok(ledger) = Ledger::open_in(Arc::new(remote.clone()), remote.root()) {
            assert_eq!(ledger.sealed().len(), 2, "seed {seed}");
        }
    }
}

#[test]
fn a_file_that_changes_under_its_reader_is_not_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("retention.json");
    std::fs::write(&path, vec![1; 100_000]).unwrap();
    let server = Server::honest(dir.path());
    let remote = remote(&server);
    let file = remote.open(&remote.root().join("retention.json")).unwrap();
    std::fs::write(&path, vec![2; 200_000]).unwrap();
    let error = file.read_exact_at(&mut vec![0; 100_000], 0).unwrap_err();
    assert!(error.to_string().contains("changed while it was read"), "{error}");
    // Heads and lists are asked for anew each time.
    assert_eq!(
        read_whole(&remote, &remote.root().join("retention.json"), 1 << 20).unwrap().len(),
        200_000
    );
}

#[test]
fn urls_that_are_none_are_refused_and_a_server_without_ledger_is_named() {
    for url in ["http://", "http://u:p@127.0.0.1/", "http://127.0.0.1/?q", "https://h/#f"] {
        let failed = output(&["show", url]);
        assert_eq!(failed.status.code(), Some(2), "{url}");
        assert!(!String::from_utf8_lossy(&failed.stderr).contains("u:p"));
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::honest(dir.path());
    let failed = output(&["show", &server.url()]);
    assert_eq!(failed.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("serves no ledger"));
    let failed = output(&["fsck", &server.url()]);
    assert_eq!(failed.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("takes a directory"));
    let closed = { Server::honest(dir.path()).url() };
    let failed = output(&["show", &closed]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains(&closed) && said.contains("cannot be reached"), "{said}");
}

#[test]
fn a_server_that_lies_about_bytes_fails_the_audit_and_one_that_fails_leaves_it_incomplete() {
    let run = sealed();
    let key = log_key(&run.path());
    let lying = Server::start(&run.path(), |asked| match asked.path.contains("a.weight") {
        _ if asked.path.starts_with("segments/tensors") => Act::Flip { at: 70_000 },
        _ => Act::Honest,
    });
    let report = document(&["audit", &lying.url(), "--json", "--log-key", &key], 20);
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|c| c["status"] == "failed").collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0]["check"], "fold");
    let absent = Server::start(&run.path(), |asked| match asked.path.starts_with("segments/") {
        true => Act::Say(403, vec![], vec![]),
        false => Act::Honest,
    });
    let report = document(&["audit", &absent.url(), "--json", "--log-key", &key], 3);
    assert!(
        report["checks"].as_array().unwrap().iter().all(|c| c["status"] != "failed"),
        "{report:#}"
    );
}

/// Certificates for 127.0.0.1 by an authority of its own; none where there is no `openssl`.
fn certificates(dir: &Path) -> Option<()> {
    let run = |arguments: &str| {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let done =
            std::process::Command::new("openssl").args(words).current_dir(dir).output().ok()?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch";
    std::fs::write(
        dir.join("leaf.ext"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"))?;
    run(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=leaf"))?;
    run(
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out leaf.pem -days 2 -extfile leaf.ext",
    )
}

/// One question after the other from TLS to a plain server, and its answers back.
fn relay(
    stream: std::net::TcpStream,
    config: Arc<rustls::ServerConfig>,
    to: &str,
) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Read, Write};
    let tls = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream);
    let mut tls = BufReader::new(tls);
    let plain = std::net::TcpStream::connect(to)?;
    let mut plain = BufReader::new(plain);
    fn head(from: &mut impl BufRead) -> std::io::Result<Option<String>> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head)? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(head))
    }
    while let Some(question) = head(&mut tls)? {
        plain.get_mut().write_all(question.as_bytes())?;
        let Some(answer) = head(&mut plain)? else { return Ok(()) };
        let length = answer.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length =
            if question.starts_with("HEAD") { 0 } else { length.unwrap().parse().unwrap() };
        let mut body = vec![0; length];
        plain.read_exact(&mut body)?;
        tls.get_mut().write_all(answer.as_bytes())?;
        tls.get_mut().write_all(&body)?;
        tls.get_mut().flush()?;
    }
    Ok(())
}

#[test]
fn https_is_read_with_a_certificate_that_the_system_trusts_and_with_no_other() {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let (run, dir) = (sealed(), tempfile::tempdir().unwrap());
    if certificates(dir.path()).is_none() {
        return println!("skipped: there is no openssl to make certificates with");
    }
    let server = Server::honest(&run.path());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let leaf = CertificateDer::from_pem_file(dir.path().join("leaf.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.path().join("leaf.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let (config, to) = (Arc::new(config), server.url().replace("http://", ""));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, config, to) = (stream.unwrap(), config.clone(), to.clone());
            std::thread::spawn(move || drop(relay(stream, config, &to)));
        }
    });
    let show = |authority: &Path| {
        program(&["show", &url, "--json"]).env("SSL_CERT_FILE", authority).output().unwrap()
    };
    let shown = show(&dir.path().join("ca.pem"));
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let here = document(&["show", run.path().to_str().unwrap(), "--json"], 0);
    assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).unwrap(), here);
    let other = tempfile::tempdir().unwrap();
    certificates(other.path()).unwrap();
    let refused = show(&other.path().join("ca.pem"));
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("certificate"), "{said}");
}
