//! The links of a node: which lead outside, which lead to pods; and all of the kernel that the table depends on.

use super::{Settings, node_network};
use crate::netlink::{self, Link, Netlink};
use crate::node_network::{NodeNetwork, Route};
use anyhow::{Result, bail};
use dataplane::tuple::Origin;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A link's name, or with a `+` at the end the start of names, as in iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkPattern {
    /// Just this one.
    Name(String),
    /// All that start so.
    Prefix(String),
}

impl LinkPattern {
    /// Whether the link `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(wanted) => name == wanted,
            Self::Prefix(start) => name.starts_with(start.as_str()),
        }
    }
}

impl FromStr for LinkPattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.strip_suffix('+').map_or_else(
            || Self::Name(text.to_owned()),
            |start| Self::Prefix(start.to_owned()),
        ))
    }
}

impl fmt::Display for LinkPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Prefix(start) => write!(f, "{start}+"),
        }
    }
}

/// What the table and the routing depend on in the node's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Addresses and routes.
    pub(super) network: NodeNetwork,
    /// Links to the outside, in the kernel's order.
    pub(super) uplinks: Vec<NamedLink>,
    /// Links of pods.
    pub(super) pods: Vec<NamedLink>,
    /// Links that are neither, and by which others are reached all the same: what comes by them is not led here.
    pub(super) left_out: Vec<NamedLink>,
}

impl Surroundings {
    /// As they are now.
    pub(super) fn read(netlink: &mut Netlink, settings: &Settings) -> netlink::Result<Self> {
        let links = netlink.links()?;
        let network = node_network(netlink)?;
        let named = |patterns| wanted(&links, patterns).map(NamedLink::of).collect();
        let patterns: Vec<_> = settings.uplinks.iter().chain(&settings.pods).collect();
        Ok(Self {
            uplinks: named(&settings.uplinks),
            pods: named(&settings.pods),
            left_out: left_out(&links, &patterns, &network.routes),
            network,
        })
    }

    /// Tells of links that were left out, but for those that were so `before`.
    pub(super) fn warn_of_left_out(&self, before: &Self) {
        let is_new = |link: &&NamedLink| !before.left_out.contains(link);
        for NamedLink { name, .. } in self.left_out.iter().filter(is_new) {
            tracing::warn!(
                "{name} is neither an --uplink nor one of --pods: what comes by it is routed as if there were no Services, and \
                 connections of which one direction comes by it are taken for invalid; name it if it carries their packets"
            );
        }
    }
}

/// What is remembered of a link: whatever else is told of it changes nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedLink {
    pub(super) index: u32,
    pub(super) name: String,
}

impl NamedLink {
    fn of(link: &Link) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
        }
    }
}

fn wanted<'a>(links: &'a [Link], patterns: &'a [LinkPattern]) -> impl Iterator<Item = &'a Link> {
    let is_wanted = |link: &&Link| patterns.iter().any(|pattern| pattern.matches(&link.name));
    links.iter().filter(is_wanted)
}

/// Links with a route to hosts that no pattern matches.
fn left_out(links: &[Link], patterns: &[&LinkPattern], routes: &[Route]) -> Vec<NamedLink> {
    let is_named = |link: &Link| patterns.iter().any(|pattern| pattern.matches(&link.name));
    let routes = routes.iter().filter(|route| route.is_of_any_link());
    let used: BTreeSet<u32> = routes.map(|route| route.interface).collect();
    let left_out = links
        .iter()
        .filter(|link| used.contains(&link.index) && !link.loopback && !is_named(link));
    left_out.map(NamedLink::of).collect()
}

/// Checks that every pattern of an uplink names a link, and none that cannot be one.
pub(super) fn require(
    netlink: &mut Netlink,
    uplinks: &[LinkPattern],
    pods: &[LinkPattern],
) -> Result<()> {
    let links = netlink.links()?;
    for link in wanted(&links, uplinks) {
        let name = &link.name;
        if link.loopback {
            bail!(
                "--uplink {name}: that is the loopback, which leads nowhere; name a link to the outside"
            );
        }
        if wanted(&links, pods).any(|other| other.index == link.index) {
            bail!("--uplink {name}: --pods has it, too; a link leads outside or to pods");
        }
    }
    for pattern in uplinks {
        if !links.iter().any(|link| pattern.matches(&link.name)) {
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            bail!(
                "--uplink {pattern}: no such link here; there are {}",
                names.join(", ")
            );
        }
    }
    Ok(())
}

/// The MTU of the device for `origin`, in bytes.
///
/// What is forwarded must fit whatever the link that it came from allows; the kernel checks the MTU of the link that it
/// leaves by. What the node sends is cut by this MTU, so it is the smallest of the links that it may leave by.
pub(super) fn device_mtu(
    netlink: &mut Netlink,
    settings: &Settings,
    origin: Origin,
) -> Result<u32> {
    const LARGEST: u32 = 65_535;
    if origin != Origin::Node {
        return Ok(LARGEST);
    }
    let patterns = || settings.uplinks.iter().chain(&settings.pods);
    let links = netlink.links()?;
    let used = links
        .iter()
        .filter(|link| patterns().any(|pattern| pattern.matches(&link.name)));
    Ok(used.map(|link| link.mtu).min().unwrap_or(1500))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_matches_the_start_of_names() {
        let pattern: LinkPattern = "azv+".parse().unwrap();
        assert!(pattern.matches("azv12") && pattern.matches("azv") && !pattern.matches("eth0"));
        let name: LinkPattern = "azv".parse().unwrap();
        assert!(name.matches("azv") && !name.matches("azv1"));
        assert_eq!(
            (pattern.to_string(), name.to_string()),
            ("azv+".into(), "azv".into())
        );
    }

    #[test]
    fn a_link_by_which_others_are_reached_is_left_out_unless_it_is_named() {
        let names = ["lo", "eth0", "veth1", "flannel.1", "docker0", "idle"];
        let link = |(index, name): (u32, &str)| Link {
            index,
            name: name.to_owned(),
            kind: None,
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            controller: None,
            hardware_address: None,
        };
        let links: Vec<Link> = (1..).zip(names).map(link).collect();
        let route = |(destination, interface): (&str, u32)| Route {
            destination: destination.parse().unwrap(),
            gateway: None,
            interface,
            metric: 0,
            preferred_source: None,
        };
        let routes = [
            ("127.0.0.0/8", 1),
            ("0.0.0.0/0", 2),
            ("10.244.1.5/32", 3),
            ("10.244.2.0/24", 4),
            ("10.244.3.0/24", 4),
            ("fd00:17::/64", 5),
            ("fe80::/64", 6),
        ];
        let routes = routes.map(route);
        let patterns = ["eth0", "veth+"].map(|pattern| pattern.parse::<LinkPattern>().unwrap());
        let patterns: Vec<&LinkPattern> = patterns.iter().collect();
        let left_out = left_out(&links, &patterns, &routes);
        let names: Vec<&str> = left_out.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["flannel.1", "docker0"]);
    }
}
