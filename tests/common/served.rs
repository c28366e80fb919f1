//! A real server on a free port of loopback, and a client that sends exactly what a test says.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use gradledger::{
    http::{Limits, Node, Server},
    ledger::Ledger,
};
use tokio::sync::oneshot;

/// How long a test waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server that runs until it is dropped.
pub struct Served {
    pub address: SocketAddr,
    pub metrics: SocketAddr,
    pub node: Arc<Node>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Limits with which most tests never meet one.
pub fn limits() -> Limits {
    Limits { drain_timeout: Duration::from_secs(5), ..Limits::default() }
}

impl Served {
    /// Serves the ledger at `root`.
    pub fn start(root: &Path, limits: Limits) -> Self {
        let node = Node::new(Ledger::open(root).expect("a ledger")).expect("a ledger that reads");
        let served = node.clone();
        let (started, start) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(8)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let server = Server::bind(served, free, Some(free), limits).await.expect("a port");
                let metrics = server.metrics_address().expect("it tells of itself");
                started.send((server.address(), metrics)).expect("the test waits");
                server.run(async { stopped.await.unwrap_or_default() }).await;
            });
        });
        let (address, metrics) = start.recv().expect("it started");
        Self { address, metrics, node, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells it to end.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until it has ended.
    pub fn join(mut self) {
        self.stop();
        self.thread.take().expect("it is joined once").join().expect("it does not panic");
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// The answer to GET with these header lines.
    pub fn get(&self, path: &str, headers: &[&str]) -> Reply {
        self.send("GET", path, headers)
    }

    /// The answer to a request without a body.
    pub fn send(&self, method: &str, path: &str, headers: &[&str]) -> Reply {
        let mut stream = self.connect();
        write!(stream, "{}", head(method, path, headers, true)).expect("it takes the request");
        read_reply(&mut stream, method).expect("a whole answer")
    }

    /// The answer to POST of `body` with these header lines.
    pub fn post(&self, path: &str, headers: &[&str], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let length = format!("content-length: {}", body.len());
        let headers = [headers, &[&length]].concat();
        write!(stream, "{}", head("POST", path, &headers, true)).expect("it takes the request");
        stream.write_all(body).expect("it takes the body");
        read_reply(&mut stream, "POST").expect("a whole answer")
    }

    /// The JSON document at `path`.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let reply = self.get(path, &[]);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        serde_json::from_slice(&reply.body).expect("JSON")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream
}

/// A request's head.
pub fn head(method: &str, path: &str, headers: &[&str], close: bool) -> String {
    let close = if close { "connection: close\r\n" } else { "" };
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{close}{lines}\r\n")
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// By lower-case name; a header that is there twice is joined.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of a problem, which it has to be.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["request_id"], *self.header("x-request-id").expect("an id"));
        problem["code"].as_str().expect("a code").to_owned()
    }
}

/// Reads one answer; its body as long as Content-Length says, or to the end.
pub fn read_reply(stream: &mut TcpStream, method: &str) -> io::Result<Reply> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    let mut headers = BTreeMap::<String, String>::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        let value = value.trim();
        headers
            .entry(name.to_lowercase())
            .and_modify(|all| *all = format!("{all}, {value}"))
            .or_insert(value.to_owned());
    }
    let mut body = Vec::new();
    let bodiless = method == "HEAD" || status == 304 || status == 204;
    match headers.get("content-length").map(|bytes| bytes.parse::<usize>()) {
        _ if bodiless => {}
        Some(bytes) => {
            body.resize(bytes.map_err(io::Error::other)?, 0);
            stream.read_exact(&mut body)?;
        }
        None => drop(stream.read_to_end(&mut body)?),
    }
    Ok(Reply { status, headers, body })
}
