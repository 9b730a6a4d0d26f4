//! Limits on large request bodies, which bound the memory of all bodies together.
//!
//! A request needs a permit once it has sent more than [`SMALL_BODY`] bytes, and keeps it until its
//! handler is done. Only received bytes count: a client that announces a large body and sends
//! little holds nothing up. A client that sends too slowly afterwards gets an error, and its permit
//! is free again. Requests without a credential, those of one address and those of one workspace
//! have shares of their own.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{StreamExt, stream};
use ipnet::IpNet;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    keyed_semaphores::{KeyedPermit, KeyedSemaphores},
    model::{address, id::WorkspaceId},
};

/// Bodies up to this size, in bytes, need no permit.
pub(super) const SMALL_BODY: u64 = 16 * 1024;

/// Maximum number of large bodies of requests with a credential.
const MAX_AUTHENTICATED: usize = 96;
/// Maximum number of large bodies of requests without a credential.
const MAX_PUBLIC: usize = 32;
/// Maximum number of large bodies from one address, for each of both.
const MAX_PER_ADDRESS: usize = 8;
/// Maximum number of large bodies of one workspace, with all of its credentials.
const MAX_PER_WORKSPACE: usize = 24;

/// A client with a permit must send at least this number of bytes…
const MIN_PROGRESS: usize = 4 * 1024;
/// …in each period of this length.
const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// Permits for requests with large bodies.
#[derive(Clone)]
pub struct LargeBodyPermits {
    authenticated: Arc<Semaphore>,
    public: Arc<Semaphore>,
    addresses: KeyedSemaphores<(IpNet, bool)>,
    workspaces: KeyedSemaphores<WorkspaceId>,
}

/// The origin of a body: an address, and the workspace of its credential, if it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyOrigin {
    pub(super) ip: IpAddr,
    pub(super) workspace: Option<WorkspaceId>,
}

/// The error of a large body whose client sends too slowly.
#[derive(Debug)]
pub(super) struct SlowBody;

impl fmt::Display for SlowBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a large body arrives too slowly")
    }
}

impl std::error::Error for SlowBody {}

/// The permit of one request, once it has one.
pub(super) type PermitSlot = Arc<Mutex<Option<LargeBodyPermit>>>;

/// A permit for one large body, until it is dropped.
pub(super) struct LargeBodyPermit {
    _node: Option<OwnedSemaphorePermit>,
    _workspace: Option<KeyedPermit<WorkspaceId>>,
    _address: KeyedPermit<(IpNet, bool)>,
}

impl Default for LargeBodyPermits {
    fn default() -> Self {
        Self::new()
    }
}

impl LargeBodyPermits {
    /// Creates the permits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            authenticated: Arc::new(Semaphore::new(MAX_AUTHENTICATED)),
            public: Arc::new(Semaphore::new(MAX_PUBLIC)),
            addresses: KeyedSemaphores::new(MAX_PER_ADDRESS),
            workspaces: KeyedSemaphores::new(MAX_PER_WORKSPACE),
        }
    }

    async fn acquire(&self, origin: BodyOrigin) -> LargeBodyPermit {
        let is_authenticated = origin.workspace.is_some();
        // First those of the address and the workspace: their bodies wait for each other without a
        // permit of the node.
        let subnet = address::client_subnet(origin.ip);
        let of_address = self.addresses.acquire((subnet, is_authenticated)).await;
        let of_workspace = match origin.workspace {
            Some(workspace) => Some(self.workspaces.acquire(workspace).await),
            None => None,
        };
        let of_node = if is_authenticated { &self.authenticated } else { &self.public };
        // An error means that the semaphore is closed, which never happens.
        let of_node = Arc::clone(of_node).acquire_owned().await.ok();
        LargeBodyPermit { _node: of_node, _workspace: of_workspace, _address: of_address }
    }

    /// Wraps a body: it waits for a permit, and puts it into the slot, when it becomes large. From
    /// then on it ends with [`SlowBody`] if it makes too little progress.
    pub(super) fn guard(&self, body: Body, origin: BodyOrigin) -> (Body, PermitSlot) {
        let slot = PermitSlot::default();
        let guarded = GuardedBody {
            chunks: body.into_data_stream(),
            received: 0,
            permits: self.clone(),
            origin,
            slot: Arc::clone(&slot),
            progress: None,
        };
        let chunks = stream::try_unfold(guarded, |mut guarded| async move {
            Ok::<_, axum::Error>(guarded.next_chunk().await?.map(|chunk| (chunk, guarded)))
        });
        (Body::from_stream(chunks), slot)
    }
}

/// A body that needs a permit when it becomes large.
struct GuardedBody {
    chunks: BodyDataStream,
    received: u64,
    permits: LargeBodyPermits,
    origin: BodyOrigin,
    slot: PermitSlot,
    /// `None` until the body is large.
    progress: Option<Progress>,
}

/// The progress of a large body in the current period.
struct Progress {
    received: usize,
    period_end: Instant,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self { received: 0, period_end: now + PROGRESS_PERIOD }
    }

    /// Adds received bytes. With enough of them, a new period starts.
    fn add(&mut self, bytes: usize, now: Instant) {
        self.received += bytes;
        if self.received >= MIN_PROGRESS {
            *self = Self::new(now);
        }
    }
}

