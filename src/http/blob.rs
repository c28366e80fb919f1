//! Bytes as answers: the one place that answers ranges and conditions.
//!
//! Blocks are read on a blocking thread into buffers that are used again. A client that keeps up gets
//! 1 MiB at a time, of which only so many are in use at once; others get 32 KiB, so that a thousand slow
//! readers cost 100 MiB at most. Nothing is ever compressed on the way.

use std::{
    io,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyDataStream;
use hyper::{
    HeaderMap, StatusCode,
    body::{Body, Frame},
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
        HeaderName, HeaderValue,
    },
};
use tokio::task::{JoinHandle, spawn_blocking};
use warp::Reply;

use super::{
    endpoint::Response,
    problem::Problem,
    range::{Wanted, wanted},
};
use crate::{
    store::{files::ReadFile, segment::LogicalBytes},
    types::digest::Digest,
};

/// What a reader that keeps up gets at once.
const LARGE_BYTES: usize = 1 << 20;

/// What others get at once.
const SMALL_BYTES: usize = 32 << 10;

/// Large blocks in use at once.
const LARGE_MAX: usize = 64;

/// Who takes this much a second keeps up.
const KEEPS_UP_BYTES_S: u64 = 8 << 20;

/// How much of it at that speed shows it: more than the buffers on the way swallow at once.
const KEEPS_UP_BYTES: u64 = 8 << 20;

/// Files of at most so many bytes are read whole, and have the SHA-256 of their bytes as ETag.
pub const WHOLE_BYTES_MAX: u64 = 256 << 10;

/// Bytes that can be read from anywhere.
pub trait Source: Send + Sync {
    /// Their number.
    fn bytes(&self) -> u64;

    /// Fills `buffer` from `offset` on. It may block.
    ///
    /// # Errors
    ///
    /// What the bytes' place says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// An open file, as long as it was when it was opened.
struct FileSource {
    file: Arc<dyn ReadFile>,
    bytes: u64,
}

impl Source for FileSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// The logical bytes of a segment.
pub struct Logical(pub Arc<dyn LogicalBytes>);

impl Source for Logical {
    fn bytes(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer).map_err(io::Error::other)
    }
}

/// How long an answer may be kept by whoever keeps answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// For ever: these bytes never change under this name.
    Immutable,
    /// As long as the server, asked again, says that it is still the same.
    Revalidate,
    /// Not at all.
    NoStore,
}

impl Cache {
    fn header(self) -> &'static str {
        match self {
            Self::Immutable => "public, max-age=31536000, immutable, no-transform",
            Self::Revalidate => "no-cache, no-transform",
            Self::NoStore => "no-store, no-transform",
        }
    }
}

enum Content {
    Memory(Bytes),
    Source(Arc<dyn Source>),
}

/// Bytes to answer with.
pub struct Blob {
    content: Content,
    etag: String,
    content_type: &'static str,
    cache: Cache,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Blob {
    /// Bytes in memory; their SHA-256 is the ETag.
    pub fn memory(bytes: Vec<u8>, content_type: &'static str, cache: Cache) -> Self {
        let etag = Digest::of(&bytes).to_hex();
        Self { content: Content::Memory(bytes.into()), etag, content_type, cache, headers: vec![] }
    }

    /// Bytes from elsewhere. The ETag names these very bytes; it holds no quotes and no commas.
    pub fn source(
        source: Arc<dyn Source>,
        etag: String,
        content_type: &'static str,
        cache: Cache,
    ) -> Self {
        Self { content: Content::Source(source), etag, content_type, cache, headers: vec![] }
    }

    /// A file: a small one whole, by its SHA-256; a larger one by what tells it from others of its
    /// name, since nothing large is hashed within a request. It may block.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn file(
        file: Arc<dyn ReadFile>,
        content_type: &'static str,
        cache: Cache,
    ) -> io::Result<Self> {
        let bytes = file.len()?;
        if bytes <= WHOLE_BYTES_MAX {
            let mut whole = vec![0; bytes as usize];
            file.read_exact_at(&mut whole, 0)?;
            return Ok(Self::memory(whole, content_type, cache));
        }
        let [a, b, c] = file.stamp()?;
        let etag = format!("{bytes:x}-{a:x}-{b:x}-{c:x}");
        Ok(Self::source(Arc::new(FileSource { file, bytes }), etag, content_type, cache))
    }

