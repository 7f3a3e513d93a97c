//! Policy rules: which table a packet is routed by.

use super::{Netlink, Request, Result, address_family, family};
use crate::model::Family;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Nla as _};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{
    RuleAction as WireAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RulePortRange,
};
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    /// Looks up a table.
    Table(u32),
    /// Goes on with the first rule of this priority.
    Goto(u32),
    /// Another one, by number (`FR_ACT_*`).
    Other(u8),
}

/// A policy rule. Build one from [`Rule::new`] by naming what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Family of the packets.
    pub family: Family,
    /// Position; lower ones first.
    pub priority: u32,
    /// What it does.
    pub action: RuleAction,
    /// Came in on this interface; `lo` means sent by this machine.
    pub iif: Option<String>,
    /// Bound to this interface.
    pub oif: Option<String>,
    /// Source prefix.
    pub source: Option<IpNet>,
    /// Destination prefix.
    pub destination: Option<IpNet>,
    /// IP protocol number.
    pub ip_protocol: Option<u8>,
    /// Source ports.
    pub source_ports: Option<RangeInclusive<u16>>,
    /// Destination ports.
    pub destination_ports: Option<RangeInclusive<u16>>,
    /// Whether it asks for more than that (a mark, a user, …), or for the opposite. Of rules that the kernel lists; there is
    /// no way to add such a one.
    pub is_narrower: bool,
    /// Who made it (`FRA_PROTOCOL`); 0 for unknown, 2 for the kernel's own.
    pub protocol: u8,
}

impl Rule {
    /// A rule that matches every packet of the family.
    pub const fn new(family: Family, priority: u32, action: RuleAction) -> Self {
        Self {
            family,
            priority,
            action,
            iif: None,
            oif: None,
            source: None,
            destination: None,
            ip_protocol: None,
            source_ports: None,
            destination_ports: None,
            is_narrower: false,
            protocol: 0,
        }
    }
}

impl fmt::Display for Rule {
    /// As in `ip rule`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(oif) = &self.oif {
            write!(f, " oif {oif}")?;
        }
        if let Some(protocol) = self.ip_protocol {
            write!(f, " ipproto {protocol}")?;
        }
        if let Some(ports) = &self.source_ports {
            write!(f, " sport {}-{}", ports.start(), ports.end())?;
        }
        if let Some(ports) = &self.destination_ports {
            write!(f, " dport {}-{}", ports.start(), ports.end())?;
        }
        if self.is_narrower {
            f.write_str(" and more")?;
        }
        match self.action {
            RuleAction::Table(table) => write!(f, " lookup {table}"),
            RuleAction::Goto(priority) => write!(f, " goto {priority}"),
            RuleAction::Other(action) => write!(f, " action {action}"),
        }
    }
}

impl Netlink {
    /// All rules of a family, in the order that they are tried.
    pub fn rules(&mut self, of: Family) -> Result<Vec<Rule>> {
        let mut request = RuleMessage::default();
        request.header.family = address_family(of);
        let all = self.dump(RouteNetlinkMessage::GetRule(request), "list rules")?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => parse(rule),
                _ => None,
            })
            .collect())
    }

    /// Adds a rule that is not there yet.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<()> {
        let message = RouteNetlinkMessage::NewRule(message(rule));
        let request = Request {
            message,
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        self.request(request, || format!("add rule {rule}"))
    }

    /// Adds rules, many at once; those that are there already are no error. All are tried; the first refusal is the error.
    pub fn add_rules(&mut self, rules: &[Rule]) -> Result<()> {
        let make = |rule: &Rule| Request {
            message: RouteNetlinkMessage::NewRule(message(rule)),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        self.request_all(
            rules,
            make,
            |rule| format!("add rule {rule}"),
            super::Error::is_exists,
        )
    }

    /// Deletes the first rule that has all that `rule` names.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<()> {
        let message = RouteNetlinkMessage::DelRule(message(rule));
        self.request(Request { message, flags: 0 }, || {
            format!("delete rule {rule}")
        })
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (table, action) = match rule.action {
        RuleAction::Table(table) => (table, WireAction::ToTable),
        RuleAction::Goto(_) => (0, WireAction::Goto),
        RuleAction::Other(action) => (0, WireAction::from(action)),
    };
    let length = |prefix: Option<IpNet>| prefix.map_or(0, |prefix| prefix.prefix_len());
    message.header = RuleHeader {
        family: address_family(rule.family),
        dst_len: length(rule.destination),
        src_len: length(rule.source),
        // Tables above 255 do not fit the header and stand in FRA_TABLE only.
        table: u8::try_from(table).unwrap_or_default(),
        action,
        ..RuleHeader::default()
    };
    message.attributes = attributes(rule);
    message
}

