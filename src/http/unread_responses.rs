//! Limits the memory of large responses that their clients have not read yet.
//!
//! A large response waits in memory until its client has read it, and a client may read as slowly
//! as it likes. So all of them together have a limit, and those of one workspace have a lower one.
//! A response that exceeds it is sent all the same: those that were not read for the longest time
//! are discarded instead, large or small. Their connections are closed, as if the network had
//! failed. A client that reads is never among them while others do not.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody as _},
    response::Response,
};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use ipnet::IpNet;
use tracing::debug;

use crate::model::{address, id::WorkspaceId};

/// Responses up to this size, in bytes, are not limited. It is the number of bytes that a
/// connection takes from a large one at a time.
const SMALL_RESPONSE: u64 = 32 * 1024;

/// Number of bytes in one frame of a large response.
const FRAME_BYTES: usize = 16 * 1024;

/// Limit for one workspace, in bytes.
const MAX_PER_READER: usize = 32 * 1024 * 1024;

/// The limit of all workspaces together, as a multiple of that of one.
const TOTAL_FACTOR: usize = 4;

/// The client of a response, which has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    /// All clients of a workspace.
    Workspace(WorkspaceId),
    /// Clients without a credential, by address.
    Address(IpNet),
}

impl Reader {
    /// The reader of a response to this address, for a caller of this workspace.
    pub(super) fn new(ip: IpAddr, workspace: Option<WorkspaceId>) -> Self {
        workspace.map_or_else(|| Self::Address(address::client_subnet(ip)), Self::Workspace)
    }
}

/// The large responses of this node that are not read yet. Cheap to clone.
#[derive(Clone)]
pub struct UnreadResponses {
    held: Arc<Mutex<HeldBodies>>,
    max_per_reader: usize,
}

/// The number and size of responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadUsage {
    /// Bytes that wait to be read.
    pub bytes: usize,
    /// Responses that were discarded so far.
    pub discarded: u64,
}

#[derive(Default)]
struct HeldBodies {
    readers: HashMap<Reader, ReaderBodies>,
    bytes: usize,
    /// The number of reads so far. The start of a body counts as one.
    reads: u64,
    discarded: u64,
}

/// The bodies of one reader, each as the frames that are left, by the number of their last read.
#[derive(Default)]
struct ReaderBodies {
    bodies: BTreeMap<u64, VecDeque<Bytes>>,
    bytes: usize,
}

impl UnreadResponses {
    /// Creates the limits. They are at least several times the size of the largest document.
    #[must_use]
    pub fn new(max_document_bytes: usize) -> Self {
        let max_per_reader = MAX_PER_READER.max(max_document_bytes.saturating_mul(2));
        Self { held: Arc::default(), max_per_reader }
    }

    /// Counts a response, if it is large, until it is read.
    ///
    /// # Errors
    /// The error of the body, if it has one.
    pub(super) async fn hold_if_large(
        &self,
        reader: Reader,
        response: Response,
    ) -> Result<Response, axum::Error> {
        if response.body().size_hint().exact().is_none_or(|bytes| bytes <= SMALL_RESPONSE) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        // It is in memory already, in one piece.
        let bytes = body.collect().await?.to_bytes();
        Ok(Response::from_parts(parts, Body::new(self.hold(reader, &bytes))))
    }

    /// Counts bytes until they are read.
    pub(super) fn hold(&self, reader: Reader, bytes: &[u8]) -> HeldBody {
        // Copies: they are as long as what is left to read, without the spare capacity of the
        // original. One that is being sent does not keep the others in memory.
        let frames = bytes.chunks(FRAME_BYTES).map(Bytes::copy_from_slice).collect();
        let last_read = self.lock().insert(reader, frames, bytes.len(), self.max_per_reader);
        HeldBody { responses: self.clone(), reader, last_read, rest: bytes.len() }
    }

    /// Returns the current usage.
    #[must_use]
    pub fn usage(&self) -> UnreadUsage {
        let held = self.lock();
        UnreadUsage { bytes: held.bytes, discarded: held.discarded }
    }

