//! A real server that takes uploads, and a miner that sends it whatever a test says.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use gradledger::{
    codec::epistula::{Envelope, uuid_of},
    ledger::{
        Ledger,
        init::{InitOptions, init},
        submit::Receipt,
    },
    store::{
        files::Disk,
        place::Place,
        remote::{Http, HttpOptions, Question, Sent},
        segment::delta::DeltaWriter,
    },
    sync::submit::Staged,
    types::{
        bits::F32Bits,
        digest::Digest,
        json,
        progress::Silent,
        record::MinersPolicy,
        rule::{Dialect, Mean, Norm, SparseMeanSgd},
        submission::SignatureHex,
        upload::{Part, UploadRequest, UploadState},
    },
};
use serde_json::Value;

use super::{
    Random,
    miner::{self, hotkey, public},
};

/// A native run of a model with one large and one small tensor.
pub struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    /// Lists the miners from 1 on; the large tensor has `side` rows and columns.
    pub fn new(miners: u8, side: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let run = Self { dir };
        let mut random = Random(7);
        let some: Vec<u8> = (0..side.min(4096)).flat_map(|_| value(&mut random)).collect();
        let large = some.repeat((side * side / side.min(4096)) as usize);
        let small: Vec<u8> = (0..24).flat_map(|_| value(&mut random)).collect();
        let tensors = [("large", vec![side, side], large), ("small", vec![24], small)];
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let shape = shape.iter().map(|&n| n as usize).collect();
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes);
            (name, view.expect("a tensor"))
        });
        let bytes = safetensors::serialize(views, None).expect("a file");
        fs::write(run.path("base.safetensors"), bytes).expect("a new file");
        let checkpoint = run.path("base.safetensors");
        let options = InitOptions {
            miners: MinersPolicy::Hotkeys((1..=miners).map(public).collect()),
            ..InitOptions::new(
                "uploads",
                "uploads.invalid/run",
                &checkpoint,
                SparseMeanSgd {
                    dialect: Dialect::Native,
                    chunk: 8,
                    top_k: 32,
                    bins: 4,
                    lr_f32: F32Bits(0.5),
                    mean: Mean::Contributors,
                    norm: Norm::HistogramF64,
                },
            )
        };
        init(&run.ledger(), &options, &Silent).expect("a new ledger");
        (1..=miners + 1)
            .for_each(|number| miner::write_key(&run.path(&format!("key-{number}")), number));
        run
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn ledger(&self) -> PathBuf {
        self.path("ledger")
    }

    pub fn open(&self) -> Ledger {
        Ledger::open(&self.ledger()).expect("a ledger")
    }

    /// Sets `[serve.uploads]`.
    pub fn configure(&self, lines: &str) {
        let text = format!("[serve.uploads]\n{lines}\n");
        fs::write(self.ledger().join("gradledger.toml"), text).expect("a file");
    }

    /// A directory of delta segments, other ones for each seed.
    pub fn delta(&self, seed: u64) -> PathBuf {
        let dir = self.path(&format!("delta-{seed}"));
        if dir.exists() {
            return dir;
        }
        let (layout, mut random) = (self.open().layout().expect("a model"), Random(seed));
        let mut writer = DeltaWriter::create(&Disk, &dir, 4).expect("a new directory");
        for tensor in &layout.tensors {
            let (mut index, mut code) = (Vec::new(), Vec::new());
            let (blocks, step) = (tensor.grid.blocks(), tensor.grid.block_elements() / tensor.k);
            let some = if blocks.is_multiple_of(4096) { 4096 } else { blocks };
            for _ in 0..some {
                let first = random.below(step);
                let places: Vec<u16> = (0..tensor.k).map(|at| (first + step * at) as u16).collect();
                gradledger_kernels::codes::pack_index(&places, &mut index).expect("12 bits each");
                code.extend((0..tensor.code_bytes_per_block()).map(|_| random.next() as u8));
            }
            let mut rows =
                writer.tensor(&tensor.name, tensor.k, blocks).expect("a tensor of the model");
            for _ in 0..blocks / some {
                rows.write_index(&index).expect("whole blocks");
            }
            for _ in 0..blocks / some {
                rows.write_code(&code).expect("whole blocks");
            }
            rows.finish().expect("all rows");
            let book = [-1.0, -0.25, 0.25, 1.0, 0.125_f32].map(f32::to_le_bytes);
            writer.book(&tensor.name, book.as_flattened()).expect("a book");
        }
        writer.finish().expect("all tensors");
        dir
    }

    /// A delta as it is sent.
    pub fn stage(&self, seed: u64) -> Staged {
        miner::stage(&self.open(), 1, &self.delta(seed))
    }

    /// The program, with words `LEDGER`, `URL`, `KEY3` and `DELTA5` put in place.
    pub fn command(&self, words: &str, url: &str) -> Command {
        let place = |word: &str| {
            if let Some(seed) = word.strip_prefix("DELTA") {
                return self.delta(seed.parse().expect("a seed")).into_os_string();
            }
            match word.strip_prefix("KEY") {
                Some(number) => self.path(&format!("key-{number}")).into_os_string(),
                None if word == "LEDGER" => self.ledger().into_os_string(),
                None if word == "URL" => url.into(),
                None => word.into(),
            }
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradledger"));
        command.args(words.split(' ').map(place)).env("RAYON_NUM_THREADS", "2");
        command
    }

    pub fn run(&self, words: &str, url: &str) -> Output {
        self.command(words, url).output().expect("the program")
    }

    /// The document of a command that succeeds.
    pub fn document(&self, words: &str, url: &str) -> Value {
        let output = self.run(words, url);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}: {said}");
        serde_json::from_slice(&output.stdout).expect("a document")
    }

    /// Starts `serve`, with uploads.
    pub fn serve(&self, more: &str) -> Desk {
        let words = format!(
            "serve LEDGER --uploads --listen 127.0.0.1:0 --metrics off --json --log warn{more}"
        );
        self.start(&words)
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    /// Starts `serve`.
    pub fn start(&self, words: &str) -> Desk {
        let mut command = self.command(words, "");
        let log = fs::File::create(self.path("serve.log")).expect("a new file");
        let spawned = command.stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = spawned.expect("the program");
        let stdout = child.stdout.take().expect("a pipe");
        let mut text = String::new();
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let document: Value = loop {
            let Some(line) = lines.next() else {
                panic!("it does not serve: {}", self.log());
            };
            text += &line;
            if let Ok(document) = serde_json::from_str(&text) {
                break document;
            }
        };
        let url = format!("http://{}", document["listen"].as_str().expect("an address"));
        Desk { child, url }
    }
}

