//! Addresses from which metadata documents are fetched.
//!
//! The restriction to public addresses prevents server-side request forgery (SSRF).

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::MetadataDocuments;

/// A DNS resolver that returns only public addresses. The HTTP client connects to exactly these, so
/// that a second lookup (DNS rebinding) cannot change the target.
pub(super) struct PublicAddressResolver {
    mode: MetadataDocuments,
}

impl PublicAddressResolver {
    pub(super) fn new(mode: MetadataDocuments) -> Self {
        Self { mode }
    }
}

impl Resolve for PublicAddressResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let mode = self.mode;
        Box::pin(async move {
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // Refuse a name with any other address: mixed results indicate an attack.
            let is_allowed = mode == MetadataDocuments::Any
                || addresses.iter().all(|address| is_public(address.ip()));
            if !is_allowed {
                return Err("the name resolves to an address that is not public".into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Special-purpose address blocks (IANA registries, RFC 6890): all of IPv4, and those of IPv6 that
/// are within global unicast space.
static SPECIAL: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let nets = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    ];
    nets.iter().filter_map(|net| net.parse().ok()).collect()
});

/// Returns true for an address that is reachable on the public Internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    let is_assigned = match address {
        IpAddr::V4(_) => true,
        // Global unicast (2000::/3). IPv4-mapped and similar addresses are outside of it.
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    };
    is_assigned && !SPECIAL.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_purpose_addresses_are_not_public() {
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2001:0:7f00:1::",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[tokio::test]
    async fn local_name_is_resolved_only_in_mode_any() {
        let resolver = PublicAddressResolver::new(MetadataDocuments::Public);
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_err());
        let resolver = PublicAddressResolver::new(MetadataDocuments::Any);
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok());
    }
}
