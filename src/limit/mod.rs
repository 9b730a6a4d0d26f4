//! Rate limits: GCRA by `governor`, in memory or shared over Valkey.
//!
//! A credential has a bucket of its own, with its workspace's quota; requests without a good
//! credential share the bucket of their address, so a noisy neighbour behind one address never
//! throttles a good key. What a bucket says comes back as a [`Decision`], from which the HTTP side
//! makes its headers.
//!
//! With `rate_limit.store = "redis"` the buckets are on a server that all nodes share. While it is away
//! each node goes on with buckets of its own. Those were not charged meanwhile, so they start full: an
//! outage gives every client at most one burst a node, and then the limit on each.

mod limiter;
mod shared;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use ipnet::IpNet;
use uuid::Uuid;

use crate::{
    config::{RateLimit, Redis},
    env::Env,
    model::{
        address,
        id::Id,
        principal::{Credential, Principal},
    },
};

use limiter::Buckets;
pub use limiter::Decision;
pub use shared::LimitCounts;
use shared::{Ask, Shared};

/// All buckets of this node, and the way to the shared ones. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    env: Env,
    settings: RateLimit,
    credentials: Arc<Buckets<Uuid>>,
    /// Of what gets tokens: apart from the tokens, so that a client that calls too often can still refresh.
    grants: Arc<Buckets<Uuid>>,
    addresses: Arc<Buckets<IpNet>>,
    shared: Option<Arc<Shared>>,
    counts: Arc<LimitCounts>,
}

impl Limits {
    /// Empty buckets of this node, and shared ones where there are settings of a server. It is not
    /// asked yet: [`Self::connect`] does that.
    ///
    /// # Errors
    /// When the server's URL cannot be used.
    pub fn new(settings: RateLimit, redis: Option<&Redis>, env: &Env) -> Result<Self, String> {
        let counts = Arc::<LimitCounts>::default();
        let shared = redis.map(|redis| Shared::new(redis, Arc::clone(&counts)));
        Ok(Self {
            env: env.clone(),
            settings,
            credentials: Arc::new(Buckets::new()),
            grants: Arc::new(Buckets::new()),
            addresses: Arc::new(Buckets::new()),
            shared: shared.transpose()?.map(Arc::new),
            counts,
        })
    }

    /// Takes one request from a credential's bucket.
    pub async fn charge_credential(&self, principal: &Principal) -> Decision {
        let (kind, id) = match &principal.credential {
            Credential::ApiKey { id, .. } => ("key", id.uuid()),
            Credential::Session { id, .. } => ("session", id.uuid()),
            Credential::Grant { id, .. } => ("grant", id.uuid()),
        };
        let quota = self.quota(principal.rate_limit_per_minute);
        if let Some(shared) = &self.shared {
            let id = id.to_string();
            // In a box: where limits are local, requests are not to carry room for it.
            if let Some(told) = Box::pin(shared.ask(Ask::Charge, kind, &id, quota)).await {
                self.counts.shared_decisions.fetch_add(1, Relaxed);
                return told;
            }
        }
        self.counts.local_decisions.fetch_add(1, Relaxed);
        self.credentials.charge(&id, quota, self.env.clock.monotonic())
    }

    /// Takes one request for tokens from the bucket of what they are for, on this node.
    #[must_use]
    pub fn charge_grant(&self, id: Uuid) -> Decision {
        self.grants.charge(&id, self.quota(None), self.env.clock.monotonic())
    }

    /// The limit of each credential of a workspace, requests a minute, given the workspace's own.
    #[must_use]
    pub fn effective(&self, own: Option<u32>) -> u32 {
        self.quota(own).get()
    }

    fn quota(&self, own: Option<u32>) -> NonZeroU32 {
        own.and_then(NonZeroU32::new).unwrap_or(self.settings.per_key_per_minute)
    }

    /// Takes one request without a good credential from its address's bucket.
    pub async fn charge_address(&self, ip: IpAddr) -> Decision {
        let (subnet, quota) = (address::subnet(ip), self.settings.per_address_per_minute);
        if let Some(told) = self.ask_of_address(Ask::Charge, &subnet).await {
            self.counts.shared_decisions.fetch_add(1, Relaxed);
            return told;
        }
        self.counts.local_decisions.fetch_add(1, Relaxed);
        self.addresses.charge(&subnet, quota, self.env.clock.monotonic())
    }

    /// What an address's bucket says, without taking anything from it.
    pub async fn look_at_address(&self, ip: IpAddr) -> Decision {
        let (subnet, quota) = (address::subnet(ip), self.settings.per_address_per_minute);
        if let Some(told) = self.ask_of_address(Ask::Look, &subnet).await {
            return told;
        }
        self.addresses.look(&subnet, quota, self.env.clock.monotonic())
    }

    async fn ask_of_address(&self, ask: Ask, subnet: &IpNet) -> Option<Decision> {
        let shared = self.shared.as_ref()?;
        let (id, quota) = (subnet.to_string(), self.settings.per_address_per_minute);
        Box::pin(shared.ask(ask, "address", &id, quota)).await
    }

    /// Connects to the server of shared buckets, before the first request. That it is away is told and
    /// is no error.
    pub async fn connect(&self) {
        if let Some(shared) = &self.shared {
            shared.start().await;
        }
    }

    /// Connects again whenever the server has gone away, until the process ends.
    pub async fn keep_connected(self) {
        if let Some(shared) = &self.shared {
            shared.keep().await;
        }
    }

    /// Whether limits are shared with other nodes at the moment.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_there())
    }

    /// What has been decided, and where.
    #[must_use]
    pub fn counts(&self) -> &LimitCounts {
        &self.counts
    }

    /// Forgets buckets that are full again: they are as good as new ones.
    pub fn evict_full(&self) {
        let now = self.env.clock.monotonic();
        self.credentials.evict_full(now);
        self.grants.evict_full(now);
        self.addresses.evict_full(now);
    }

    /// How many buckets this node has.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.credentials.len() + self.grants.len() + self.addresses.len()
    }

    /// Evicts regularly, until the process ends.
    pub async fn keep_small(self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(30));
        loop {
            ticks.tick().await;
            self.evict_full();
        }
    }
}
