//! Rate limits: GCRA by `governor`, in memory.
//!
//! A credential has a bucket of its own, with its workspace's quota; requests without a good
//! credential share the bucket of their address, so a noisy neighbour behind one address never
//! throttles a good key. What a bucket says comes back as a [`Decision`], from which the HTTP side
//! makes its headers.

mod limiter;

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use ipnet::IpNet;
use uuid::Uuid;

use crate::{
    config::RateLimit,
    env::Env,
    model::{
        address,
        id::Id,
        principal::{Credential, Principal},
    },
};

use limiter::Buckets;
pub use limiter::Decision;

/// All buckets of this node. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    env: Env,
    settings: RateLimit,
    credentials: Arc<Buckets<Uuid>>,
    addresses: Arc<Buckets<IpNet>>,
}

impl Limits {
    /// Empty buckets.
    #[must_use]
    pub fn new(settings: RateLimit, env: &Env) -> Self {
        Self {
            env: env.clone(),
            settings,
            credentials: Arc::new(Buckets::new()),
            addresses: Arc::new(Buckets::new()),
        }
    }

    /// Takes one request from a credential's bucket.
    #[must_use]
    pub fn charge_credential(&self, principal: &Principal) -> Decision {
        let id = match &principal.credential {
            Credential::ApiKey { id, .. } => id.uuid(),
            Credential::Session { id, .. } => id.uuid(),
        };
        let quota = self.quota(principal.rate_limit_per_minute);
        self.credentials.charge(&id, quota, self.env.clock.monotonic())
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
    #[must_use]
    pub fn charge_address(&self, ip: IpAddr) -> Decision {
        let quota = self.settings.per_address_per_minute;
        self.addresses.charge(&address::subnet(ip), quota, self.env.clock.monotonic())
    }

    /// What an address's bucket says, without taking anything from it.
    #[must_use]
    pub fn look_at_address(&self, ip: IpAddr) -> Decision {
        let quota = self.settings.per_address_per_minute;
        self.addresses.look(&address::subnet(ip), quota, self.env.clock.monotonic())
    }

    /// Forgets buckets that are full again: they are as good as new ones.
    pub fn evict_full(&self) {
        let now = self.env.clock.monotonic();
        self.credentials.evict_full(now);
        self.addresses.evict_full(now);
    }

    /// How many buckets there are.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.credentials.len() + self.addresses.len()
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
