//! One nftables table, printed as `nft list ruleset` prints it: sets and maps in the order of their creation,
//! then chains. `nft -f` loads the text as it is.

use crate::model::{Family, Transport};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::IpAddr;

/// Between two elements on different lines.
const NEW_LINE: &str = ",\n\t\t\t     ";

/// A set or map, a name and the lines between its braces.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// `set NAME`, `map NAME` or `chain NAME`.
    pub(super) title: String,
    /// The lines, without indentation.
    pub(super) lines: Vec<String>,
}

impl Block {
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            lines: Vec::new(),
        }
    }

    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\t{} {{", self.title)?;
        for line in &self.lines {
            writeln!(f, "\t\t{line}")?;
        }
        writeln!(f, "\t}}")
    }
}

/// The whole table `kube-proxy` of one family.
pub(super) fn table(family: Family, blocks: &[Block]) -> String {
    let mut text = format!("table {} kube-proxy {{\n", protocol_word(family));
    text.push_str("\tcomment \"rules for kube-proxy\"\n");
    for (position, block) in blocks.iter().enumerate() {
        let blank = if position > 0 { "\n" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{blank}{block}");
    }
    text.push_str("}\n");
    text
}

/// `ip` or `ip6`.
pub(super) const fn protocol_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// `ipv4_addr` or `ipv6_addr`.
pub(super) const fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// A set of addresses with its elements in ascending order, two IPv4 addresses per line or one of IPv6.
pub(super) fn address_set(
    name: &str,
    comment: &str,
    family: Family,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Block {
    let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let per_line = match family {
        Family::V4 => 2,
        Family::V6 => 1,
    };
    let mut elements = String::new();
    for (position, address) in addresses.iter().enumerate() {
        if position > 0 {
            elements.push_str(if position % per_line == 0 {
                NEW_LINE
            } else {
                ", "
            });
        }
        elements.push_str(&address.to_string());
    }
    let block = Block::new(format!("set {name}"))
        .line(format!("type {}", address_type(family)))
        .line(format!("comment \"{comment}\""));
    with_elements(block, &elements)
}

fn with_elements(block: Block, elements: &str) -> Block {
    if elements.is_empty() {
        block
    } else {
        block.line(format!("elements = {{ {elements} }}"))
    }
}

/// The key of a verdict map: `address . protocol . port`, or without the address for NodePorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: Transport,
    pub(super) port: u16,
}

impl Key {
    /// What nft sorts by: the key's bytes taken as a little-endian number (`concat_expr_msort_value`), so the
    /// port's second byte counts most, and the address's first byte least.
    fn listing_order(&self) -> [u8; 19] {
        let mut bytes = [0; 19];
        bytes[..2].copy_from_slice(&self.port.to_le_bytes());
        bytes[2] = match self.protocol {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        };
        let address = match self.address {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
        };
        for (slot, byte) in bytes[3..].iter_mut().zip(address.iter().rev()) {
            *slot = *byte;
        }
        bytes
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address} . ")?;
        }
        write!(f, "{} . {}", self.protocol, self.port)
    }
}

/// A map from destinations to verdicts.
#[derive(Clone, Debug)]
pub(super) struct VerdictMap {
    name: &'static str,
    comment: &'static str,
    key_type: String,
    elements: BTreeMap<[u8; 19], Element>,
}

/// One element of a [`VerdictMap`].
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) key: Key,
    pub(super) verdict: String,
    /// The svcport that it is for, printed by some maps.
    pub(super) service: String,
    pub(super) prints_service: bool,
}

impl VerdictMap {
    /// A map from address, protocol and port.
    pub(super) fn by_address(name: &'static str, comment: &'static str, family: Family) -> Self {
        let address = address_type(family);
        Self::new(
            name,
            comment,
            format!("{address} . inet_proto . inet_service"),
        )
    }

    /// A map from protocol and port.
    pub(super) fn by_port(name: &'static str, comment: &'static str) -> Self {
        Self::new(name, comment, "inet_proto . inet_service".to_owned())
    }

    fn new(name: &'static str, comment: &'static str, key_type: String) -> Self {
        Self {
            name,
            comment,
            key_type,
            elements: BTreeMap::new(),
        }
    }

    /// Adds an element. The same element twice is one, as in the kernel.
    ///
    /// # Errors
    ///
    /// The svcport that has the key already, with another verdict: the kernel answers `File exists`.
    pub(super) fn insert(&mut self, element: Element) -> Result<(), String> {
        let order = element.key.listing_order();
        match self.elements.get(&order) {
            Some(there) if there.verdict != element.verdict => Err(there.service.clone()),
            Some(_) => Ok(()),
            None => {
                self.elements.insert(order, element);
                Ok(())
            }
        }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn block(&self) -> Block {
        let elements: Vec<String> = self.elements.values().map(Element::to_string).collect();
        let block = Block::new(format!("map {}", self.name))
            .line(format!("type {} : verdict", self.key_type))
            .line(format!("comment \"{}\"", self.comment));
        with_elements(block, &elements.join(NEW_LINE))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        if self.prints_service {
            write!(f, " comment \"{}\"", self.service)?;
        }
        write!(f, " : {}", self.verdict)
    }
}

/// A duration as nft prints it: `1d2h3m4s` without the parts that are zero.
pub(super) fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, 'd'),
        (seconds / 3600 % 24, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ];
    let mut text = String::new();
    for (count, unit) in parts {
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_leave_out_what_is_zero() {
        assert_eq!(duration(10_800), "3h");
        assert_eq!(duration(60), "1m");
        assert_eq!(duration(93_784), "1d2h3m4s");
    }

    #[test]
    fn elements_are_listed_by_their_bytes_from_the_end() {
        let key = |address: &str, protocol, port| Key {
            address: Some(address.parse().unwrap()),
            protocol,
            port,
        };
        let mut keys = [
            key("10.96.1.18", Transport::Tcp, 443),
            key("10.96.1.6", Transport::Tcp, 80),
            key("172.18.0.3", Transport::Tcp, 80),
            key("10.96.1.2", Transport::Udp, 53),
            key("10.96.1.3", Transport::Sctp, 9000),
        ];
        keys.sort_by_key(Key::listing_order);
        let ports: Vec<String> = keys.iter().map(Key::to_string).collect();
        assert_eq!(
            ports,
            [
                "10.96.1.3 . sctp . 9000",
                "10.96.1.2 . udp . 53",
                "172.18.0.3 . tcp . 80",
                "10.96.1.6 . tcp . 80",
                "10.96.1.18 . tcp . 443",
            ]
        );
    }
}
