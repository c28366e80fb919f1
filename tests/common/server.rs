//! A server of a ledger's files over plain sockets, honest or as hostile as a test wants it.
//!
//! It knows `/v1/files/` alone: ranges, ETags, and lists of 1,000 names a page. It shares no code with
//! the program's own server, so that a fault of either is not hidden by the other.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

const PAGE: usize = 1000;

/// A question as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Below `/v1/files/`.
    pub path: String,
    /// As it was asked for: first and last byte, or how many at the end.
    pub range: Option<(Option<u64>, u64)>,
    /// How many questions came before, of all connections.
    pub number: u64,
}

/// What to do about it.
#[derive(Clone, Debug)]
pub enum Act {
    Honest,
    /// An answer with this status, these header lines and this body.
    Say(u16, Vec<String>, Vec<u8>),
    /// As it should be, with one byte of the file changed.
    Flip {
        at: u64,
    },
    /// Says that the file is so many bytes longer than it is.
    Longer(u64),
    /// Another range than the one asked for.
    Shifted,
    /// A body that never ends, whatever its head says.
    Endless,
    /// The head and half of the body.
    Cut,
    /// Not HTTP.
    Garbage,
    /// Nothing, for so long.
    Silent(Duration),
}

type Rule = dyn Fn(&Asked) -> Act + Send + Sync;

struct Shared {
    root: PathBuf,
    rule: Box<Rule>,
    asked: Mutex<Vec<Asked>>,
    bytes: AtomicU64,
    numbers: AtomicU64,
    closing: AtomicBool,
}

