//! What does a GiB of blobs, or of files for Hub clients, cost the server's processor, what do slow readers
//! cost its memory, and what does a large round's document cost?
//!
//! `ulimit -n 8192; cargo bench --bench http -- --dir DIR [--gib 4] [--runs 3]`. It prints a Markdown
//! table and writes a record below `benches/record/`. Linux alone: `/proc` is asked.
//!
//! A file of 256 MiB, in the page cache, is fetched over loopback by one connection and by 64 at once,
//! from `gradledger serve`, from nginx where that is installed (two workers, sendfile off and on), and
//! from `warp::fs`. Processor time is the server's processes' alone, user and system. Files for Hub
//! clients, which are computed from a state of 256 MiB as they are sent, are fetched beside it. Then 1,000
//! clients ask for the file and take 16 KiB a second each, and the server's anonymous memory is
//! watched while 8 others fetch at full speed.
//!
//! The document of a round with 1,000 submissions is made without their signatures; beside it is what
//! checking those costs.

#![allow(clippy::unwrap_used)] // What is shared with tests unwraps.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tools/record.rs"]
mod record;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use common::{
    desk::Run,
    miner,
    served::{head, read_reply},
};
use gradledger::{
    ledger::{
        check::check_round,
        seal::{FoldOptions, seal},
        show::show_round,
        writer::LedgerWriter,
    },
    types::{
        digest::Digest,
        manifest::ManifestId,
        progress::Silent,
        refusal::{Code, Refusal},
        submission::{SignatureHex, Signed, Submission},
    },
};

const GRADLEDGER: &str = env!("CARGO_BIN_EXE_gradledger");

const FILE_BYTES: u64 = 256 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// The bars: processor seconds a GiB, and bytes with 1,000 slow readers.
const CPU_SECONDS_MAX: f64 = 0.6;
const SLOW_BYTES_MAX: u64 = 256 << 20;

const SLOW_READERS: usize = 1000;

/// Rows and columns of the model's tensor: a state as large as the file.
const SIDE: u64 = 8192;

/// Submissions of the round whose document is asked for.
const SUBMISSIONS: u64 = 1000;

/// Clock ticks a second, as `/proc` counts processor time on Linux.
const TICKS: f64 = 100.0;

#[derive(Parser)]
#[command(name = "http")]
struct Args {
    /// Where nginx has its files; the ledger lies where temporary files do.
    #[arg(long, default_value = "/tmp/gradledger-http-bench")]
    dir: PathBuf,
    /// GiB fetched from each server with each number of connections.
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// How often all of it is done.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Serves DIR with warp::fs: what this program starts itself as.
    #[arg(long, hide = true)]
    warp_fs: Option<u16>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.warp_fs {
        Some(port) => serve_warp_fs(&args.dir, port),
        None => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("a bar is missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_warp_fs(dir: &Path, port: u16) -> Result<bool, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(warp::serve(warp::fs::dir(dir.to_owned())).run((Ipv4Addr::LOCALHOST, port)));
    Ok(true)
}

/// Something to fetch.
struct Download {
    path: String,
    bytes: u64,
}

/// A server that is measured.
struct Measured {
    name: &'static str,
    child: Child,
    address: SocketAddr,
    file: Download,
}

impl Drop for Measured {
    fn drop(&mut self) {
        // Its workers end with nginx' master, which wants to be told.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Measured {
    /// The process and its children.
    fn processes(&self) -> Vec<u32> {
        let parent = self.child.id();
        let of = |entry: fs::DirEntry| -> Option<u32> {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            (pid == parent || stat(pid)?.1 == parent).then_some(pid)
        };
        fs::read_dir("/proc").unwrap().filter_map(|entry| of(entry.ok()?)).collect()
    }

    fn cpu_seconds(&self) -> f64 {
        self.processes().into_iter().filter_map(stat).map(|(ticks, _)| ticks / TICKS).sum()
    }

    fn anonymous_bytes(&self) -> u64 {
        let text =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }

    /// Fetches `file` `times` times over `connections`; CPU and wall seconds a GiB.
    fn fetch(&self, file: &Download, connections: u64, times: u64) -> Result<[f64; 2], Failed> {
        let (cpu, begun) = (self.cpu_seconds(), Instant::now());
        thread::scope(|scope| {
            let of = |n: u64| times / connections + u64::from(n < times % connections);
            let clients: Vec<_> = (0..connections)
                .map(|n| scope.spawn(move || (0..of(n)).try_for_each(|_| self.fetch_one(file))))
                .collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap())
        })?;
        let gib = (times * file.bytes) as f64 / GIB;
        Ok([(self.cpu_seconds() - cpu) / gib, begun.elapsed().as_secs_f64() / gib])
    }

    fn fetch_one(&self, file: &Download) -> Result<(), Failed> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "{}", head("GET", &file.path, &[], true))?;
        let (mut buffer, mut read) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                bytes => read += bytes as u64,
            }
        }
        // A head comes with it.
        let whole = (file.bytes..file.bytes + 4096).contains(&read);
        if whole { Ok(()) } else { Err(format!("{}: {read} bytes came", self.name).into()) }
    }
}