impl GuardedBody {
    /// Returns the next chunk, or `None` at the end of the body.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, axum::Error> {
        let next = self.chunks.next();
        let next = match &self.progress {
            None => next.await,
            Some(Progress { period_end, .. }) => {
                timeout_at(*period_end, next).await.map_err(|_| axum::Error::new(SlowBody))?
            }
        };
        let Some(chunk) = next.transpose()? else { return Ok(None) };
        self.received += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if let Some(progress) = &mut self.progress {
            progress.add(chunk.len(), Instant::now());
        } else if self.received > SMALL_BODY {
            let permit = self.permits.acquire(self.origin).await;
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
            self.progress = Some(Progress::new(Instant::now()));
        }
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn anonymous(ip: impl Into<IpAddr>) -> BodyOrigin {
        BodyOrigin { ip: ip.into(), workspace: None }
    }

    /// The origin of a request with a credential of this workspace.
    fn authenticated(ip: impl Into<IpAddr>, workspace: u128) -> BodyOrigin {
        let workspace = Some(Uuid::from_u128(workspace).into());
        BodyOrigin { ip: ip.into(), workspace }
    }

    fn body(chunks: &[usize]) -> Body {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|len| Ok::<_, std::io::Error>(Bytes::from(vec![b'a'; *len])))
            .collect();
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn permit_is_taken_when_body_becomes_large() {
        let permits = LargeBodyPermits::new();
        for (chunks, is_large) in
            [(&[1][..], false), (&[16_384], false), (&[16_384, 1], true), (&[1, 20_000, 9], true)]
        {
            let (guarded, slot) = permits.guard(body(chunks), anonymous(IP));
            let bytes = to_bytes(guarded, usize::MAX).await.unwrap();
            assert_eq!(bytes.len(), chunks.iter().sum::<usize>());
            assert_eq!(slot.lock().unwrap().is_some(), is_large, "{chunks:?}");
        }
        assert_eq!(permits.public.available_permits(), MAX_PUBLIC);
    }

    #[tokio::test]
    async fn address_does_not_hold_up_others() {
        let permits = LargeBodyPermits::new();
        let mut held = Vec::new();
        for _ in 0..MAX_PER_ADDRESS {
            held.push(permits.acquire(anonymous(IP)).await);
        }
        assert!(permits.acquire(anonymous(IP)).now_or_never().is_none());
        assert!(permits.acquire(authenticated(IP, 1)).now_or_never().is_some());
        assert!(permits.acquire(anonymous([192, 0, 2, 1])).now_or_never().is_some());
        // Many addresses without a credential hold up none with one.
        let others =
            (0..MAX_PUBLIC).map(|n| IpAddr::from([198, 51, 100, u8::try_from(n).unwrap()]));
        held.extend(others.filter_map(|ip| permits.acquire(anonymous(ip)).now_or_never()));
        assert_eq!(held.len(), MAX_PUBLIC);
        assert!(permits.acquire(authenticated([192, 0, 2, 1], 1)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn workspace_with_many_addresses_does_not_hold_up_others() {
        let permits = LargeBodyPermits::new();
        let many = (0..=MAX_PER_WORKSPACE)
            .map(|n| authenticated([198, 51, 100, u8::try_from(n).unwrap()], 1));
        let held: Vec<_> =
            many.filter_map(|origin| permits.acquire(origin).now_or_never()).collect();
        assert_eq!(held.len(), MAX_PER_WORKSPACE);
        assert!(permits.acquire(authenticated([192, 0, 2, 1], 1)).now_or_never().is_none());
        assert!(permits.acquire(authenticated([192, 0, 2, 1], 2)).now_or_never().is_some());
    }

    /// Receives chunks of these lengths and then nothing, neither a chunk nor the end.
    async fn receive_stalled(chunks: &[usize], permits: &LargeBodyPermits) -> axum::Error {
        let sent = body(chunks).into_data_stream().chain(stream::pending());
        let (guarded, slot) = permits.guard(Body::from_stream(sent), anonymous(IP));
        let error = to_bytes(guarded, usize::MAX).await.unwrap_err();
        drop(slot);
        error
    }

    #[tokio::test]
    async fn stalled_large_body_is_rejected_and_its_permit_is_free() {
        let permits = LargeBodyPermits::new();
        let stalled = [&[17_000][..], &[16_384, 1], &[20_000, 5_000, 1]];
        let stalled = stalled.map(|chunks| receive_stalled(chunks, &permits));
        for error in futures_util::future::join_all(stalled).await {
            let first: &dyn std::error::Error = &error;
            let mut causes = std::iter::successors(Some(first), |error| error.source());
            assert!(causes.any(<dyn std::error::Error>::is::<SlowBody>), "{error}");
        }
        assert_eq!(permits.public.available_permits(), MAX_PUBLIC);
        // A small body needs no permit, and has only the timeout of all bodies.
        let small = receive_stalled(&[1, 16_383], &permits);
        assert!(Box::pin(small).now_or_never().is_none());
    }

    #[test]
    fn period_of_progress_starts_again_only_with_enough_bytes() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let first_end = progress.period_end;
        assert_eq!(first_end, start + PROGRESS_PERIOD);
        // Single bytes are no progress.
        for n in 1..MIN_PROGRESS {
            progress.add(1, start + Duration::from_micros(n.try_into().unwrap()));
            assert_eq!(progress.period_end, first_end);
        }
        let later = start + Duration::from_secs(1);
        progress.add(1, later);
        assert_eq!(progress.period_end, later + PROGRESS_PERIOD);
        progress.add(MIN_PROGRESS - 1, later);
        assert_eq!(progress.period_end, later + PROGRESS_PERIOD);
        let last = later + Duration::from_secs(1);
        progress.add(1_000_000, last);
        assert_eq!(progress.period_end, last + PROGRESS_PERIOD);
    }
}