    /// The same with one more header. One that no header can hold is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    fn bytes(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Source(source) => source.bytes(),
        }
    }

    /// What the request with these headers gets of it.
    pub fn answer(self, request: &HeaderMap, blocks: &Arc<Blocks>) -> Response {
        let bytes = self.bytes();
        let (status, part) = match wanted(request, &self.etag, bytes) {
            Wanted::Whole => (StatusCode::OK, 0..bytes),
            Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
            Wanted::NotModified => {
                return self.headers(StatusCode::NOT_MODIFIED, Response::default());
            }
            Wanted::PreconditionFailed => return Problem::precondition_failed().into(),
            Wanted::Unsatisfiable => {
                let problem = Problem::range_not_satisfiable(bytes);
                return problem.with(ETAG, &format!("\"{}\"", self.etag)).into();
            }
        };
        let mut response = match &self.content {
            // A part of bytes in memory is within them, so it fits.
            Content::Memory(all) => {
                Response::new(all.slice(part.start as usize..part.end as usize).into())
            }
            Content::Source(source) => {
                let body = BlobBody::new(source.clone(), part.clone(), blocks.clone());
                warp::reply::stream(BodyDataStream::new(body)).into_response()
            }
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {}-{}/{bytes}", part.start, part.end - 1);
            headers.insert(CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits"));
        }
        self.headers(status, response)
    }

    /// What every answer about these bytes says.
    fn headers(self, status: StatusCode, mut response: Response) -> Response {
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.extend(self.headers);
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(self.cache.header()));
        if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", self.etag)) {
            headers.insert(ETAG, etag);
        }
        response
    }
}

/// Buffers that are used again, and how many of the large ones are in use.
#[derive(Default)]
pub struct Blocks(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    large_used: usize,
    large: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
}

impl Blocks {
    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for `wish` bytes or fewer: a large one only as long as there are some.
    fn take(self: &Arc<Self>, wish: usize) -> Block {
        let mut shelf = self.shelf();
        let large = wish > SMALL_BYTES && shelf.large_used < LARGE_MAX;
        let kept = if large {
            shelf.large_used += 1;
            shelf.large.pop()
        } else {
            shelf.small.pop()
        };
        drop(shelf);
        let room = if large { LARGE_BYTES } else { SMALL_BYTES };
        let buffer = kept.unwrap_or_else(|| vec![0; room]);
        Block { buffer, bytes: wish.min(room), blocks: self.clone() }
    }
}

/// A buffer that goes back to where it came from.
struct Block {
    buffer: Vec<u8>,
    bytes: usize,
    blocks: Arc<Blocks>,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.bytes]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut shelf = self.blocks.shelf();
        if buffer.len() == LARGE_BYTES {
            shelf.large_used -= 1;
            shelf.large.push(buffer);
        } else if shelf.small.len() < LARGE_MAX {
            shelf.small.push(buffer);
        }
    }
}

/// A run of a source's bytes, a block at a time.
struct BlobBody {
    source: Arc<dyn Source>,
    left: Range<u64>,
    blocks: Arc<Blocks>,
    reading: Option<JoinHandle<io::Result<Block>>>,
    /// When the last block was handed over, and its length.
    handed: Option<(Instant, u64)>,
    /// Bytes that were taken at a good speed without a pause.
    quick: u64,
}

impl BlobBody {
    fn new(source: Arc<dyn Source>, left: Range<u64>, blocks: Arc<Blocks>) -> Self {
        Self { source, left, blocks, reading: None, handed: None, quick: 0 }
    }

    /// Starts to read the next block, as large as the reader is fast.
    fn read(&mut self) -> JoinHandle<io::Result<Block>> {
        if let Some((at, bytes)) = self.handed {
            let allowed = Duration::from_millis(1 + bytes * 1000 / KEEPS_UP_BYTES_S);
            self.quick = if at.elapsed() <= allowed { self.quick + bytes } else { 0 };
        }
        let room = if self.quick < KEEPS_UP_BYTES { SMALL_BYTES } else { LARGE_BYTES };
        let wish = (self.left.end - self.left.start).min(room as u64) as usize;
        let mut block = self.blocks.take(wish);
        let (source, at) = (self.source.clone(), self.left.start);
        spawn_blocking(move || {
            let bytes = block.bytes;
            source.read_at(at, &mut block.buffer[..bytes])?;
            Ok(block)
        })
    }
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        if self.reading.is_none() {
            self.reading = Some(self.read());
        }
        let reading = self.reading.as_mut().expect("it was begun above");
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        match read.map_err(io::Error::other).flatten() {
            Ok(block) => {
                let bytes = block.bytes as u64;
                self.left.start += bytes;
                self.handed = Some((Instant::now(), bytes));
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(block)))))
            }
            Err(error) => {
                // The head is sent: all that is left is to end the connection before the last byte.
                tracing::error!(%error, at = self.left.start, "reading what is being sent");
                self.left.start = self.left.end;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_few_and_come_back() {
        let blocks = Arc::new(Blocks::default());
        let held: Vec<_> = (0..LARGE_MAX + 3).map(|_| blocks.take(LARGE_BYTES)).collect();
        let lengths: Vec<_> = held.iter().map(|block| block.as_ref().len()).collect();
        assert!(lengths[..LARGE_MAX].iter().all(|&bytes| bytes == LARGE_BYTES));
        assert!(lengths[LARGE_MAX..].iter().all(|&bytes| bytes == SMALL_BYTES));
        drop(held);
        assert_eq!(blocks.take(LARGE_BYTES).as_ref().len(), LARGE_BYTES);
        assert_eq!(blocks.take(7).as_ref().len(), 7);
        assert_eq!(blocks.shelf().large_used, 0);
    }
}
