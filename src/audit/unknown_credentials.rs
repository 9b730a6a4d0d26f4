//! Counts requests with an unknown credential. They belong to no workspace, so no audit log can
//! record them.
//!
//! Memory and rows stay bounded during a flood: at most 512 addresses are counted separately. While
//! the counts cannot be written, each minute adds at most one for IPv4 and one for IPv6.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use time::{Duration, OffsetDateTime};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{model::address, store::Store};

/// Interval at which the counts are written.
const WRITE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// Timeout of one attempt to write them.
const WRITE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

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
        self.add(address::client_subnet(ip), minute, 1);
    }

    fn add(&self, address: IpNet, minute: OffsetDateTime, count: i64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let has_space = counts.len() < MAX_ADDRESSES || counts.contains_key(&(address, minute));
        let address = if has_space { address } else { address::all_addresses(address.addr()) };
        *counts.entry((address, minute)).or_default() += count;
    }

    /// Takes the counts since the last call: address, minute, number of requests.
    #[must_use]
    pub fn take(&self) -> Vec<(IpNet, OffsetDateTime, i64)> {
        let counts =
            std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        counts.into_iter().map(|((address, minute), count)| (address, minute, count)).collect()
    }

    /// Writes the counts regularly until `stopping` is cancelled, and then once more.
    pub async fn run_writer(self, store: Store, stopping: CancellationToken) {
        let mut ticks = interval(WRITE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            self.write(&store).await;
        }
        self.write(&store).await;
    }

    async fn write(&self, store: &Store) {
        let counts = self.take();
        if counts.is_empty() {
            return;
        }
        let add = store.add_unknown_credential_counts(&counts);
        if let Err(error) = Store::with_timeout(WRITE_TIMEOUT, add).await {
            warn!(%error, "cannot write the counts of unknown credentials; retrying");
            // If the response to the commit was lost, they are counted twice. That is better than
            // not at all: a flood must not go unnoticed.
            for (address, minute, count) in counts {
                self.add(address, minute, count);
            }
        }
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

    #[test]
    fn counts_that_are_added_again_stay_bounded_and_complete() {
        let unknown = UnknownCredentialCounts::default();
        let count = |minute: i64| {
            let now = OffsetDateTime::UNIX_EPOCH + Duration::minutes(minute);
            for number in 0..1000_u32 {
                unknown.count(IpAddr::from(number.to_be_bytes()), now);
            }
        };
        count(0);
        for minute in 1..10 {
            let failed = unknown.take();
            count(minute);
            for (address, minute, count) in failed {
                unknown.add(address, minute, count);
            }
        }
        let counts = unknown.take();
        assert_eq!(counts.iter().map(|(.., count)| count).sum::<i64>(), 10_000);
        assert!(counts.len() <= MAX_ADDRESSES + 10, "{}", counts.len());
    }
}
