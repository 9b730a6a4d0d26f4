//! Counts requests with an unknown credential. They belong to no workspace, so no audit log can
//! record them.
//!
//! Memory and rows stay bounded during a flood: at most 512 addresses are counted separately.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use time::{Duration, OffsetDateTime};

use crate::model::address;

/// Maximum number of addresses with a count of their own. Further addresses share one count, so
/// that a flood from ever new addresses costs neither memory nor rows.
const MAX_ADDRESSES: usize = 512;

type Counts = HashMap<(IpNet, OffsetDateTime), i64>;

/// Counts by address and minute that are not yet written. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct UnknownCredentialCounts {
    counts: Arc<Mutex<Counts>>,
}

impl UnknownCredentialCounts {
    /// Counts one request.
    pub fn count(&self, ip: IpAddr, now: OffsetDateTime) {
        let minute = now
            - Duration::nanoseconds(i64::from(now.nanosecond()))
            - Duration::seconds(i64::from(now.second()));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address::client_subnet(ip), minute);
        if counts.len() < MAX_ADDRESSES || counts.contains_key(&key) {
            *counts.entry(key).or_default() += 1;
        } else {
            *counts.entry((address::all_addresses(ip), minute)).or_default() += 1;
        }
    }

    /// Takes the counts since the last call: address, minute, number of requests.
    #[must_use]
    pub fn take(&self) -> Vec<(IpNet, OffsetDateTime, i64)> {
        let counts =
            std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        counts.into_iter().map(|((address, minute), count)| (address, minute, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_above_limit_share_one_count() {
        let unknown = UnknownCredentialCounts::default();
        let now = OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(61_500);
        for number in 0..10_000_u32 {
            unknown.count(IpAddr::from(number.to_be_bytes()), now);
        }
        let counts = unknown.take();
        assert_eq!(counts.len(), MAX_ADDRESSES + 1);
        assert_eq!(counts.iter().map(|(.., count)| count).sum::<i64>(), 10_000);
        assert!(counts.iter().all(|(_, minute, _)| minute.unix_timestamp() == 60));
        assert!(unknown.take().is_empty());
    }
}
