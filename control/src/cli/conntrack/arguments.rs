//! The command line of `penstock conntrack`: that of conntrack-tools, where it has a meaning here.

use super::line::Style;
use crate::cli::Failure;
use clap::{ArgGroup, Args, ValueEnum};
use control::conntrack::{
    EventKind, Family, Filter, SideFilter, StatusFilter, Translated, Translation, UsageBy,
};
use dataplane::conntrack::{sctp, tcp};
use dataplane::tuple::Protocol;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where agents and labs keep their sockets, in folders.
const AGENTS: &str = "/run/penstock";

/// Arguments of `penstock conntrack`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("action").required(true).args(["list", "events", "delete", "flush", "get", "count", "statistics", "top"]),
    after_help = "Examples:
  penstock conntrack -L -p udp --dst-nat 10.244.1.10 --node node-a
  penstock conntrack -E -e NEW,DESTROY -o timestamp --node node-a
  penstock conntrack -D -s 198.51.100.0/24 --node node-a
  penstock conntrack --top snat --watch --node node-a      whose ports run out, and towards whom"
)]
pub(crate) struct Arguments {
    /// List connections
    #[arg(short = 'L', long, help_heading = "What to do")]
    list: bool,
    /// Show connections as they come, change and go
    #[arg(
        short = 'E',
        long = "event",
        id = "events",
        help_heading = "What to do"
    )]
    events: bool,
    /// End the connections that match, without filters all; exit code 1 when there are none
    #[arg(short = 'D', long, help_heading = "What to do")]
    delete: bool,
    /// End all connections
    #[arg(short = 'F', long, help_heading = "What to do")]
    flush: bool,
    /// Show the connection with exactly this original tuple
    #[arg(short = 'G', long, help_heading = "What to do")]
    get: bool,
    /// Print how many connections there are
    #[arg(short = 'C', long, help_heading = "What to do")]
    count: bool,
    /// Print the counters of each worker
    #[arg(
        short = 'S',
        long = "stats",
        id = "statistics",
        help_heading = "What to do"
    )]
    statistics: bool,
    /// Who uses the table and the ports: translated addresses, clients, destinations or Services
    #[arg(long, value_name = "BY", help_heading = "What to do")]
    top: Option<By>,

    /// Name of the node
    #[arg(long, value_name = "NAME")]
    pub(super) node: String,
    /// Where its agent listens [default: the one NODE.sock under /run/penstock]
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// With --top: print again every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", requires = "top",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) watch: Option<u32>,
    /// With --top: rows
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) rows: usize,
    /// How to print: extended, id, timestamp, json; several with commas
    #[arg(short, long, value_name = "FORM", value_delimiter = ',')]
    output: Vec<Output>,
    /// With -E: only these
    #[arg(
        short = 'e',
        long,
        value_name = "KIND",
        value_delimiter = ',',
        ignore_case = true
    )]
    event_mask: Vec<Kind>,

    /// Protocol: a name or a number
    #[arg(short = 'p', long, value_name = "PROTO", value_parser = control::conntrack::parse_protocol,
          help_heading = "Which connections")]
    protonum: Option<u8>,
    /// ipv4 or ipv6
    #[arg(
        short = 'f',
        long,
        value_name = "FAMILY",
        help_heading = "Which connections"
    )]
    family: Option<FamilyName>,
    /// Source of the original direction: an address or a range
    #[arg(short = 's', long, visible_alias = "orig-src", value_name = "IP", value_parser = net,
          help_heading = "Which connections")]
    src: Option<IpNet>,
    /// Destination of the original direction
    #[arg(short = 'd', long, visible_alias = "orig-dst", value_name = "IP", value_parser = net,
          help_heading = "Which connections")]
    dst: Option<IpNet>,
    /// Source of the reply direction
    #[arg(short = 'r', long, value_name = "IP", value_parser = net, help_heading = "Which connections")]
    reply_src: Option<IpNet>,
    /// Destination of the reply direction
    #[arg(short = 'q', long, value_name = "IP", value_parser = net, help_heading = "Which connections")]
    reply_dst: Option<IpNet>,
    /// Source port of the original direction
    #[arg(
        long,
        visible_alias = "orig-port-src",
        value_name = "PORT",
        help_heading = "Which connections"
    )]
    sport: Option<u16>,
    /// Destination port of the original direction
    #[arg(
        long,
        visible_alias = "orig-port-dst",
        value_name = "PORT",
        help_heading = "Which connections"
    )]
    dport: Option<u16>,
    /// Source port of the reply direction
    #[arg(long, value_name = "PORT", help_heading = "Which connections")]
    reply_port_src: Option<u16>,
    /// Destination port of the reply direction
    #[arg(long, value_name = "PORT", help_heading = "Which connections")]
    reply_port_dst: Option<u16>,
    /// ICMP type
    #[arg(long, value_name = "NUMBER", help_heading = "Which connections")]
    icmp_type: Option<u8>,
    /// ICMP code
    #[arg(long, value_name = "NUMBER", help_heading = "Which connections")]
    icmp_code: Option<u8>,
    /// ICMP identifier
    #[arg(long, value_name = "NUMBER", help_heading = "Which connections")]
    icmp_id: Option<u16>,
    /// State of TCP or SCTP
    #[arg(long, value_name = "STATE", help_heading = "Which connections")]
    state: Option<String>,
    /// Status: ASSURED, SEEN_REPLY, CONFIRMED, SRC_NAT, DST_NAT; several with commas
    #[arg(
        short = 'u',
        long,
        value_name = "STATUS",
        value_delimiter = ',',
        ignore_case = true,
        help_heading = "Which connections"
    )]
    status: Vec<StatusName>,
    /// Source translated, to this address when it is given
    #[arg(short = 'n', long, value_name = "IP[:PORT]", num_args = 0..=1, help_heading = "Which connections")]
    src_nat: Option<Option<Translated>>,
    /// Destination translated, to this address when it is given
    #[arg(short = 'g', long, value_name = "IP[:PORT]", num_args = 0..=1, help_heading = "Which connections")]
    dst_nat: Option<Option<Translated>>,
    /// Source or destination translated, to this address when it is given
    #[arg(short = 'j', long, value_name = "IP[:PORT]", num_args = 0..=1, help_heading = "Which connections")]
    any_nat: Option<Option<Translated>>,
    /// The only table there is
    #[arg(value_name = "TABLE", value_parser = ["conntrack"])]
    table: Option<String>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    List(Filter),
    Get(Filter),
    Delete(Filter),
    Flush,
    Events(Filter, Vec<EventKind>),
    Count,
    Statistics,
    Top(UsageBy),
}

