//! [`Plan`]: the hosts of a lab with their links, addresses, routes and servers, worked out of Kubernetes
//! objects before anything is made.
//!
//! Pure: the same objects give the same plan, so the difference of two plans is what `apply` has to do. Nodes
//! and the client hang on one bridge, the fabric; each pod hangs on its node by a link of its own; nobody has a
//! default route but the pods, and no route leads to the machine. Read first: [`Plan::new`], then
//! [`place`](self) for which endpoint is which host.

mod fabric;
mod place;
mod routes;

use crate::lab_file::LabPod;
use crate::names::{self, HostName};
use control::config::{DetectLocal, KubeProxyConfig};
use control::model::Transport;
use control::problem::{Problem, Problems};
use control::snapshot::Snapshot;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use fabric::Fabric;
pub use place::{PlacedNode, PlacedPod, Placement, Placing};
pub(crate) use routes::addresses_outside;
pub use routes::via_node;

/// All hosts of a lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Fabric, nodes, client, outside hosts, pods, in this order.
    pub hosts: Vec<Host>,
    /// How agents name the links of pods: a prefix and `+`, or a bridge.
    pub pod_interfaces: String,
    /// What is odd in the input, for people to read.
    pub notes: Vec<String>,
}

/// A host: a network namespace with one uplink, or a pod that shares its node's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its network namespace under `/run/netns`.
    pub namespace: String,
    /// How it is connected.
    pub link: Link,
    /// Addresses of its uplink `eth0`, or the node's own for a pod in the host network.
    pub addresses: Vec<IpNet>,
    /// Bridges inside it.
    pub bridge: Option<Bridge>,
    /// Its routes besides those that addresses bring.
    pub routes: Vec<Route>,
    /// Its permanent neighbour entries.
    pub neighbours: Vec<Neighbour>,
    /// Whether it forwards packets.
    pub forwards: bool,
    /// What runs in it.
    pub server: Option<Server>,
    /// The node that it runs on, for pods.
    pub node: Option<String>,
}

impl Host {
    /// Whether the namespace is its own.
    pub fn has_namespace(&self) -> bool {
        self.link != Link::Shared
    }

    /// Whether `other` can become this one by routes and neighbours alone.
    pub fn same_but_routes(&self, other: &Self) -> bool {
        let without = |host: &Self| Self {
            routes: Vec::new(),
            neighbours: Vec::new(),
            ..host.clone()
        };
        without(self) == without(other)
    }

    /// Whether `device` of `node` is the other end of this host's link.
    pub fn hangs_on(&self, node: &Self, device: &str) -> bool {
        matches!(&self.link, Link::ToNode { namespace, interface, .. }
            if *namespace == node.namespace && interface == device)
    }
}

/// How a host is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// It is the fabric.
    Fabric,
    /// `eth0` is a port of the fabric's bridge.
    ToFabric {
        /// Interface name of the bridge's end.
        port: String,
    },
    /// `eth0` leads to a node.
    ToNode {
        /// The node's namespace.
        namespace: String,
        /// Interface name at the node.
        interface: String,
        /// Bridge at the node that the interface is a port of.
        bridge: Option<String>,
    },
    /// It shares the namespace of its node.
    Shared,
}

/// A bridge inside a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Interface name.
    pub device: String,
    /// Next hop; on the link, whatever the addresses say.
    pub gateway: Option<IpAddr>,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// Interface name.
    pub device: String,
    /// Address.
    pub address: IpAddr,
    /// Where it is.
    pub hardware_address: [u8; 6],
}

/// What runs in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Namespace and name that it answers with.
    pub pod: (String, String),
    /// Node that it answers with; empty outside the cluster.
    pub node: String,
    /// Addresses that it listens on.
    pub addresses: Vec<IpAddr>,
    /// Ports that it listens on.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// The program.
    pub run: Run,
    /// Files in its folder: path and contents.
    pub files: BTreeMap<String, String>,
}

/// A transport protocol, as a word in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
            Transport::Sctp => Self::Sctp,
        }
    }
}

/// The program of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// `penstock-lab serve` on the pod's ports.
    #[default]
    BuiltIn,
    /// nginx on the pod's TCP ports.
    Nginx,
    /// A command.
    Command(Vec<String>),
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Name of the lab.
    pub lab: &'a str,
    /// The cluster's objects.
    pub snapshot: &'a Snapshot,
    /// Names the links of pods by its detector of local traffic.
    pub config: &'a KubeProxyConfig,
    /// Pods of the lab file.
    pub pods: &'a [LabPod],
    /// The node that the client reaches VIPs by, if not chosen.
    pub via: Option<&'a str>,
    /// Whether nodes need a route to Services: the kernel routes before it translates.
    pub routes_to_services: bool,
}

