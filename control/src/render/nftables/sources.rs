//! Address ranges as nft prints them: an anonymous interval set is merged, then printed as prefixes where it can.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What follows `saddr !=` for a set of prefixes: one of them alone without braces.
pub(super) fn not_in(prefixes: &[IpNet]) -> String {
    if let [single] = prefixes {
        return prefix(*single);
    }
    let ranges: Vec<String> = merged(prefixes).into_iter().map(range).collect();
    format!("{{ {} }}", ranges.join(", "))
}

/// A prefix; an address alone without its length.
pub(super) fn prefix(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.trunc().to_string()
    }
}

/// First and last addresses, as numbers with the family's width.
#[derive(Clone, Copy)]
struct Range {
    first: u128,
    last: u128,
    width: u8,
}

impl Range {
    fn of(network: IpNet) -> Self {
        Self {
            first: bits(network.network()),
            last: bits(network.broadcast()),
            width: network.max_prefix_len(),
        }
    }

    fn joins(&self, next: &Self) -> bool {
        next.first <= self.last.saturating_add(1)
    }
}

/// Sorted, with what overlaps or touches made one.
fn merged(prefixes: &[IpNet]) -> Vec<Range> {
    let mut ranges: Vec<Range> = prefixes.iter().copied().map(Range::of).collect();
    ranges.sort_unstable_by_key(|range| range.first);
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(previous) if previous.joins(&range) => {
                previous.last = previous.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn range(range: Range) -> String {
    let first = address(range.first, range.width);
    let size_minus_one = range.last - range.first;
    let is_aligned = range.first & size_minus_one == 0;
    let is_power_of_two = size_minus_one & size_minus_one.wrapping_add(1) == 0;
    if is_aligned && is_power_of_two {
        let host_bits = (u128::BITS - size_minus_one.leading_zeros()) as u8;
        prefix(network(first, range.width - host_bits))
    } else {
        format!("{first}-{}", address(range.last, range.width))
    }
}

fn network(address: IpAddr, length: u8) -> IpNet {
    match address {
        IpAddr::V4(address) => Ipv4Net::new_assert(address, length).into(),
        IpAddr::V6(address) => Ipv6Net::new_assert(address, length).into(),
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128, width: u8) -> IpAddr {
    if width == 32 {
        Ipv4Addr::from_bits(bits as u32).into()
    } else {
        Ipv6Addr::from_bits(bits).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(prefixes: &[&str]) -> String {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        not_in(&prefixes)
    }

    /// What nft 1.0.6 lists after it was given the same.
    #[test]
    fn ranges_are_printed_as_nft_lists_them() {
        let cases: [(&[&str], &str); 10] = [
            (&["198.51.100.7/32"], "198.51.100.7"),
            (&["0.0.0.0/0"], "0.0.0.0/0"),
            (&["10.0.0.0/8", "10.1.0.0/16"], "{ 10.0.0.0/8 }"),
            (&["10.0.0.0/24", "10.0.1.0/24"], "{ 10.0.0.0/23 }"),
            (
                &["10.0.0.0/24", "10.0.2.0/24", "10.0.1.0/24"],
                "{ 10.0.0.0-10.0.2.255 }",
            ),
            (&["0.0.0.0/1", "128.0.0.0/1"], "{ 0.0.0.0/0 }"),
            (&["10.0.0.1/32", "10.0.0.1/32"], "{ 10.0.0.1 }"),
            (
                &["255.255.255.255/32", "10.0.0.0/8"],
                "{ 10.0.0.0/8, 255.255.255.255 }",
            ),
            (
                &["2001:db8::/33", "2001:db8:9000::/36", "2001:db8:8000::/36"],
                "{ 2001:db8::-2001:db8:9fff:ffff:ffff:ffff:ffff:ffff }",
            ),
            (&["::/0", "fd00::/8"], "{ ::/0 }"),
        ];
        for (prefixes, expected) in cases {
            assert_eq!(printed(prefixes), expected, "{prefixes:?}");
        }
    }
}