/// Ticks of processor time, and the parent.
fn stat(pid: u32) -> Option<(f64, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, but ends with the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64, number(1)? as u32))
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(
    name: &'static str,
    command: &mut Command,
    port: u16,
    path: &'static str,
) -> Result<Measured, Failed> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let file = Download { path: path.to_owned(), bytes: FILE_BYTES };
    let server = Measured { name, child, address, file };
    for _ in 0..200 {
        if TcpStream::connect(address).is_ok() {
            return Ok(server);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{name} does not listen").into())
}

fn gradledger(ledger: &Path) -> Result<Measured, Failed> {
    let port = free_port();
    let mut command = Command::new(GRADLEDGER);
    command.arg("serve").arg(ledger).args(["--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--metrics", "off", "--log", "warn", "--connections-max", "2048"]);
    command.args(["--connections-per-address-max", "2048"]);
    start("gradledger", &mut command, port, "/v1/files/tables/large/blob.parquet")
}

fn nginx(dir: &Path, large: &Path, sendfile: bool) -> Result<Option<Measured>, Failed> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let (port, prefix) = (free_port(), dir.join("nginx"));
    fs::create_dir_all(&prefix)?;
    let (prefix, root) = (prefix.display(), large.display());
    let on = if sendfile { "on" } else { "off" };
    let config = format!(
        "user root; worker_processes 2; daemon off; pid {prefix}/pid; error_log {prefix}/error.log; \
         events {{ worker_connections 2048; }} http {{ access_log off; sendfile {on}; output_buffers 1 1m; \
         client_body_temp_path {prefix}/a; proxy_temp_path {prefix}/b; fastcgi_temp_path {prefix}/c; \
         uwsgi_temp_path {prefix}/d; scgi_temp_path {prefix}/e; \
         server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let name = if sendfile { "nginx, sendfile" } else { "nginx, no sendfile" };
    start(name, Command::new("nginx").arg("-c").arg(file), port, "/blob.parquet").map(Some)
}

fn warp_fs(large: &Path) -> Result<Measured, Failed> {
    let port = free_port();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--dir").arg(large).args(["--warp-fs", &port.to_string()]);
    start("warp::fs", &mut command, port, "/blob.parquet")
}

/// The most anonymous memory with slow readers, and whether the quick ones were served meanwhile.
fn slow_readers(server: &Measured) -> Result<u64, Failed> {
    let done = Arc::new(AtomicBool::new(false));
    let mut slow = Vec::new();
    for _ in 0..SLOW_READERS {
        let mut stream = TcpStream::connect(server.address)?;
        write!(stream, "{}", head("GET", &server.file.path, &[], true))?;
        slow.push(stream);
    }
    let ended = done.clone();
    let reading = thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while !ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            slow.iter_mut().try_for_each(|stream| stream.read_exact(&mut buffer))?;
            thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        }
        std::io::Result::Ok(())
    });
    let mut peak = 0;
    thread::scope(|scope| -> Result<(), Failed> {
        let quick: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.fetch_one(&server.file))).collect();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(15) {
            peak = server.anonymous_bytes().max(peak);
            thread::sleep(Duration::from_millis(20));
        }
        quick.into_iter().try_for_each(|client| client.join().unwrap())
    })?;
    done.store(true, Ordering::Relaxed);
    reading.join().unwrap()?;
    Ok(peak)
}

/// A ledger with a large state, a large file among its tables, which may hold any, and a sealed round with
/// many submissions of deltas that are nowhere.
fn ledger(dir: &Path) -> Result<(Run, PathBuf), Failed> {
    let run = Run::new(1, SIDE);
    let mut writer = LedgerWriter::open(&run.ledger(), None)?;
    let (id, base) = (writer.ledger().run_id(), writer.ledger().newest().root);
    let submission = |number: u64| -> Result<Submission, Failed> {
        let delta = ManifestId { root: Digest::of(&number.to_le_bytes()), count: 6, bytes: 100 };
        let statement = miner::statement(id, 1, base, delta, 1);
        let signature = SignatureHex(statement.sign(&miner::hotkey(1))?);
        let (round, hotkey) = (1, miner::public(1));
        let refused = Some(Refusal::new(Code::NonFinite, None, "a number", "NaN"));
        Ok(Submission::Signed(Signed { round, base, delta, hotkey, signature, refused }))
    };
    let submissions = (0..SUBMISSIONS).map(submission).collect::<Result<Vec<_>, _>>()?;
    writer.append_submissions(&submissions)?;
    seal(&mut writer, 1, FoldOptions::default(), &Silent)?;
    drop(writer);
    let large = run.ledger().join("tables/large");
    fs::create_dir_all(&large)?;
    let block: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = fs::File::create(large.join("blob.parquet"))?;
    for _ in 0..FILE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    fs::create_dir_all(dir)?;
    Ok((run, large))
}

