//! What does a GiB of blobs cost the server's processor, and what do slow readers cost its memory?
//!
//! `ulimit -n 8192; cargo bench --bench http -- --dir DIR [--gib 4] [--runs 3]`. It prints a Markdown
//! table and writes a record below `benches/record/`. Linux alone: `/proc` is asked.
//!
//! A file of 256 MiB, in the page cache, is fetched over loopback by one connection and by 64 at once,
//! from `gradledger serve`, from nginx where that is installed (two workers, sendfile off and on), and
//! from `warp::fs`. Processor time is the server's processes' alone, user and system. Then 1,000
//! clients ask for the file and take 16 KiB a second each, and the server's anonymous memory is
//! watched while 8 others fetch at full speed.

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
    ledger::{Fixture, Step},
    served::head,
};
use gradledger::store::files::{Disk, Files};

const GRADLEDGER: &str = env!("CARGO_BIN_EXE_gradledger");

const FILE_BYTES: u64 = 256 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// The bars: processor seconds a GiB, and bytes with 1,000 slow readers.
const CPU_SECONDS_MAX: f64 = 0.6;
const SLOW_BYTES_MAX: u64 = 256 << 20;

const SLOW_READERS: usize = 1000;

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

/// A server that is measured.
struct Measured {
    name: &'static str,
    child: Child,
    address: SocketAddr,
    path: &'static str,
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

    /// Fetches the file `times` times over `connections`; CPU and wall seconds a GiB.
    fn fetch(&self, connections: u64, times: u64) -> Result<[f64; 2], Failed> {
        let (cpu, begun) = (self.cpu_seconds(), Instant::now());
        thread::scope(|scope| {
            let of = |n: u64| times / connections + u64::from(n < times % connections);
            let clients: Vec<_> = (0..connections)
                .map(|n| scope.spawn(move || (0..of(n)).try_for_each(|_| self.fetch_one())))
                .collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap())
        })?;
        let gib = (times * FILE_BYTES) as f64 / GIB;
        Ok([(self.cpu_seconds() - cpu) / gib, begun.elapsed().as_secs_f64() / gib])
    }

    fn fetch_one(&self) -> Result<(), Failed> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "{}", head("GET", self.path, &[], true))?;
        let (mut buffer, mut read) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                bytes => read += bytes as u64,
            }
        }
        // A head comes with it.
        let whole = (FILE_BYTES..FILE_BYTES + 4096).contains(&read);
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
    let server = Measured { name, child, address, path };
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
        write!(stream, "{}", head("GET", server.path, &[], true))?;
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
        let quick: Vec<_> = (0..8).map(|_| scope.spawn(|| server.fetch_one())).collect();
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

/// A ledger with a large file among its tables, which may hold any.
fn ledger(dir: &Path) -> Result<(Fixture, PathBuf), Failed> {
    let fixture = Fixture::new();
    let files: Arc<dyn Files> = Arc::new(Disk);
    fixture.step(&Step::Init, &fixture.root(), &files, &mut Vec::new())?;
    let large = fixture.root().join("tables/large");
    fs::create_dir_all(&large)?;
    let block: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = fs::File::create(large.join("blob.parquet"))?;
    for _ in 0..FILE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    fs::create_dir_all(dir)?;
    Ok((fixture, large))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(args: &Args) -> Result<bool, Failed> {
    let (fixture, large) = ledger(&args.dir)?;
    let mut servers = vec![gradledger(&fixture.root())?, warp_fs(&large)?];
    servers.extend(nginx(&args.dir, &large, false)?);
    let times = (args.gib << 30) / FILE_BYTES;
    let (mut values, mut ours) = (Vec::new(), 0.0f64);
    println!("| server | connections | CPU s/GiB | wall s/GiB |\n|---|---:|---:|---:|");
    for connections in [1, 64] {
        let mut runs = vec![Vec::new(); servers.len()];
        for _ in 0..args.runs {
            // Side by side in each run, since the machine is noisy.
            for (server, runs) in servers.iter().zip(&mut runs) {
                runs.push(server.fetch(connections, times.max(connections))?);
            }
        }
        for (server, runs) in servers.iter().zip(runs) {
            let [cpu, wall] = [0, 1].map(|at| median(runs.iter().map(|run| run[at]).collect()));
            println!("| {} | {connections} | {cpu:.2} | {wall:.2} |", server.name);
            let name = format!(
                "{}/{connections}-connections",
                server.name.replace(", ", "-").replace(' ', "-")
            );
            values.push((format!("{name}/cpu"), cpu, "s/GiB"));
            values.push((format!("{name}/wall"), wall, "s/GiB"));
            if server.name == "gradledger" {
                ours = ours.max(cpu);
            }
        }
    }
    if let Some(server) = nginx(&args.dir, &large, true)? {
        let [cpu, wall] = server.fetch(64, times.max(64))?;
        println!("| {} | 64 | {cpu:.2} | {wall:.2} |", server.name);
        values.push(("nginx-sendfile/64-connections/cpu".into(), cpu, "s/GiB"));
    }
    servers.truncate(1);
    let slow = slow_readers(&servers[0])?;
    println!(
        "\n1,000 slow readers and 8 quick ones: {:.0} MiB of anonymous memory",
        slow as f64 / (1 << 20) as f64
    );
    values.push((
        "gradledger/1000-slow-readers/anonymous".into(),
        slow as f64 / (1 << 20) as f64,
        "MiB",
    ));
    record::write("http", &values)?;
    fs::remove_dir_all(&args.dir)?;
    Ok(ours <= CPU_SECONDS_MAX && slow < SLOW_BYTES_MAX)
}