    fn lock(&self) -> MutexGuard<'_, HeldBodies> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldBodies {
    /// Adds a body, and discards others that exceed the limits together with it. Returns the number
    /// of its last read.
    fn insert(
        &mut self,
        reader: Reader,
        frames: VecDeque<Bytes>,
        length: usize,
        max_per_reader: usize,
    ) -> u64 {
        while self.bytes_of(reader) + length > max_per_reader && self.discard_idlest(reader) {}
        while self.bytes + length > max_per_reader.saturating_mul(TOTAL_FACTOR) {
            let Some(idlest) = self.idlest_reader() else { break };
            self.discard_idlest(idlest);
        }
        self.bytes += length;
        self.readers.entry(reader).or_default().bytes += length;
        self.put(reader, frames)
    }

    fn put(&mut self, reader: Reader, frames: VecDeque<Bytes>) -> u64 {
        let last_read = self.reads;
        self.reads += 1;
        self.readers.entry(reader).or_default().bodies.insert(last_read, frames);
        last_read
    }

    fn bytes_of(&self, reader: Reader) -> usize {
        self.readers.get(&reader).map_or(0, |own| own.bytes)
    }

    /// Returns the reader of the body that was not read for the longest time.
    fn idlest_reader(&self) -> Option<Reader> {
        let last_reads = self.readers.iter().filter_map(|(reader, own)| {
            own.bodies.first_key_value().map(|(last_read, _)| (last_read, *reader))
        });
        last_reads.min_by_key(|(last_read, _)| *last_read).map(|(_, reader)| reader)
    }

    /// Discards the body of a reader that was not read for the longest time. Returns false if it
    /// has none.
    fn discard_idlest(&mut self, reader: Reader) -> bool {
        let own = self.readers.get(&reader);
        let idlest = own.and_then(|own| own.bodies.keys().next().copied());
        let Some(idlest) = idlest else { return false };
        self.remove(reader, idlest);
        self.discarded += 1;
        debug!("a response that its client has not read was discarded");
        true
    }

    fn remove(&mut self, reader: Reader, last_read: u64) {
        let Some(own) = self.readers.get_mut(&reader) else { return };
        let Some(frames) = own.bodies.remove(&last_read) else { return };
        let length: usize = frames.iter().map(Bytes::len).sum();
        own.bytes -= length;
        self.bytes -= length;
        if own.bodies.is_empty() {
            self.readers.remove(&reader);
        }
    }

    /// Takes the next frame of a body, and updates the number of its last read. `None` if the body
    /// was discarded.
    fn take_frame(&mut self, reader: Reader, last_read: &mut u64) -> Option<Bytes> {
        let own = self.readers.get_mut(&reader)?;
        let mut frames = own.bodies.remove(last_read)?;
        let frame = frames.pop_front()?;
        own.bytes -= frame.len();
        self.bytes -= frame.len();
        if !frames.is_empty() {
            *last_read = self.put(reader, frames);
        } else if own.bodies.is_empty() {
            self.readers.remove(&reader);
        }
        Some(frame)
    }
}

/// A body that counts until it is dropped. It ends with [`Discarded`] if it was discarded.
pub(super) struct HeldBody {
    responses: UnreadResponses,
    reader: Reader,
    /// The number of the last read.
    last_read: u64,
    /// Number of bytes that are left.
    rest: usize,
}

/// The error of a response that was discarded, because its client and others read too slowly.
#[derive(Debug)]
pub(super) struct Discarded;

impl fmt::Display for Discarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client has not read the response, and others need its memory")
    }
}

impl std::error::Error for Discarded {}

impl HeldBody {
    /// Returns the next bytes, or `None` at the end.
    pub(super) fn next_frame(&mut self) -> Option<Result<Bytes, Discarded>> {
        if self.rest == 0 {
            return None;
        }
        let frame = self.responses.lock().take_frame(self.reader, &mut self.last_read);
        self.rest = frame.as_ref().map_or(0, |frame| self.rest - frame.len());
        Some(frame.ok_or(Discarded))
    }
}

impl hyper::body::Body for HeldBody {
    type Data = Bytes;
    type Error = Discarded;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Discarded>>> {
        Poll::Ready(self.next_frame().map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.rest).unwrap_or(u64::MAX))
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.responses.lock().remove(self.reader, self.last_read);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn workspace(number: u128) -> Reader {
        Reader::Workspace(Uuid::from_u128(number).into())
    }