/// The two files of the state for Hub clients, once they are listed.
fn hub_files(server: &Measured) -> Result<[(&'static str, Download); 2], Failed> {
    let of = |name, repository: &str| -> Result<_, Failed> {
        let path = format!("/gradledger/{repository}/resolve/main/model.safetensors");
        for _ in 0..1200 {
            let mut stream = TcpStream::connect(server.address)?;
            write!(stream, "{}", head("HEAD", &path, &[], true))?;
            let reply = read_reply(&mut stream, "HEAD")?;
            if reply.status == 200 {
                let bytes = reply.header("content-length").ok_or("no length")?.parse()?;
                return Ok((name, Download { path, bytes }));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(format!("{path} is not listed").into())
    };
    Ok([of("f32", "uploads-f32")?, of("bf16", "uploads")?])
}

/// Seconds of making the document of a round, and of checking the round with all signatures.
fn document(run: &Run) -> Result<[f64; 2], Failed> {
    let ledger = run.open();
    let seconds = |work: &dyn Fn() -> Result<usize, Failed>| -> Result<f64, Failed> {
        let once = || {
            let begun = Instant::now();
            work().map(|_| begun.elapsed().as_secs_f64())
        };
        Ok(median((0..5).map(|_| once()).collect::<Result<_, _>>()?))
    };
    let shown = seconds(&|| Ok(serde_json::to_vec(&show_round(&ledger, 1)?)?.len()))?;
    Ok([shown, seconds(&|| Ok(check_round(&ledger, 0)?.deltas.len()))?])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Fetches from all servers side by side in each run, since the machine is noisy; says our most CPU
/// seconds a GiB.
fn blobs(args: &Args, servers: &[Measured], values: &mut Values) -> Result<f64, Failed> {
    let [f32, bf16] = hub_files(&servers[0])?;
    let mut fetched: Vec<_> =
        servers.iter().map(|server| (server.name.to_owned(), server, &server.file)).collect();
    for (dtype, file) in [&f32, &bf16] {
        fetched.push((format!("gradledger, Hub file in {dtype}"), &servers[0], file));
    }
    let mut ours = 0.0f64;
    println!("| server | connections | CPU s/GiB | wall s/GiB |\n|---|---:|---:|---:|");
    for connections in [1, 64] {
        let mut runs = vec![Vec::new(); fetched.len()];
        for _ in 0..args.runs {
            for ((_, server, file), runs) in fetched.iter().zip(&mut runs) {
                let times = (args.gib << 30) / file.bytes;
                runs.push(server.fetch(file, connections, times.max(connections))?);
            }
        }
        for ((name, _, _), runs) in fetched.iter().zip(runs) {
            let [cpu, wall] = [0, 1].map(|at| median(runs.iter().map(|run| run[at]).collect()));
            println!("| {name} | {connections} | {cpu:.2} | {wall:.2} |");
            let label = name.replace(", ", "-").replace(' ', "-");
            values.push((format!("{label}/{connections}-connections/cpu"), cpu, "s/GiB"));
            values.push((format!("{label}/{connections}-connections/wall"), wall, "s/GiB"));
            if name == "gradledger" {
                ours = ours.max(cpu);
            }
        }
    }
    Ok(ours)
}

type Values = Vec<(String, f64, &'static str)>;

fn run(args: &Args) -> Result<bool, Failed> {
    let (run, large) = ledger(&args.dir)?;
    let mut values = Values::new();
    let [shown, checked] = document(&run)?;
    println!(
        "document of a round with {SUBMISSIONS:?} submissions: {:.1} ms; checking their signatures: {:.1} ms\n",
        shown * 1e3,
        checked * 1e3
    );
    values.push(("round-of-1000/document/of-checking-it".into(), shown / checked, "ratio"));
    let mut servers = vec![gradledger(&run.ledger())?, warp_fs(&large)?];
    servers.extend(nginx(&args.dir, &large, false)?);
    let ours = blobs(args, &servers, &mut values)?;
    if let Some(server) = nginx(&args.dir, &large, true)? {
        let times = (args.gib << 30) / FILE_BYTES;
        let [cpu, wall] = server.fetch(&server.file, 64, times.max(64))?;
        println!("| {} | 64 | {cpu:.2} | {wall:.2} |", server.name);
        values.push(("nginx-sendfile/64-connections/cpu".into(), cpu, "s/GiB"));
    }
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let after = mib(servers[0].anonymous_bytes());
    println!("\nafter all downloads: {after:.0} MiB of anonymous memory");
    values.push(("gradledger/after-all-downloads/anonymous".into(), after, "MiB"));
    drop(servers);
    // What the allocator keeps of the downloads before is not the slow readers'.
    let slow = slow_readers(&gradledger(&run.ledger())?)?;
    println!("1,000 slow readers and 8 quick ones: {:.0} MiB of anonymous memory", mib(slow));
    values.push(("gradledger/1000-slow-readers/anonymous".into(), mib(slow), "MiB"));
    record::write("http", &values)?;
    fs::remove_dir_all(&args.dir)?;
    Ok(ours <= CPU_SECONDS_MAX && slow < SLOW_BYTES_MAX)
}
