//! Names that a lab gives: hosts, network namespaces, interfaces, hardware addresses.
//!
//! All are derived from what they name and from nothing else, so that a second look finds the same ones.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// The longest interface name (`IFNAMSIZ` - 1).
pub const INTERFACE_LENGTH: usize = 15;
/// The longest file name under `/run/netns` that we make; tools cut longer ones off.
const NAMESPACE_LENGTH: usize = 200;
/// The longest name of a host's files that we make: with an ending they have 255 bytes at most, and Kubernetes allows
/// 253 for a pod and 63 for its namespace.
const FILE_LENGTH: usize = 200;

/// A host of a lab, as people name it: `client`, `node/node-a`, `pod/default/web-1`, `outside/192.0.2.10`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostName {
    /// The bridge that nodes and client hang on.
    Fabric,
    /// The host outside the cluster.
    Client,
    /// A node, by its name.
    Node(String),
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An endpoint that is neither a pod nor a node, by its address.
    Outside(IpAddr),
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fabric => f.write_str("fabric"),
            Self::Client => f.write_str("client"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Pod { namespace, name } => write!(f, "pod/{namespace}/{name}"),
            Self::Outside(address) => write!(f, "outside/{address}"),
        }
    }
}

impl HostName {
    /// A name for files: no `/`, no `:`, and not too long.
    pub fn file_name(&self) -> String {
        let name = match self {
            Self::Fabric | Self::Client => self.to_string(),
            Self::Node(name) => name.clone(),
            Self::Pod { namespace, name } => format!("{namespace}-{name}"),
            Self::Outside(address) => format!("outside-{address}").replace(':', "-"),
        };
        if name.len() > FILE_LENGTH {
            return shortened(name, FILE_LENGTH, self);
        }
        name
    }

    /// What people may leave out at the front: `web-1` and `default/web-1` for `pod/default/web-1`.
    pub fn short_names(&self) -> Vec<String> {
        match self {
            Self::Fabric | Self::Client => Vec::new(),
            Self::Node(name) => vec![name.clone()],
            Self::Pod { namespace, name } => vec![format!("{namespace}/{name}"), name.clone()],
            Self::Outside(address) => vec![address.to_string()],
        }
    }
}

/// Network namespace of a host: `quickstart.default-web-1`. `taken` are those of other hosts.
pub fn namespace(lab: &str, host: &HostName, taken: impl Fn(&str) -> bool) -> String {
    let name = format!("{lab}.{}", host.file_name());
    if name.len() > NAMESPACE_LENGTH || taken(&name) {
        return shortened(name, NAMESPACE_LENGTH, host);
    }
    name
}

/// What fits of `name`, and a hash of the host in place of the rest.
fn shortened(mut name: String, length: usize, host: &HostName) -> String {
    name.truncate(name.floor_char_boundary(length));
    format!("{name}-{}", short_hash(&host.to_string()))
}

/// An interface name: `prefix` and a hash of `what`, cut to the kernel's length.
pub fn interface(prefix: &str, what: &str) -> String {
    let mut name = format!("{prefix}{}", short_hash(what));
    name.truncate(INTERFACE_LENGTH);
    name
}

/// A locally administered unicast hardware address for `what`.
pub fn hardware_address(what: &str) -> [u8; 6] {
    let hash = hash(what).to_be_bytes();
    [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

fn short_hash(what: &str) -> String {
    format!("{:010x}", hash(what) >> 24)
}

/// FNV-1a with a final mix: stable across versions and machines, as names must be.
fn hash(what: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = what.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_fit_and_differ() {
        let names: Vec<String> = (0..1000)
            .map(|n| interface("azv", &format!("pod-{n}")))
            .collect();
        assert!(
            names
                .iter()
                .all(|name| name.len() <= INTERFACE_LENGTH && name.starts_with("azv"))
        );
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(interface("averylongprefix", "x"), "averylongprefix");
    }

    #[test]
    fn files_of_the_longest_names_fit_and_differ() {
        let pod = |last: &str| HostName::Pod {
            namespace: "n".repeat(63),
            name: "p".repeat(252) + last,
        };
        let (one, other) = (pod("1").file_name(), pod("2").file_name());
        assert!(one.len() + ".log.new".len() <= 255, "{one}");
        assert_ne!(one, other);
        let taken = |name: &str| name == namespace("lab", &pod("1"), |_| false);
        assert_ne!(
            namespace("lab", &pod("2"), taken),
            namespace("lab", &pod("1"), |_| false)
        );
        // No name in Kubernetes has such letters, but objects are files that anybody may write.
        assert!(HostName::Node("ü".repeat(150)).file_name().starts_with("ü"));
    }

    #[test]
    fn long_or_taken_namespaces_get_a_hash() {
        let node = HostName::Node("n".repeat(253));
        let name = namespace("lab", &node, |_| false);
        assert!(name.len() < 255, "{}", name.len());
        let node = HostName::Node("default-web".to_owned());
        let pod = HostName::Pod {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        let first = namespace("lab", &node, |_| false);
        let second = namespace("lab", &pod, |name| name == first);
        assert_eq!(first, "lab.default-web");
        assert!(second.starts_with("lab.default-web-"), "{second}");
    }
}
