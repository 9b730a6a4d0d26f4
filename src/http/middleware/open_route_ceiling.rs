//! The ceiling of open routes: bounds the work for an address over its rate limit.

use std::{
    num::NonZeroU32,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::extract::Request;
use governor::middleware::NoOpMiddleware;
use ipnet::IpNet;
use tower_governor::{
    GovernorError,
    governor::{GovernorConfig, GovernorConfigBuilder},
    key_extractor::KeyExtractor,
};

use crate::model::{address, audit::RequestInfo};

/// The ceiling of requests over the rate limit of their address, for each client subnet.
///
/// An address over its limit may still use open routes, such as the token endpoint, with a valid
/// credential, so the endpoint has to look at the credential first. The ceiling bounds that work:
/// it rejects before the endpoint runs. It is on this node only, and counts in real time.
#[derive(Clone)]
pub struct OpenRouteCeiling(Arc<CeilingConfig>);

type CeilingConfig = GovernorConfig<ClientSubnet, NoOpMiddleware>;

impl OpenRouteCeiling {
    /// The ceiling in multiples of the rate limit of an address.
    const FACTOR: u32 = 10;
    /// The smallest burst that the ceiling allows.
    const MIN_BURST: u32 = 20;

    /// A ceiling with full buckets, in addition to this rate limit of an address. A burst is as
    /// long as ten seconds.
    ///
    /// # Panics
    /// Never: neither the period nor the burst is zero.
    #[must_use]
    pub fn new(per_address_per_minute: NonZeroU32) -> Self {
        let per_minute = per_address_per_minute.get().saturating_mul(Self::FACTOR);
        let config = GovernorConfigBuilder::default()
            .period(Duration::from_mins(1) / per_minute)
            .burst_size((per_minute / 6).max(Self::MIN_BURST))
            .key_extractor(ClientSubnet)
            .finish();
        #[expect(clippy::expect_used, reason = "fails only if a number is zero")]
        let config = Arc::new(config.expect("burst and period are not zero"));
        tokio::spawn(evict_regularly(Arc::downgrade(&config)));
        Self(config)
    }

    /// Charges a request. Returns false over the ceiling.
    pub(super) fn charge(&self, request: &Request) -> bool {
        let subnet = ClientSubnet.extract(request);
        subnet.is_ok_and(|subnet| self.0.limiter().check_key(&subnet).is_ok())
    }
}

/// Evicts full buckets every minute; `tower_governor` never does so itself.
async fn evict_regularly(config: Weak<CeilingConfig>) {
    let mut ticks = tokio::time::interval(Duration::from_mins(1));
    loop {
        ticks.tick().await;
        let Some(config) = config.upgrade() else { return };
        config.limiter().retain_recent();
        config.limiter().shrink_to_fit();
    }
}

/// Extracts the client's subnet: an IPv6 address counts as its /64.
#[derive(Debug, Clone, Copy)]
struct ClientSubnet;

impl KeyExtractor for ClientSubnet {
    type Key = IpNet;

    fn extract<T>(&self, request: &Request<T>) -> Result<IpNet, GovernorError> {
        let info = request.extensions().get::<Arc<RequestInfo>>();
        info.map(|info| address::client_subnet(info.ip)).ok_or(GovernorError::UnableToExtractKey)
    }
}
