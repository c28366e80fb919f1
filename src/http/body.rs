//! A request's body on its way past the routes to whoever reads it, no slower than is allowed.

use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::pace::Pace;

/// A request's body, to be taken once.
pub struct BodySlot(Mutex<Option<RequestBody>>);

impl fmt::Debug for BodySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodySlot")
    }
}

impl BodySlot {
    /// Holds `body`.
    pub fn new(body: RequestBody) -> Self {
        Self(Mutex::new(Some(body)))
    }

    /// The body, the first time.
    pub fn take(&self) -> Option<RequestBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A request's body, which fails with [`std::io::ErrorKind::TimedOut`] if its sender is too slow.
///
/// How many bytes it may have is for its reader to say.
pub struct RequestBody {
    incoming: Incoming,
    pace: Pace,
}

impl RequestBody {
    /// `incoming`, read at this pace.
    pub fn new(incoming: Incoming, pace: Pace) -> Self {
        Self { incoming, pace }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.pace.moved(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(std::io::Error::other(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let error = ready!(self.pace.waits(cx));
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
