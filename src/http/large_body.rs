//! Limits on large request bodies, which bound the memory of all bodies together.
//!
//! A request needs a permit once it has sent more than [`SMALL_BODY`] bytes, and keeps it until its
//! handler is done. Only received bytes count: a client that announces a large body and sends
//! little holds nothing up. Requests without a credential, and requests of one address, have shares
//! of their own.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::body::Body;
use futures_util::{StreamExt, stream};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    limit::{KeyedPermit, KeyedSemaphores},
    model::address,
};

/// Bodies up to this size, in bytes, need no permit.
pub(super) const SMALL_BODY: u64 = 16 * 1024;

/// Maximum number of large bodies of requests with a credential.
const MAX_AUTHENTICATED: usize = 96;
/// Maximum number of large bodies of requests without a credential.
const MAX_PUBLIC: usize = 32;
/// Maximum number of large bodies from one address, for each of both.
const MAX_PER_ADDRESS: usize = 8;

/// Permits for requests with large bodies.
#[derive(Clone)]
pub struct LargeBodyPermits {
    authenticated: Arc<Semaphore>,
    public: Arc<Semaphore>,
    addresses: KeyedSemaphores<(IpNet, bool)>,
}

/// The permit of one request, once it has one.
pub(super) type PermitSlot = Arc<Mutex<Option<LargeBodyPermit>>>;

/// A permit for one large body, until it is dropped.
pub struct LargeBodyPermit {
    _of_node: Option<OwnedSemaphorePermit>,
    _of_address: KeyedPermit<(IpNet, bool)>,
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
        }
    }

    async fn acquire(&self, ip: IpAddr, is_authenticated: bool) -> LargeBodyPermit {
        // First that of the address: its bodies wait for each other without a permit of the node.
        let subnet = address::client_subnet(ip);
        let of_address = self.addresses.acquire((subnet, is_authenticated)).await;
        let of_node = if is_authenticated { &self.authenticated } else { &self.public };
        // An error means that the semaphore is closed, which never happens.
        let of_node = Arc::clone(of_node).acquire_owned().await.ok();
        LargeBodyPermit { _of_node: of_node, _of_address: of_address }
    }

    /// Wraps a body: it waits for a permit, and puts it into the slot, when it becomes large.
    pub fn guard(&self, body: Body, ip: IpAddr, is_authenticated: bool) -> (Body, PermitSlot) {
        let slot = PermitSlot::default();
        let state = (body.into_data_stream(), 0_u64, self.clone(), Arc::clone(&slot));
        let chunks =
            stream::try_unfold(state, move |(mut chunks, received, all, slot)| async move {
                let Some(chunk) = chunks.next().await.transpose()? else { return Ok(None) };
                let total = received + u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                if received <= SMALL_BODY && total > SMALL_BODY {
                    let permit = all.acquire(ip, is_authenticated).await;
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
                }
                Ok::<_, axum::Error>(Some((chunk, (chunks, total, all, slot))))
            });
        (Body::from_stream(chunks), slot)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Bytes, to_bytes};
    use futures_util::FutureExt;

    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

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
            let (guarded, slot) = permits.guard(body(chunks), IP, false);
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
            held.push(permits.acquire(IP, false).await);
        }
        assert!(permits.acquire(IP, false).now_or_never().is_none());
        assert!(permits.acquire(IP, true).now_or_never().is_some());
        assert!(permits.acquire([192, 0, 2, 1].into(), false).now_or_never().is_some());
        // Many addresses without a credential hold up none with one.
        let others =
            (0..MAX_PUBLIC).map(|n| IpAddr::from([198, 51, 100, u8::try_from(n).unwrap()]));
        held.extend(others.filter_map(|ip| permits.acquire(ip, false).now_or_never()));
        assert_eq!(held.len(), MAX_PUBLIC);
        assert!(permits.acquire([192, 0, 2, 1].into(), true).now_or_never().is_some());
    }
}
