//! Links: veth pairs, bridges, and what is set on a link.

use super::{Error, Netlink, Request, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `veth`, `bridge`, `tun`, …; `None` for the loopback and for hardware.
    pub kind: Option<String>,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// Hardware address, where it has one of six bytes.
    pub hardware_address: Option<[u8; 6]>,
}

/// One end of a veth pair to make.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Network namespace to make it in; that of the connection when absent.
    pub namespace: Option<BorrowedFd<'a>>,
    /// Hardware address; the kernel chooses one when absent.
    pub hardware_address: Option<[u8; 6]>,
}

impl Netlink {
    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let all = self.dump(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            "list links",
        )?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
                _ => None,
            })
            .collect())
    }

    /// The index of the link named `name`.
    pub fn link_index(&mut self, name: &str) -> Result<u32> {
        let found = self.links()?.into_iter().find(|link| link.name == name);
        found.map(|link| link.index).ok_or_else(|| {
            Error::new(
                format!("find link {name}"),
                io::Error::from(rustix::io::Errno::NODEV),
            )
        })
    }

    /// Sets a link up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let mut message = link(index, Vec::new());
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up {
            LinkFlags::Up
        } else {
            LinkFlags::empty()
        };
        let word = if up { "up" } else { "down" };
        self.set_link(message, || format!("set link {index} {word}"))
    }

    /// Sets the MTU in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let message = link(index, vec![LinkAttribute::Mtu(mtu)]);
        self.set_link(message, || format!("set link {index} mtu {mtu}"))
    }

    /// Leaves out the queue that the kernel keeps in front of a link's driver (`tc qdisc add dev … root noqueue`). The link
    /// must be down, and have none of its own.
    pub fn set_no_queue(&mut self, index: u32) -> Result<()> {
        let mut message = TcMessage::with_index(index as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![TcAttribute::Kind("noqueue".to_owned())];
        let request = Request {
            message: RouteNetlinkMessage::NewQueueDiscipline(message),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        self.request(request, || format!("set link {index} qdisc noqueue"))
    }

    /// Makes a link a port of a bridge, or of none with 0.
    pub fn set_controller(&mut self, index: u32, bridge: u32) -> Result<()> {
        let message = link(index, vec![LinkAttribute::Controller(bridge)]);
        self.set_link(message, || format!("set link {index} master {bridge}"))
    }

    /// Isolates a bridge's port from the other isolated ports of the same bridge.
    pub fn isolate_port(&mut self, index: u32) -> Result<()> {
        let isolated = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)]);
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(isolated),
        ];
        let message = link(index, vec![LinkAttribute::LinkInfo(info)]);
        // The kernel takes a port's options with RTM_NEWLINK only.
        let request = Request {
            message: RouteNetlinkMessage::NewLink(message),
            flags: 0,
        };
        self.request(request, || format!("set link {index} isolated"))
    }

    /// Moves a link to another network namespace.
    pub fn move_link(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<()> {
        let message = link(index, vec![LinkAttribute::NetNsFd(namespace.as_raw_fd())]);
        self.set_link(message, || format!("move link {index}"))
    }

    /// Renames a link, which must be down.
    pub fn rename_link(&mut self, index: u32, name: &str) -> Result<()> {
        let message = link(index, vec![LinkAttribute::IfName(name.to_owned())]);
        self.set_link(message, || format!("rename link {index} to {name}"))
    }

    /// Makes a veth pair.
    pub fn add_veth(&mut self, end: VethEnd<'_>, peer: VethEnd<'_>) -> Result<()> {
        let mut message = end_message(end);
        let data = InfoData::Veth(InfoVeth::Peer(end_message(peer)));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.new_link(message, || {
            format!("add veth {} and {}", end.name, peer.name)
        })
    }

    /// Makes a bridge.
    pub fn add_bridge(&mut self, name: &str, hardware_address: Option<[u8; 6]>) -> Result<()> {
        let end = VethEnd {
            name,
            namespace: None,
            hardware_address,
        };
        let mut message = end_message(end);
        let info = vec![LinkInfo::Kind(InfoKind::Bridge)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.new_link(message, || format!("add bridge {name}"))
    }

    /// Deletes a link; of a veth pair both ends go.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let message = RouteNetlinkMessage::DelLink(link(index, Vec::new()));
        self.request(Request { message, flags: 0 }, || {
            format!("delete link {index}")
        })
    }

    fn set_link(&mut self, message: LinkMessage, words: impl Fn() -> String) -> Result<()> {
        self.request(
            Request {
                message: RouteNetlinkMessage::SetLink(message),
                flags: 0,
            },
            words,
        )
    }

    fn new_link(&mut self, message: LinkMessage, words: impl Fn() -> String) -> Result<()> {
        let message = RouteNetlinkMessage::NewLink(message);
        self.request(
            Request {
                message,
                flags: NLM_F_CREATE | NLM_F_EXCL,
            },
            words,
        )
    }
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn end_message(end: VethEnd<'_>) -> LinkMessage {
    let mut message = link(0, vec![LinkAttribute::IfName(end.name.to_owned())]);
    if let Some(namespace) = end.namespace {
        message
            .attributes
            .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    }
    if let Some(address) = end.hardware_address {
        message
            .attributes
            .push(LinkAttribute::Address(address.to_vec()));
    }
    message
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            controller: None,
            hardware_address: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Address(bytes) => link.hardware_address = bytes.try_into().ok(),
                LinkAttribute::LinkInfo(info) => link.kind = kind(info),
                _ => {}
            }
        }
        link
    }
}

fn kind(info: Vec<LinkInfo>) -> Option<String> {
    info.into_iter().find_map(|part| match part {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}