    fn hold(responses: &UnreadResponses, reader: Reader, length: usize) -> HeldBody {
        responses.hold(reader, &vec![b'a'; length])
    }

    fn read(mut body: HeldBody) -> Result<usize, Discarded> {
        let mut length = 0;
        while let Some(frame) = body.next_frame() {
            let frame = frame?;
            assert!(frame.len() <= FRAME_BYTES);
            length += frame.len();
        }
        Ok(length)
    }

    #[test]
    fn body_counts_until_it_is_read_or_dropped() {
        let responses = UnreadResponses::new(MIB);
        for length in [0, 1, FRAME_BYTES, FRAME_BYTES + 1, 5 * MIB] {
            let body = hold(&responses, workspace(1), length);
            assert_eq!(responses.usage(), UnreadUsage { bytes: length, discarded: 0 });
            assert_eq!(read(body).unwrap(), length);
            drop(hold(&responses, workspace(2), length));
            assert_eq!(responses.usage(), UnreadUsage { bytes: 0, discarded: 0 });
        }
        assert!(responses.lock().readers.is_empty());
    }

    #[test]
    fn idlest_body_of_same_workspace_is_discarded() {
        let responses = UnreadResponses::new(MIB);
        let other = hold(&responses, workspace(2), MIB);
        let mut own: Vec<_> = (0..33).map(|_| hold(&responses, workspace(1), MIB)).collect();
        assert_eq!(responses.usage(), UnreadUsage { bytes: MAX_PER_READER + MIB, discarded: 1 });
        assert!(read(own.remove(0)).is_err());
        for body in own.into_iter().chain([other]) {
            assert_eq!(read(body).unwrap(), MIB);
        }
        assert_eq!(responses.usage().bytes, 0);
    }

    /// Also if the client's workspace has more to read than each of many that read nothing.
    #[test]
    fn body_that_is_being_read_is_not_discarded() {
        let responses = UnreadResponses::new(MIB);
        let large = 13 * MIB / 10;
        let flood = |first: u128| -> Vec<_> {
            (first..first + 50).map(|number| hold(&responses, workspace(number), large)).collect()
        };
        let mut idle = flood(100);
        idle.extend(flood(200));
        let mut honest: Vec<_> = (0..2).map(|_| hold(&responses, workspace(1), 2 * MIB)).collect();
        let address = Reader::new([192, 0, 2, 1].into(), None);
        honest.push(hold(&responses, address, 2 * MIB));
        for round in 0..10 {
            for body in &mut honest {
                body.next_frame().unwrap().unwrap();
            }
            idle.extend(flood(1000 + 100 * round));
            assert!(responses.usage().bytes <= TOTAL_FACTOR * MAX_PER_READER);
        }
        assert!(responses.usage().discarded > 450);
        for body in honest {
            assert_eq!(read(body).unwrap(), 2 * MIB - 10 * FRAME_BYTES);
        }
        // Of those that were not read, the newest ones are left.
        let newest = idle.into_iter().rev().map(read);
        assert_eq!(newest.take_while(Result::is_ok).count(), 94);
    }

    #[test]
    fn rest_of_body_that_is_being_read_is_discarded() {
        let responses = UnreadResponses::new(MIB);
        let mut body = hold(&responses, workspace(1), MIB);
        assert_eq!(body.next_frame().unwrap().unwrap().len(), FRAME_BYTES);
        assert_eq!(responses.usage().bytes, MIB - FRAME_BYTES);
        responses.lock().discard_idlest(workspace(1));
        assert_eq!(responses.usage(), UnreadUsage { bytes: 0, discarded: 1 });
        assert!(matches!(body.next_frame(), Some(Err(Discarded))));
        assert!(body.next_frame().is_none());
    }

    #[tokio::test]
    async fn only_large_responses_count() {
        let responses = UnreadResponses::new(MIB);
        for (length, is_large) in [(0, false), (32 * 1024, false), (32 * 1024 + 1, true)] {
            let response = Response::new(Body::from(vec![b'a'; length]));
            let response = responses.hold_if_large(workspace(1), response).await.unwrap();
            assert_eq!(responses.usage().bytes, if is_large { length } else { 0 });
            assert_eq!(response.body().size_hint().exact(), Some(length.try_into().unwrap()));
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert_eq!(body.len(), length);
        }
    }
}