/// A server on a port of its own, until it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub fn honest(root: &Path) -> Self {
        Self::start(root, |_| Act::Honest)
    }

    pub fn start(root: &Path, rule: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            rule: Box::new(rule),
            asked: Mutex::default(),
            bytes: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.closing.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), serving.clone());
                // Clients that are killed break their connections.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes of bodies that were handed to the system.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Paths with how often each was asked for.
    pub fn paths(&self) -> BTreeMap<String, usize> {
        let mut paths = BTreeMap::new();
        for asked in self.asked() {
            *paths.entry(asked.path).or_default() += 1;
        }
        paths
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

struct Head {
    method: String,
    target: String,
    range: Option<String>,
    if_match: Option<String>,
}

fn head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut head = Head { method, target, range: None, if_match: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { return Ok(Some(head)) };
        match name.to_lowercase().as_str() {
            "range" => head.range = Some(value.trim().to_owned()),
            "if-match" => head.if_match = Some(value.trim().to_owned()),
            "accept-encoding" => assert_eq!(value.trim(), "identity"),
            _ => {}
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        let (mut reader, mut stream) = (BufReader::new(stream.try_clone()?), stream);
        while let Some(head) = head(&mut reader)? {
            if !self.answer(&mut stream, &head)? {
                return stream.shutdown(Shutdown::Both);
            }
        }
        Ok(())
    }

    /// Whether the connection stays.
    fn answer(&self, stream: &mut TcpStream, head: &Head) -> io::Result<bool> {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let path = path.strip_prefix("/v1/files/").unwrap_or("/outside").to_owned();
        let range = head.range.as_deref().map(|text| {
            let (first, last) = text.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            (first.parse().ok(), last.parse().unwrap())
        });
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let asked = Asked { method: head.method.clone(), path, range, number };
        self.asked.lock().unwrap().push(asked.clone());
        let act = (self.rule)(&asked);
        match act {
            Act::Say(status, headers, body) => {
                self.say(stream, status, &headers, &body)?;
                return Ok(true);
            }
            Act::Garbage => {
                stream.write_all(b"\0\x01 nothing of the kind\r\n\r\n")?;
                return Ok(false);
            }
            Act::Silent(time) => thread::sleep(time),
            _ => {}
        }
        let inside = asked.path.split('/').all(|part| part != "..");
        let private = ["keys", "index", "tmp", "lock", "gradledger.toml"];
        let first = asked.path.split('/').next().unwrap_or_default();
        let place = self.root.join(&asked.path);
        if !inside || private.contains(&first) || asked.path.starts_with('/') {
            self.say(stream, 404, &[], b"")?;
        } else if asked.path.is_empty() || asked.path.ends_with('/') {
            self.list(stream, &asked, &place, query)?;
        } else if place.is_file() {
            return self.file(stream, head, &asked, &act, &place);
        } else {
            self.say(stream, 404, &[], b"")?;
        }
        Ok(true)
    }

    fn list(
        &self,
        stream: &mut TcpStream,
        asked: &Asked,
        dir: &Path,
        query: &str,
    ) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(dir) else { return self.say(stream, 404, &[], b"") };
        let after = query.strip_prefix("after=").unwrap_or("");
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.as_str() > after)
            .collect();
        names.sort();
        let more = names.len() > PAGE;
        names.truncate(PAGE);
        let next = names.last().filter(|_| more);
        let body = serde_json::json!({ "names": names, "next": next }).to_string();
        let body = if asked.method == "HEAD" { "" } else { &body };
        self.say(stream, 200, &["Content-Type: application/json".to_owned()], body.as_bytes())
    }

    fn file(
        &self,
        stream: &mut TcpStream,
        head: &Head,
        asked: &Asked,
        act: &Act,
        place: &Path,
    ) -> io::Result<bool> {
        let mut file = File::open(place)?;
        let bytes = file.metadata()?.len();
        let etag = format!(
            "\"{}-{bytes}\"",
            asked.path.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        let tag = format!("ETag: {etag}");
        if head.if_match.as_ref().is_some_and(|wanted| *wanted != etag) {
            self.say(stream, 412, &[], b"")?;
            return Ok(true);
        }
        if asked.method == "HEAD" {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n{tag}\r\n\r\n")?;
            return Ok(true);
        }
        let (first, last) = match asked.range {
            Some((Some(first), last)) => (first, last),
            Some((None, count)) => (bytes.saturating_sub(count), u64::MAX),
            None => (0, u64::MAX),
        };
        if first >= bytes {
            self.say(stream, 416, &[format!("Content-Range: bytes */{bytes}")], b"")?;
            return Ok(true);
        }
        let last = last.min(bytes - 1);
        let mut body = vec![0; (last - first + 1) as usize];
        file.seek(SeekFrom::Start(first))?;
        file.read_exact(&mut body)?;
        let (mut told_first, mut told_bytes) = (first, bytes);
        match act {
            Act::Flip { at } if (first..=last).contains(at) => body[(at - first) as usize] ^= 1,
            Act::Longer(more) => told_bytes += more,
            Act::Shifted => told_first += 1,
            _ => {}
        }
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {told_first}-{last}/{told_bytes}\r\n\
             Accept-Ranges: bytes\r\n{tag}\r\n"
        )?;
        match act {
            Act::Endless => {
                write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?;
                // The client leaves, which ends this.
                loop {
                    stream.write_all(b"10000\r\n")?;
                    stream.write_all(&[7; 0x10000])?;
                    stream.write_all(b"\r\n")?;
                }
            }
            Act::Cut => {
                write!(stream, "Content-Length: {length}\r\n\r\n")?;
                self.send(stream, &body[..length / 2])?;
                Ok(false)
            }
            _ => {
                write!(stream, "Content-Length: {length}\r\n\r\n")?;
                self.send(stream, &body)?;
                Ok(true)
            }
        }
    }

    fn send(&self, stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
        for part in body.chunks(64 << 10) {
            self.bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
            stream.write_all(part)?;
        }
        Ok(())
    }

    fn say(
        &self,
        stream: &mut TcpStream,
        status: u16,
        headers: &[String],
        body: &[u8],
    ) -> io::Result<()> {
        write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: {}\r\n", body.len())?;
        for line in headers {
            write!(stream, "{line}\r\n")?;
        }
        write!(stream, "\r\n")?;
        self.send(stream, body)
    }
}