fn attributes(rule: &Rule) -> Vec<RuleAttribute> {
    let range = |ports: &RangeInclusive<u16>| RulePortRange {
        start: *ports.start(),
        end: *ports.end(),
    };
    let mut attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)),
    ];
    match rule.action {
        RuleAction::Table(table) => attributes.push(RuleAttribute::Table(table)),
        RuleAction::Goto(priority) => attributes.push(RuleAttribute::Goto(priority)),
        RuleAction::Other(_) => {}
    }
    attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    attributes.extend(rule.oif.clone().map(RuleAttribute::Oifname));
    attributes.extend(
        rule.source
            .map(|prefix| RuleAttribute::Source(prefix.addr())),
    );
    attributes.extend(
        rule.destination
            .map(|prefix| RuleAttribute::Destination(prefix.addr())),
    );
    let protocol = rule.ip_protocol.map(IpProtocol::from);
    attributes.extend(protocol.map(RuleAttribute::IpProtocol));
    attributes.extend(
        rule.source_ports
            .as_ref()
            .map(range)
            .map(RuleAttribute::SourcePortRange),
    );
    let destination_ports = rule.destination_ports.as_ref().map(range);
    attributes.extend(destination_ports.map(RuleAttribute::DestinationPortRange));
    attributes
}

fn parse(message: RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let action = match header.action {
        WireAction::ToTable => RuleAction::Table(u32::from(header.table)),
        WireAction::Goto => RuleAction::Goto(0),
        other => RuleAction::Other(u8::from(other)),
    };
    let mut rule = Rule::new(family(header.family)?, 0, action);
    rule.is_narrower = header.tos != 0
        || header.flags.contains(RuleFlags::Invert)
        || message.attributes.iter().any(narrows);
    let (source_length, destination_length) = (header.src_len, header.dst_len);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => rule.source = prefix(ip, source_length),
            RuleAttribute::Destination(ip) => rule.destination = prefix(ip, destination_length),
            other => read_attribute(&mut rule, other),
        }
    }
    Some(rule)
}

/// Whether an attribute is a condition that has no field in a [`Rule`]. The kernel tells of a missing limit of what a table
/// may answer as of the largest number.
fn narrows(attribute: &RuleAttribute) -> bool {
    const NO_LIMIT: u32 = u32::MAX;
    const DSCP: u16 = 25;
    const FLOW_LABEL: u16 = 26;
    match attribute {
        RuleAttribute::SuppressIfGroup(limit) | RuleAttribute::SuppressPrefixLen(limit) => {
            *limit != NO_LIMIT
        }
        RuleAttribute::L3MDev(is_asked_for) => *is_asked_for,
        RuleAttribute::FwMark(_)
        | RuleAttribute::FwMask(_)
        | RuleAttribute::TunId(_)
        | RuleAttribute::UidRange(_) => true,
        RuleAttribute::Other(other) => matches!(other.kind(), DSCP | FLOW_LABEL),
        _ => false,
    }
}

fn prefix(ip: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(ip, length).ok()
}

fn read_attribute(rule: &mut Rule, attribute: RuleAttribute) {
    let range = |ports: RulePortRange| Some(ports.start..=ports.end);
    match (attribute, rule.action) {
        (RuleAttribute::Priority(priority), _) => rule.priority = priority,
        (RuleAttribute::Table(table), RuleAction::Table(_)) => {
            rule.action = RuleAction::Table(table);
        }
        (RuleAttribute::Goto(priority), RuleAction::Goto(_)) => {
            rule.action = RuleAction::Goto(priority);
        }
        (RuleAttribute::Iifname(name), _) => rule.iif = Some(name),
        (RuleAttribute::Oifname(name), _) => rule.oif = Some(name),
        (RuleAttribute::IpProtocol(protocol), _) => rule.ip_protocol = Some(protocol.into()),
        (RuleAttribute::SourcePortRange(ports), _) => rule.source_ports = range(ports),
        (RuleAttribute::DestinationPortRange(ports), _) => rule.destination_ports = range(ports),
        (RuleAttribute::Protocol(protocol), _) => rule.protocol = protocol.into(),
        _ => {}
    }
}