impl Arguments {
    /// Where the node's agent listens: where it is said to, else where agents and labs have their sockets.
    pub(super) fn control_socket(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.control_socket {
            return Ok(path.clone());
        }
        let name = format!("{}.sock", self.node);
        let folders = std::fs::read_dir(AGENTS).into_iter().flatten().flatten();
        let sockets = folders.map(|folder| folder.path().join(&name));
        let found: Vec<PathBuf> = sockets.filter(|path| path.exists()).collect();
        match found.as_slice() {
            [] => usage(&format!(
                "no agent of a node `{}` has a socket under {AGENTS}; --control-socket says where it listens",
                self.node
            )),
            [path] => Ok(path.clone()),
            many => usage(&format!(
                "there is more than one node `{}`; say which by --control-socket: {}",
                self.node,
                many.iter()
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }

    pub(super) fn action(&self) -> Result<Action, Failure> {
        let filter = self.filter()?;
        self.check_unfiltered(&filter)?;
        Ok(if self.list {
            Action::List(filter)
        } else if self.events {
            Action::Events(filter, self.kinds())
        } else if self.delete {
            Action::Delete(filter)
        } else if self.flush {
            Action::Flush
        } else if self.get {
            if filter.tuple().is_none() {
                return usage(
                    "-G needs the whole original tuple: -p, -s, -d and the ports or ICMP numbers",
                );
            }
            Action::Get(filter)
        } else if self.count {
            Action::Count
        } else if let Some(by) = self.top {
            Action::Top(by.into())
        } else {
            Action::Statistics
        })
    }

    /// What is about all connections refuses filters, rather than to forget them; likewise what shows no events.
    fn check_unfiltered(&self, filter: &Filter) -> Result<(), Failure> {
        let unfiltered = self.flush || self.count || self.statistics || self.top.is_some();
        if unfiltered && *filter != Filter::default() {
            return usage("-F, -C, -S and --top are about all connections and take no filters");
        }
        if !self.event_mask.is_empty() && !self.events {
            return usage("--event-mask goes with -E only");
        }
        Ok(())
    }

    pub(super) fn style(&self) -> Style {
        let has = |output| self.output.contains(&output);
        Style {
            extended: has(Output::Extended),
            id: has(Output::Id),
            timestamp: has(Output::Timestamp),
            json: has(Output::Json),
        }
    }

    fn kinds(&self) -> Vec<EventKind> {
        if self.event_mask.is_empty() || self.event_mask.contains(&Kind::All) {
            return vec![EventKind::New, EventKind::Update, EventKind::Destroy];
        }
        let kind = |kind: &Kind| match kind {
            Kind::All | Kind::New => EventKind::New,
            Kind::Updates | Kind::Update => EventKind::Update,
            Kind::Destroy => EventKind::Destroy,
        };
        self.event_mask.iter().map(kind).collect()
    }

    fn filter(&self) -> Result<Filter, Failure> {
        self.check_protocol_options()?;
        self.check_families()?;
        Ok(Filter {
            family: self.family.map(Into::into),
            protocol: self.protonum,
            original: SideFilter {
                source: self.src,
                destination: self.dst,
                source_port: self.sport,
                destination_port: self.dport,
            },
            reply: SideFilter {
                source: self.reply_src,
                destination: self.reply_dst,
                source_port: self.reply_port_src,
                destination_port: self.reply_port_dst,
            },
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            icmp_id: self.icmp_id,
            state: self.state.clone(),
            status: self.status.iter().map(|status| (*status).into()).collect(),
            source_nat: translation(self.src_nat),
            destination_nat: translation(self.dst_nat),
            any_nat: translation(self.any_nat),
        })
    }

    /// Options that only some protocols have; conntrack-tools know them once -p is given.
    fn check_protocol_options(&self) -> Result<(), Failure> {
        let protocol = self.protonum.map(Protocol);
        let given = |port: Option<u16>| port.is_some();
        let ports = given(self.sport)
            || given(self.dport)
            || given(self.reply_port_src)
            || given(self.reply_port_dst);
        let has_ports = matches!(
            protocol,
            Some(Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol::UDP_LITE)
        );
        if ports && !has_ports {
            return usage("ports can be asked for with -p tcp, udp, sctp or udplite");
        }
        let icmp = self.icmp_type.is_some() || self.icmp_code.is_some() || self.icmp_id.is_some();
        if icmp && !protocol.is_some_and(Protocol::is_icmp) {
            return usage(
                "--icmp-type, --icmp-code and --icmp-id can be asked for with -p icmp or icmpv6",
            );
        }
        self.check_state(protocol)
    }

    /// Addresses of two families match nothing that there is.
    fn check_families(&self) -> Result<(), Failure> {
        let named = self.family.map(|family| family == FamilyName::Ipv4);
        let addresses = [self.src, self.dst, self.reply_src, self.reply_dst];
        let of_address = |net: &IpNet| net.addr().is_ipv4();
        let mut families = (named.into_iter()).chain(addresses.iter().flatten().map(of_address));
        let first = families.next();
        if families.any(|family| Some(family) != first) {
            return usage("mismatched address family");
        }
        Ok(())
    }

    fn check_state(&self, protocol: Option<Protocol>) -> Result<(), Failure> {
        let Some(state) = &self.state else {
            return Ok(());
        };
        let known = match protocol {
            Some(Protocol::TCP) => tcp::State::ALL.iter().any(|known| known.name() == state),
            Some(Protocol::SCTP) => sctp::State::ALL.iter().any(|known| known.name() == state),
            _ => return usage("a state can be asked for with -p tcp or sctp"),
        };
        if known {
            return Ok(());
        }
        let protocol = if protocol == Some(Protocol::TCP) {
            "TCP"
        } else {
            "SCTP"
        };
        usage(&format!("unknown {protocol} state `{state}'"))
    }
}

fn translation(option: Option<Option<Translated>>) -> Option<Translation> {
    option.map(|to| Translation { to })
}

fn usage<T>(message: &str) -> Result<T, Failure> {
    Err(Failure::Usage(message.to_owned()))
}

/// An address, or a range.
fn net(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| format!("`{text}` is not an address or a range such as 10.0.0.0/8"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Snat,
    Src,
    Dst,
    Service,
}

impl From<By> for UsageBy {
    fn from(by: By) -> Self {
        match by {
            By::Snat => Self::Snat,
            By::Src => Self::Src,
            By::Dst => Self::Dst,
            By::Service => Self::Service,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Extended,
    Id,
    Timestamp,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    All,
    New,
    Updates,
    #[value(hide = true)]
    Update,
    Destroy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FamilyName {
    #[value(alias = "inet")]
    Ipv4,
    #[value(alias = "inet6")]
    Ipv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Ipv4 => Self::Ipv4,
            FamilyName::Ipv6 => Self::Ipv6,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatusName {
    Assured,
    #[value(name = "seen_reply")]
    SeenReply,
    Confirmed,
    #[value(name = "src_nat")]
    SrcNat,
    #[value(name = "dst_nat")]
    DstNat,
}

impl From<StatusName> for StatusFilter {
    fn from(name: StatusName) -> Self {
        match name {
            StatusName::Assured => Self::Assured,
            StatusName::SeenReply => Self::SeenReply,
            StatusName::Confirmed => Self::Confirmed,
            StatusName::SrcNat => Self::SourceNat,
            StatusName::DstNat => Self::DestinationNat,
        }
    }
}