impl Plan {
    /// Works out the hosts, or says all that is wrong with the input.
    pub fn new(input: Input<'_>) -> Result<Self, Problems> {
        let placement = Placement::new(input.snapshot, input.pods)?;
        let fabric = Fabric::new(input.snapshot, &placement);
        let mut builder = Builder {
            input,
            links: PodLinks::new(&input.config.detect_local),
            plan: Self {
                notes: placement.notes.clone(),
                ..Self::default()
            },
            namespaces: BTreeSet::new(),
        };
        builder.plan.pod_interfaces = builder.links.pattern();
        builder.fabric();
        for node in &placement.nodes {
            builder.node(node, &fabric);
        }
        builder.client(&fabric);
        for placed in &placement.pods {
            builder.placed(placed)?;
        }
        let mut plan = builder.plan;
        routes::add(&mut plan, &placement, &fabric, input);
        Ok(plan)
    }

    /// The host of that name.
    pub fn host(&self, name: &HostName) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == *name)
    }

    /// The host of that node.
    pub fn node(&self, name: &str) -> Option<&Host> {
        self.nodes()
            .find(|(node, _)| *node == name)
            .map(|(_, host)| host)
    }

    /// What answers at an address.
    pub fn server(&self, address: IpAddr) -> Option<&Server> {
        let servers = self.hosts.iter().filter_map(|host| host.server.as_ref());
        servers
            .into_iter()
            .find(|server| server.addresses.contains(&address))
    }

    /// The hosts that a cluster has. What connects them is one, too, for who names it, and in no list.
    pub fn shown(&self) -> impl Iterator<Item = &Host> {
        let is_shown = |host: &&Host| host.name != HostName::Fabric;
        self.hosts.iter().filter(is_shown)
    }

    /// Nodes with their names.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.hosts.iter().filter_map(|host| match &host.name {
            HostName::Node(name) => Some((name.as_str(), host)),
            _ => None,
        })
    }
}

/// How pods hang on their nodes, as the detector of local traffic wants to see them.
enum PodLinks {
    Prefix(String),
    Bridge(String),
}

impl PodLinks {
    fn new(detector: &DetectLocal) -> Self {
        match detector {
            DetectLocal::InterfaceNamePrefix(prefix) => Self::Prefix(prefix.clone()),
            DetectLocal::BridgeInterface(bridge) => Self::Bridge(bridge.clone()),
            DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => Self::Prefix("pod".to_owned()),
        }
    }

    fn pattern(&self) -> String {
        match self {
            Self::Prefix(prefix) => format!("{prefix}+"),
            Self::Bridge(bridge) => bridge.clone(),
        }
    }
}

/// The uplink of every host.
pub const UPLINK: &str = "eth0";
/// The bridge in the fabric.
pub const FABRIC_BRIDGE: &str = "fabric";

struct Builder<'a> {
    input: Input<'a>,
    links: PodLinks,
    plan: Plan,
    namespaces: BTreeSet<String>,
}

