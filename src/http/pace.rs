//! How slow a peer may be: for every 16 KiB of a body there is a time in which they have to move.
//!
//! Only time that is spent waiting for the peer counts, so a slow disk or a busy server is not held
//! against it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What has to move in the time allowed.
const BYTES_MIN: usize = 16 << 10;

/// One direction's pace.
#[derive(Debug)]
pub struct Pace {
    allowed: Duration,
    waited: Duration,
    moved: usize,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// At least 16 KiB each `allowed`.
    pub fn new(allowed: Duration) -> Self {
        Self { allowed, waited: Duration::ZERO, moved: 0, since: None, timer: None }
    }

    /// These bytes moved.
    pub fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
            self.timer = None;
        }
        self.moved += bytes;
        if self.moved >= BYTES_MIN {
            self.rests();
        }
    }

    /// Nothing is asked of the peer now.
    pub fn rests(&mut self) {
        *self = Self::new(self.allowed);
    }

    /// The peer is waited for: ready with an error once it took too long.
    pub fn waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.since.get_or_insert_with(Instant::now);
        let left = self.allowed.saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
        timer.as_mut().poll(cx).map(|()| {
            let message = format!("the peer moved {} bytes in {:?}", self.moved, self.allowed);
            io::Error::new(io::ErrorKind::TimedOut, message)
        })
    }
}

/// A connection whose peer has to take what it is sent.
pub struct Paced<T> {
    inner: T,
    writing: Pace,
}

impl<T> Paced<T> {
    /// `inner`, its peer reading at this pace.
    pub fn new(inner: T, writing: Pace) -> Self {
        Self { inner, writing }
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Ready(Ok(bytes)) => self.writing.moved(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => return self.writing.waits(cx).map(Err),
        }
        wrote
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.wrote(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever flushes has handed over all that there was.
        self.writing.rests();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