fn value(random: &mut Random) -> [u8; 4] {
    (random.below(1000) as f32 / 1000.0 - 0.5).to_le_bytes()
}

/// A server that runs until it is dropped.
pub struct Desk {
    pub child: Child,
    pub url: String,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Desk {
    /// Kills it, as the system would.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Ends it in good order.
    pub fn end(mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        self.child.wait().expect("it ends").success()
    }

    /// Peak of its resident memory in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
        let kib: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("KiB");
        kib << 10
    }
}

/// A miner that does as it should, unless a test changes what it sends.
pub struct Miner {
    pub number: u8,
    pub http: Http,
    pub staged: Arc<Staged>,
    pub request: UploadRequest,
}

/// A request that is about to be signed.
pub struct Signing {
    pub method: &'static str,
    pub path: String,
    pub request: UploadRequest,
    /// Added to the clock.
    pub skew_ms: i64,
    pub number: u8,
}

/// A signed request.
#[derive(Clone)]
pub struct SignedRequest {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Signing {
    pub fn sign(&self) -> SignedRequest {
        let body = json::to_vec(&self.request);
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
        let uuid = uuid_of(
            Digest::of(format!("{now}{:?}", std::time::Instant::now()).as_bytes()).0[..16]
                .try_into()
                .expect("16 bytes"),
        );
        let now = now.saturating_add_signed(self.skew_ms);
        let headers = Envelope::sign(&hotkey(self.number), &body, now, &uuid).headers();
        SignedRequest { method: self.method, path: self.path.clone(), headers, body }
    }
}

impl Miner {
    /// Miner `number` at a server, with delta `seed` for round 1.
    pub fn new(run: &Run, url: &str, number: u8, seed: u64) -> Self {
        Self::with(run, url, number, Arc::new(run.stage(seed)))
    }