impl Builder<'_> {
    fn fabric(&mut self) {
        let bridge = Bridge {
            name: FABRIC_BRIDGE.to_owned(),
            addresses: Vec::new(),
        };
        let host = self.host(HostName::Fabric, Link::Fabric);
        self.plan.hosts.push(Host {
            bridge: Some(bridge),
            ..host
        });
    }

    fn node(&mut self, node: &PlacedNode, fabric: &Fabric) {
        let name = HostName::Node(node.name.clone());
        let link = Link::ToFabric {
            port: self.port(&node.name),
        };
        let bridge = match &self.links {
            PodLinks::Prefix(_) => None,
            PodLinks::Bridge(name) => Some(Bridge {
                name: name.clone(),
                addresses: node.pod_cidrs.iter().copied().map(first_host).collect(),
            }),
        };
        let host = self.host(name, link);
        let addresses = node
            .addresses
            .iter()
            .map(|address| fabric.on_link(*address))
            .collect();
        self.plan.hosts.push(Host {
            addresses,
            bridge,
            forwards: true,
            ..host
        });
    }

    fn client(&mut self, fabric: &Fabric) {
        let link = Link::ToFabric {
            port: self.port("client"),
        };
        let host = self.host(HostName::Client, link);
        self.plan.hosts.push(Host {
            addresses: fabric.client.clone(),
            ..host
        });
    }

    /// A pod, a pod in its node's network, or a host outside.
    fn placed(&mut self, pod: &PlacedPod) -> Result<(), Problems> {
        let addresses = pod
            .addresses
            .iter()
            .map(|address| IpNet::from(*address))
            .collect();
        let mut host = match &pod.placing {
            Placing::Outside(address) => {
                let port = self.port(&address.to_string());
                self.host(HostName::Outside(*address), Link::ToFabric { port })
            }
            Placing::HostNetwork(node) => {
                let namespace = self.node_namespace(node);
                Host {
                    namespace,
                    ..self.unnamed(pod_name(pod), Link::Shared)
                }
            }
            Placing::Pod(node) => self.pod(pod, node)?,
        };
        host.addresses = addresses;
        host.node = pod.placing.node().map(str::to_owned);
        host.server = server(pod);
        self.plan.hosts.push(host);
        Ok(())
    }

    fn pod(&mut self, pod: &PlacedPod, node: &str) -> Result<Host, Problems> {
        let name = pod_name(pod);
        let (interface, bridge) = match &self.links {
            PodLinks::Prefix(prefix) => (self.pod_interface(prefix, &name, pod)?, None),
            PodLinks::Bridge(bridge) => {
                (self.pod_interface("pod", &name, pod)?, Some(bridge.clone()))
            }
        };
        let namespace = self.node_namespace(node);
        Ok(self.host(
            name,
            Link::ToNode {
                namespace,
                interface,
                bridge,
            },
        ))
    }

    /// A name that no other pod of the lab has at its node.
    fn pod_interface(
        &self,
        prefix: &str,
        name: &HostName,
        pod: &PlacedPod,
    ) -> Result<String, Problems> {
        let links = self.plan.hosts.iter().filter_map(|host| match &host.link {
            Link::ToNode { interface, .. } => Some(interface.as_str()),
            _ => None,
        });
        let taken: BTreeSet<&str> = links.collect();
        const TRIES: usize = 1000;
        (0..TRIES)
            .map(|attempt| names::interface(prefix, &format!("{name}{}", "'".repeat(attempt))))
            .find(|interface| !taken.contains(interface.as_str()) && interface.len() > prefix.len())
            .ok_or_else(|| {
                Problems(vec![Problem {
                    location: pod.location.clone(),
                    object: None,
                    field: "detectLocal.interfaceNamePrefix".to_owned(),
                    message: format!(
                        "`{prefix}` leaves no room for the names of the pods' links, which have \
                         {} letters at most; use a shorter prefix",
                        names::INTERFACE_LENGTH
                    ),
                }])
            })
    }

    fn port(&self, what: &str) -> String {
        if what.len() <= names::INTERFACE_LENGTH
            && !what.contains(['/', ':'])
            && what != FABRIC_BRIDGE
        {
            return what.to_owned();
        }
        names::interface("port", what)
    }

    fn node_namespace(&self, node: &str) -> String {
        self.plan
            .node(node)
            .map(|host| host.namespace.clone())
            .unwrap_or_default()
    }

    fn host(&mut self, name: HostName, link: Link) -> Host {
        let taken = |name: &str| self.namespaces.contains(name);
        let namespace = names::namespace(self.input.lab, &name, taken);
        self.namespaces.insert(namespace.clone());
        Host {
            namespace,
            ..self.unnamed(name, link)
        }
    }

    fn unnamed(&self, name: HostName, link: Link) -> Host {
        Host {
            name,
            namespace: String::new(),
            link,
            addresses: Vec::new(),
            bridge: None,
            routes: Vec::new(),
            neighbours: Vec::new(),
            forwards: false,
            server: None,
            node: None,
        }
    }
}

fn pod_name(pod: &PlacedPod) -> HostName {
    HostName::Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
    }
}

/// A pod without ports and without a command runs nothing.
fn server(pod: &PlacedPod) -> Option<Server> {
    let idle = pod.ports.is_empty() && !matches!(pod.run, Run::Command(_));
    (!idle).then(|| Server {
        pod: (pod.namespace.clone(), pod.name.clone()),
        node: pod.placing.node().unwrap_or_default().to_owned(),
        addresses: pod.addresses.iter().copied().collect(),
        ports: pod.ports.clone(),
        run: pod.run.clone(),
        files: pod.files.clone(),
    })
}

/// The first address of a range that a host can have, with the range's length.
fn first_host(range: IpNet) -> IpNet {
    let first = range
        .hosts()
        .find(|host| *host != range.network())
        .unwrap_or_else(|| range.addr());
    IpNet::new(first, range.prefix_len()).unwrap_or(range)
}
