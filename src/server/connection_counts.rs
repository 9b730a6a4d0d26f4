//! The limit on the connections of one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;

use crate::{config, model::address};

/// The number of connections of each client (IPv6: each /64).
pub(super) struct ConnectionCounts {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    max: usize,
    trusted: Vec<IpNet>,
}

/// A counted connection of a client; dropping it decrements the count.
pub(super) struct ConnectionPermit {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    client: IpNet,
}

impl ConnectionCounts {
    pub(super) fn new(settings: &config::Server) -> Self {
        Self {
            counts: Arc::default(),
            max: settings.max_connections_per_address,
            trusted: settings.trusted_proxies.clone(),
        }
    }

    /// Counts a connection; `None` if the client has reached its limit.
    pub(super) fn admit(&self, ip: IpAddr) -> Option<ConnectionPermit> {
        let ip = ip.to_canonical();
        let client = address::client_subnet(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        // A trusted proxy carries the connections of many clients.
        if *count >= self.max && !self.trusted.iter().any(|net| net.contains(&ip)) {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { counts: Arc::clone(&self.counts), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}
