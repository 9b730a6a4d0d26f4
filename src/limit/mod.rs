//! Rate limits: GCRA by `governor`, in memory or shared over Valkey.
//!
//! Each credential has its own bucket, with the quota of its workspace; an API key may have a lower
//! one. Requests without a valid
//! credential share the bucket of their address, so a noisy client behind an address never
//! throttles a valid key behind the same address. A bucket returns a [`Decision`], from which the
//! HTTP side makes the `X-RateLimit-*` headers.
//!
//! Sign-in and similar routes have lower limits, in buckets of their own for each [`AttemptKind`]:
//! per address, per network of the address, and for passwords per account over all addresses.
//! Networks from which an account has signed in before have a budget of their own, so that
//! strangers do not lock its owner out.
//!
//! With `rate_limit.store = "redis"` the buckets are on a Valkey or Redis server that all nodes
//! share (`shared.rs`). While the server is unavailable, each node uses its local buckets
//! (`buckets.rs`). Those were not charged before, so they start full: an outage allows every client
//! at most one extra burst for each node, and then the limit on each node.

mod buckets;
mod shared;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use data_encoding::HEXLOWER;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::{RateLimit, Redis},
    env::Env,
    model::{
        address,
        email::Email,
        id::{ClientId, Id},
        principal::{Credential, Principal},
    },
};

pub use buckets::Decision;
use buckets::{BucketOperation, Buckets};
pub use shared::LimitCounts;
use shared::SharedBuckets;

/// The number of failed authentications of an OAuth client that are recorded in a minute.
const REJECTIONS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// The kind of requests without a credential that share the low limit of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptKind {
    /// Sign-ins: passwords, second factors and passkeys.
    SignIn,
    /// Tokens of mailed links: verification, password reset, invitation.
    MailedLink,
    /// User codes of devices.
    UserCode,
    /// Registrations of users, and requests for a mailed link.
    SignUp,
    /// Registrations of OAuth clients.
    ClientRegistration,
    /// Device authorizations.
    DeviceAuthorization,
}

impl AttemptKind {
    /// The kind of the shared buckets.
    const fn as_str(self) -> &'static str {
        match self {
            Self::SignIn => "sign-in",
            Self::MailedLink => "mailed-link",
            Self::UserCode => "user-code",
            Self::SignUp => "sign-up",
            Self::ClientRegistration => "client-registration",
            Self::DeviceAuthorization => "device-authorization",
        }
    }

    /// True if an attempt that succeeds is refunded: it proves a secret, so only failures can be
    /// guesses, and many people can be behind one address.
    #[must_use]
    pub const fn is_refunded_on_success(self) -> bool {
        matches!(self, Self::SignIn | Self::MailedLink | Self::UserCode)
    }

    /// The limit in multiples of `rate_limit.sign_in_per_minute`. Where there is nothing to guess,
    /// it only bounds the stored rows.
    const fn factor(self) -> NonZeroU32 {
        const SIX: NonZeroU32 = NonZeroU32::new(6).unwrap();
        match self {
            Self::SignIn | Self::MailedLink | Self::UserCode | Self::SignUp => NonZeroU32::MIN,
            Self::ClientRegistration | Self::DeviceAuthorization => SIX,
        }
    }
}

/// The rate limits: the local buckets of this node and the connection to the shared ones. Cheap to
/// clone.
#[derive(Clone)]
pub struct Limits {
    env: Env,
    settings: RateLimit,
    credentials: Arc<Buckets<Uuid>>,
    /// Buckets of token requests, by grant. They are separate from `credentials`, so that a client
    /// over its request limit can still refresh its token.
    grants: Arc<Buckets<Uuid>>,
    /// Buckets of requests of OAuth clients that are recorded in the audit log, by client.
    client_events: Arc<Buckets<Uuid>>,
    /// Buckets of rejections of OAuth clients that are recorded in the audit log, by client.
    client_rejections: Arc<Buckets<Uuid>>,
    addresses: Arc<Buckets<IpNet>>,
    /// Buckets of sign-in and similar routes, by network. Their limit is far lower, so that
    /// passwords cannot be guessed.
    attempts: Arc<Buckets<(AttemptKind, IpNet)>>,
    /// Buckets of password checks, by account, and by account and known network.
    accounts: Arc<Buckets<([u8; 32], Option<IpNet>)>>,
    shared: Option<Arc<SharedBuckets>>,
    counts: Arc<LimitCounts>,
}