    pub fn with(run: &Run, url: &str, number: u8, staged: Arc<Staged>) -> Self {
        let ledger = run.open();
        let request = UploadRequest {
            method: String::new(),
            path: String::new(),
            run: ledger.run_id(),
            round: 1,
            base: ledger.newest().root,
            delta: staged.delta(),
            signature: None,
        };
        let options = HttpOptions { wait: Duration::from_millis(5), ..HttpOptions::default() };
        Self { number, http: Http::new(url, &options).expect("a URL"), staged, request }
    }

    pub fn id(&self) -> Digest {
        let UploadRequest { run, round, base, delta, .. } = self.request;
        miner::statement(run, round, base, delta, self.number).id()
    }

    /// What a create says.
    pub fn creating(&self) -> Signing {
        let (method, path) = ("POST", "/v1/uploads".to_owned());
        let mut request = self.request.clone();
        (request.method, request.path) = (method.to_owned(), path.clone());
        Signing { method, path, request, skew_ms: 0, number: self.number }
    }

    /// What a commit says.
    pub fn committing(&self) -> Signing {
        let mut signing = self.creating();
        signing.path = format!("/v1/uploads/{}/commit", self.id());
        let UploadRequest { run, round, base, delta, .. } = signing.request;
        let statement = miner::statement(run, round, base, delta, self.number);
        let signature = statement.sign(&hotkey(self.number)).expect("its own statement");
        signing.request.path.clone_from(&signing.path);
        signing.request.signature = Some(SignatureHex(signature));
        signing
    }

    pub fn send(&self, request: &SignedRequest) -> Sent {
        let SignedRequest { method, path, headers, body } = request;
        let question = Question { method, path, query: None, headers, body };
        self.http.send(&question).expect("an answer")
    }

    pub fn create(&self) -> UploadState {
        let sent = self.send(&self.creating().sign());
        assert!(matches!(sent.status, 200 | 201), "{}", text(&sent));
        serde_json::from_slice(&sent.body).expect("a state")
    }

    pub fn put(&self, what: &str, query: Option<&str>, token: Digest, body: &[u8]) -> Sent {
        self.put_as(what, query, token, body, Digest::of(body))
    }

    pub fn put_as(
        &self,
        what: &str,
        query: Option<&str>,
        token: Digest,
        body: &[u8],
        sha256: Digest,
    ) -> Sent {
        let path = format!("/v1/uploads/{}/{what}", self.id());
        let headers =
            [("authorization", format!("Bearer {token}")), ("x-content-sha256", sha256.to_hex())];
        let question = Question { method: "PUT", path: &path, query, headers: &headers, body };
        self.http.send(&question).expect("an answer")
    }

    pub fn put_part(&self, token: Digest, part: Part) -> Sent {
        let bytes = self.staged.part(part).expect("a part of it");
        self.put("parts", Some(&format!("offset={}", part.offset)), token, &bytes)
    }

    /// Sends all that is missing.
    pub fn send_all(&self) -> UploadState {
        let state = self.create();
        let token = state.token.expect("something is missing");
        if state.hashes_bytes.is_some() {
            let sent = self.put("hashes", None, token, &self.staged.hashes().expect("hashes"));
            assert_eq!(sent.status, 204, "{}", text(&sent));
        }
        for part in &state.missing {
            let sent = self.put_part(token, *part);
            assert_eq!(sent.status, 204, "{}", text(&sent));
        }
        state
    }

    pub fn commit(&self) -> Receipt {
        loop {
            let sent = self.send(&self.committing().sign());
            match sent.status {
                200 => return serde_json::from_slice(&sent.body).expect("a receipt"),
                202 => std::thread::sleep(Duration::from_millis(200)),
                _ => panic!("{}", text(&sent)),
            }
        }
    }
}

/// Status and code of a problem.
pub fn problem(sent: &Sent) -> (u16, String) {
    let document: Value = serde_json::from_slice(&sent.body).expect("a problem");
    assert_eq!(document["status"], sent.status);
    (sent.status, document["code"].as_str().expect("a code").to_owned())
}

pub fn text(sent: &Sent) -> String {
    format!("{} {}", sent.status, String::from_utf8_lossy(&sent.body))
}

/// All files below a directory, by name and length. One that is renamed meanwhile is left out.
pub fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let length = |path: PathBuf| Some((path.clone(), fs::metadata(path).ok()?.len()));
    super::model::all_files(dir).into_iter().filter_map(length).collect()
}

/// A place of its own for what a test keeps.
pub fn scratch(dir: &Path) -> Place {
    Place::new(Arc::new(Disk), dir)
}
