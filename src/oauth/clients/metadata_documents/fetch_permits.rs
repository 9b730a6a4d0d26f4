//! Permits that limit concurrent fetches: those of one address, and all of a node.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    keyed_semaphores::{KeyedPermit, KeyedSemaphores},
    model::address,
};

/// Maximum number of concurrent fetches of this node.
const MAX_FETCHES: usize = 64;
/// Maximum number of concurrent fetches for one address, so that a few slow documents do not hold
/// up the clients of others.
const MAX_FETCHES_PER_ADDRESS: usize = 4;

/// Permits to fetch documents.
pub(super) struct FetchPermits {
    addresses: KeyedSemaphores<IpNet>,
    all: Semaphore,
}

/// A permit for one fetch, until it is dropped.
pub(super) struct FetchPermit<'a> {
    _address: KeyedPermit<IpNet>,
    _all: Option<SemaphorePermit<'a>>,
}

impl FetchPermits {
    pub(super) fn new() -> Self {
        Self {
            addresses: KeyedSemaphores::new(MAX_FETCHES_PER_ADDRESS),
            all: Semaphore::new(MAX_FETCHES),
        }
    }

    /// Waits for a permit for a request from this address. The one of the address comes first, so
    /// that requests over its limit hold none of the node's.
    pub(super) async fn acquire(&self, ip: IpAddr) -> FetchPermit<'_> {
        let address = self.addresses.acquire(address::client_subnet(ip)).await;
        // An error means that the semaphore is closed, which never happens.
        FetchPermit { _address: address, _all: self.all.acquire().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn address_over_its_limit_leaves_permits_to_others() {
        let permits = FetchPermits::new();
        let acquire = |ip: &str| permits.acquire(ip.parse().unwrap()).now_or_never();
        // An IPv6 client can use any address of its /64.
        let v6 = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"].map(acquire);
        let v4 = ["192.0.2.1"; 4].map(acquire);
        assert!(v6.iter().chain(&v4).all(Option::is_some));
        for over in ["2001:db8::5", "192.0.2.1", "::ffff:192.0.2.1"] {
            assert!(acquire(over).is_none(), "{over}");
        }
        for other in ["2001:db8:0:1::1", "192.0.2.2"] {
            assert!(acquire(other).is_some(), "{other}");
        }
        drop(v4);
        assert!(acquire("192.0.2.1").is_some());
    }

    #[test]
    fn permits_of_node_are_limited() {
        let permits = FetchPermits::new();
        let acquire = |n: u8| permits.acquire([192, 0, 2, n].into()).now_or_never();
        let held: Vec<_> = (0..64).map(acquire).collect();
        assert!(held.iter().all(Option::is_some) && acquire(64).is_none());
    }
}