impl Limits {
    /// Creates the limits; shared ones if there are settings of a server. [`Self::connect`]
    /// connects to it.
    ///
    /// # Errors
    /// A message for the operator if the server's URL is invalid.
    pub fn new(settings: RateLimit, redis: Option<&Redis>, env: &Env) -> Result<Self, String> {
        let counts = Arc::<LimitCounts>::default();
        let shared = redis.map(|redis| SharedBuckets::new(redis, Arc::clone(&counts)));
        Ok(Self {
            env: env.clone(),
            settings,
            credentials: Arc::new(Buckets::new()),
            grants: Arc::new(Buckets::new()),
            client_events: Arc::new(Buckets::new()),
            client_rejections: Arc::new(Buckets::new()),
            addresses: Arc::new(Buckets::new()),
            attempts: Arc::new(Buckets::new()),
            accounts: Arc::new(Buckets::new()),
            shared: shared.transpose()?.map(Arc::new),
            counts,
        })
    }

    /// Charges one request to the bucket of a credential.
    pub async fn charge_credential(&self, principal: &Principal) -> Decision {
        let (kind, id) = match &principal.credential {
            Credential::ApiKey { id, .. } => ("key", id.uuid()),
            Credential::Session { id, .. } => ("session", id.uuid()),
            Credential::Grant { id, .. } => ("grant", id.uuid()),
        };
        let quota = self.credential_quota(principal);
        if let Some(shared) = &self.shared {
            let id = id.to_string();
            // Boxed, so that the future of a request stays small if limits are local.
            if let Some(decision) =
                Box::pin(shared.apply(BucketOperation::Charge, kind, &id, quota)).await
            {
                self.counts.shared_decisions.fetch_add(1, Relaxed);
                return decision;
            }
        }
        self.counts.local_decisions.fetch_add(1, Relaxed);
        self.credentials.charge(&id, quota, self.env.clock.monotonic())
    }

    /// Charges one token request to the bucket of the grant or client, always on this node.
    #[must_use]
    pub fn charge_grant(&self, id: Uuid) -> Decision {
        self.grants.charge(&id, self.quota(None), self.env.clock.monotonic())
    }

    /// Charges one audit event to the bucket of an OAuth client, always on this node.
    #[must_use]
    pub fn charge_client_event(&self, id: ClientId) -> Decision {
        self.client_events.charge(&id.uuid(), self.quota(None), self.env.clock.monotonic())
    }

    /// Charges one failed authentication to the bucket of an OAuth client, always on this node.
    /// Client ids are public, so the bucket is small.
    #[must_use]
    pub fn charge_client_rejection(&self, id: ClientId) -> Decision {
        let now = self.env.clock.monotonic();
        self.client_rejections.charge(&id.uuid(), REJECTIONS_PER_MINUTE, now)
    }

    /// Charges one attempt to the buckets of an address and of its networks. Returns the decision
    /// of the address, or that of a network that is over its limit.
    pub async fn charge_attempt(&self, kind: AttemptKind, ip: IpAddr) -> Decision {
        let (charge, quota) = (BucketOperation::Charge, self.attempt_quota(kind));
        let own = self.apply_to_attempts(charge, kind, address::client_subnet(ip), quota).await;
        if !own.allowed {
            return own;
        }
        for (network, factor) in address::enclosing_networks(ip) {
            let quota = quota.saturating_mul(factor);
            let decision = self.apply_to_attempts(charge, kind, network, quota).await;
            if !decision.allowed {
                return decision;
            }
        }
        own
    }

    /// Refunds an attempt that [`Self::charge_attempt`] allowed. Returns the state of the address.
    pub async fn refund_attempt(&self, kind: AttemptKind, ip: IpAddr) -> Decision {
        let (refund, quota) = (BucketOperation::Refund, self.attempt_quota(kind));
        for (network, factor) in address::enclosing_networks(ip) {
            self.apply_to_attempts(refund, kind, network, quota.saturating_mul(factor)).await;
        }
        self.apply_to_attempts(refund, kind, address::client_subnet(ip), quota).await
    }

    fn attempt_quota(&self, kind: AttemptKind) -> NonZeroU32 {
        self.settings.sign_in_per_minute.saturating_mul(kind.factor())
    }

    async fn apply_to_attempts(
        &self,
        operation: BucketOperation,
        kind: AttemptKind,
        network: IpNet,
        quota: NonZeroU32,
    ) -> Decision {
        if let Some(shared) = &self.shared {
            let id = network.to_string();
            let applied = shared.apply(operation, kind.as_str(), &id, quota);
            if let Some(decision) = Box::pin(applied).await {
                return decision;
            }
        }
        self.attempts.apply(operation, &(kind, network), quota, self.env.clock.monotonic())
    }

