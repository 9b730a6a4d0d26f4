//! Networks that stand for a client address in rate limits and counters.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Returns the network that counts as one client: a single IPv4 address, or an IPv6 /64, because a
/// client can use any address of its /64.
#[must_use]
pub fn client_subnet(ip: IpAddr) -> IpNet {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ipv4Net::from(ip).into(),
        IpAddr::V6(ip) => {
            let prefix = u128::from(ip) >> 64 << 64;
            Ipv6Net::new_assert(Ipv6Addr::from(prefix), 64).into()
        }
    }
}

/// Returns the network of the site (household or office) of an address: an IPv4 /24 or an
/// IPv6 /48.
#[must_use]
pub fn site_subnet(ip: IpAddr) -> IpNet {
    let length = if ip.to_canonical().is_ipv4() { 24 } else { 48 };
    IpNet::new_assert(ip.to_canonical(), length).trunc()
}

/// Returns the networks around a [`client_subnet`] that one party may control, and how many times
/// the limit of an address applies to each.
pub fn enclosing_networks(ip: IpAddr) -> impl Iterator<Item = (IpNet, NonZeroU32)> {
    let ip = ip.to_canonical();
    let networks: &[(u8, u32)] = if ip.is_ipv4() { &[(24, 8)] } else { &[(56, 4), (48, 8)] };
    networks.iter().map(move |(length, factor)| {
        (
            IpNet::new_assert(ip, *length).trunc(),
            NonZeroU32::new(*factor).unwrap_or(NonZeroU32::MIN),
        )
    })
}

/// Returns the network of all addresses of the same family: `0.0.0.0/0` or `::/0`.
#[must_use]
pub fn all_addresses(ip: IpAddr) -> IpNet {
    match ip.to_canonical() {
        IpAddr::V4(_) => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_address_maps_to_its_64_and_mapped_address_to_ipv4() {
        let subnet = |text: &str| client_subnet(text.parse().unwrap()).to_string();
        assert_eq!(subnet("203.0.113.9"), "203.0.113.9/32");
        assert_eq!(subnet("::ffff:203.0.113.9"), "203.0.113.9/32");
        assert_eq!(subnet("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        let enclosing = |text: &str| {
            let networks = enclosing_networks(text.parse().unwrap());
            networks.map(|(network, _)| network.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(enclosing("203.0.113.9"), ["203.0.113.0/24"]);
        assert_eq!(enclosing("2001:db8:1:102::6"), ["2001:db8:1:100::/56", "2001:db8:1::/48"]);
        let network = |text: &str| site_subnet(text.parse().unwrap()).to_string();
        assert_eq!(network("::ffff:203.0.113.9"), "203.0.113.0/24");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1::/48");
    }
}