    /// Charges one check of an account's password, whether or not the account exists. A known
    /// network, from which the account has signed in before, has a bucket of its own; all others
    /// share one.
    pub async fn charge_account(&self, email: &Email, known_network: Option<IpNet>) -> Decision {
        let (digest, quota) = (email.digest(), self.settings.sign_in_per_minute);
        if let Some(shared) = &self.shared {
            let mut id = HEXLOWER.encode(&digest);
            if let Some(network) = known_network {
                id = format!("{id}:{network}");
            }
            let charge = shared.apply(BucketOperation::Charge, "account", &id, quota);
            if let Some(decision) = Box::pin(charge).await {
                return decision;
            }
        }
        self.accounts.charge(&(digest, known_network), quota, self.env.clock.monotonic())
    }

    /// Returns the limit of each credential of a workspace, in requests per minute; `own` is the
    /// workspace's own limit, if it has one.
    #[must_use]
    pub fn effective_limit(&self, own: Option<u32>) -> u32 {
        self.quota(own).get()
    }

    /// The quota of a credential: its own limit, and never more than that of its workspace.
    fn credential_quota(&self, principal: &Principal) -> NonZeroU32 {
        let max = self.quota(principal.rate_limit_per_minute);
        principal.own_rate_limit().and_then(NonZeroU32::new).map_or(max, |own| own.min(max))
    }

    fn quota(&self, own: Option<u32>) -> NonZeroU32 {
        own.and_then(NonZeroU32::new).unwrap_or(self.settings.per_key_per_minute)
    }

    /// Charges one request without a valid credential to the bucket of its address.
    pub async fn charge_address(&self, ip: IpAddr) -> Decision {
        let (subnet, quota) = (address::client_subnet(ip), self.settings.per_address_per_minute);
        if let Some(decision) = self.shared_address_decision(BucketOperation::Charge, &subnet).await
        {
            self.counts.shared_decisions.fetch_add(1, Relaxed);
            return decision;
        }
        self.counts.local_decisions.fetch_add(1, Relaxed);
        self.addresses.charge(&subnet, quota, self.env.clock.monotonic())
    }

    /// Returns the state of an address's bucket without charging it.
    pub async fn peek_address(&self, ip: IpAddr) -> Decision {
        let (subnet, quota) = (address::client_subnet(ip), self.settings.per_address_per_minute);
        if let Some(decision) = self.shared_address_decision(BucketOperation::Peek, &subnet).await {
            return decision;
        }
        self.addresses.peek(&subnet, quota, self.env.clock.monotonic())
    }

    async fn shared_address_decision(
        &self,
        ask: BucketOperation,
        subnet: &IpNet,
    ) -> Option<Decision> {
        let shared = self.shared.as_ref()?;
        let (id, quota) = (subnet.to_string(), self.settings.per_address_per_minute);
        Box::pin(shared.apply(ask, "address", &id, quota)).await
    }

    /// Connects to the server of the shared buckets, before the first request. If it is
    /// unavailable, this logs a warning; it is no error.
    pub async fn connect(&self) {
        if let Some(shared) = &self.shared {
            shared.connect_initially().await;
        }
    }

    /// Reconnects whenever the connection to the server is lost, until `stopping` is cancelled.
    pub async fn keep_connected(self, stopping: CancellationToken) {
        if let Some(shared) = &self.shared {
            stopping.run_until_cancelled(shared.keep_connected()).await;
        }
    }

    /// True if limits are shared with other nodes at the moment.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_connected())
    }

    /// Returns the counters of decisions.
    #[must_use]
    pub fn counts(&self) -> &LimitCounts {
        &self.counts
    }

    /// Evicts buckets that are full again: they are the same as new ones.
    pub fn evict_full(&self) {
        let now = self.env.clock.monotonic();
        self.credentials.evict_full(now);
        self.grants.evict_full(now);
        self.client_events.evict_full(now);
        self.client_rejections.evict_full(now);
        self.addresses.evict_full(now);
        self.attempts.evict_full(now);
        self.accounts.evict_full(now);
    }

    /// Returns the number of buckets on this node, without those of sign-ins.
    #[must_use]
    pub fn bucket_count(&self) -> usize {
        self.credentials.len() + self.grants.len() + self.client_events.len() + self.addresses.len()
    }

    /// Evicts full buckets every 30 seconds, until `stopping` is cancelled.
    pub async fn run_eviction(self, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_secs(30));
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            self.evict_full();
        }
    }
}
