//! `penstock node` on links of its own: what it serves, and how it follows its files. Needs root.
//!
//! Each test runs in a thread in a network namespace of its own, and so do the agent and all sockets.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::agent::socket::{Status, ask};
use control::agent::steering::DEVICES;
use control::model::Family;
use control::netlink::{
    Netlink, Nexthop, Route, RuleAction, TABLE_LOCAL, VethEnd, read_sysctl, write_sysctl,
};
use dataplane::sys::netns::cookie;
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-a}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
";

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.1], nodeName: node-a}]
";

/// Runs `test` in a thread of its own in a new network namespace, which goes with the thread.
fn in_fresh_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            dataplane::sys::netns::unshare_network().expect("needs root");
            test()
        });
        inside.join().unwrap()
    })
}

/// A running agent and its files; all of it goes with this.
struct Agent {
    child: Child,
    folder: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        terminate(&mut self.child);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Agent {
    /// `snapshot` is a path below the agent's folder, which `prepare` fills.
    fn start(snapshot: &str, config: &str, prepare: impl FnOnce(&Path)) -> Self {
        let name = std::thread::current().id();
        let folder = format!("penstock-agent-{}-{name:?}", std::process::id());
        let folder = std::env::temp_dir().join(folder.replace(['(', ')'], ""));
        std::fs::create_dir_all(&folder).unwrap();
        links();
        prepare(&folder);
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(folder.join("kube-proxy.yaml"), format!("{head}{config}")).unwrap();
        let mut command = command(&folder, snapshot);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let agent = Self { child, folder };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        agent
    }

    fn with_file(text: &str, config: &str) -> Self {
        Self::start("objects.yaml", config, |folder| {
            std::fs::write(folder.join("objects.yaml"), text).unwrap();
        })
    }

    /// Replaces a file as editors do: writes another one and renames it.
    fn replace(&self, text: &str) {
        let new = self.folder.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.folder.join("objects.yaml")).unwrap();
    }

    fn status(&self) -> Status {
        ask(&self.folder.join("socket")).unwrap()
    }

    /// Waits until the agent says so.
    #[track_caller]
    fn wait_until(&self, what: impl Fn(&Status) -> bool) -> Status {
        let start = Instant::now();
        loop {
            let status = self.status();
            if what(&status) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn command(folder: &Path, snapshot: &str) -> Command {
    let mut command = Command::new(program());
    command
        .arg("node")
        .args(["--node", "node-a", "--uplink", "eth0"]);
    command.arg("--snapshot").arg(folder.join(snapshot));
    command.arg("--config").arg(folder.join("kube-proxy.yaml"));
    command.arg("--control-socket").arg(folder.join("socket"));
    command
}

/// Asks an agent to end, and waits until it has.
fn terminate(child: &mut Child) {
    // It may have ended by itself, and another process have its number.
    if let Ok(None) = child.try_wait() {
        let _ = rustix::process::kill_process(Pid::from_child(child), Signal::TERM);
        let _ = child.wait();
    }
}

/// Their addresses are those that are given here: one that the kernel makes, and tells of a second later when it knows that
/// nobody else has it, would be a change of the node that tests do not count with.
fn links() {
    write_sysctl("ipv6/conf/default/addr_gen_mode", "1").unwrap();
    let mut netlink = Netlink::open().unwrap();
    let end = |name| VethEnd {
        name,
        namespace: None,
        hardware_address: None,
    };
    netlink.add_veth(end("eth0"), end("peer")).unwrap();
    for name in ["lo", "eth0", "peer"] {
        let index = netlink.link_index(name).unwrap();
        netlink.set_up(index, true).unwrap();
    }
    let index = netlink.link_index("eth0").unwrap();
    let address = "172.18.0.2/16".parse().unwrap();
    netlink.add_address(index, address).unwrap();
}

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/agent-HASH
    let beside = own.parent().and_then(Path::parent).unwrap().to_owned();
    let folder = std::env::var_os("PENSTOCK_PROGRAMS").map_or(beside, PathBuf::from);
    folder.join("penstock")
}

/// Status code, headers and body.
#[track_caller]
fn get(address: &str, path: &str) -> (u16, String, String) {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_owned(), body.to_owned())
}

fn is_open(address: &str, port: u16) -> bool {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn with_endpoints(list: &str) -> String {
    let last = SERVICE.rsplit_once("endpoints:").unwrap().0;
    format!("{NODE}{last}endpoints: [{list}]\n")
}

#[test]
fn root_a_load_balancer_is_told_of_local_endpoints() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let (code, head, body) = get("172.18.0.2:31000", "/anything");
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                        \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!((code, body.as_str()), (200, expected));
        for header in [
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
            "X-Load-Balancing-Endpoint-Weight: 1",
        ] {
            assert!(head.lines().any(|line| line == header), "{head}");
        }
        agent.replace(&with_endpoints(
            "{addresses: [10.244.1.1], nodeName: node-b}",
        ));
        agent.wait_until(|status| status.generation > 1);
        let (code, head, body) = get("172.18.0.2:31000", "/");
        assert_eq!(code, 503);
        assert!(
            head.contains("X-Load-Balancing-Endpoint-Weight: 0"),
            "{head}"
        );
        assert!(body.contains("\"localEndpoints\": 0"), "{body}");
        // Another port: the old one is closed.
        let moved = format!("{NODE}{SERVICE}").replace("31000", "31001");
        agent.replace(&moved);
        agent.wait_until(|status| status.generation > 2);
        assert_eq!(get("172.18.0.2:31001", "/").0, 200);
        assert!(!is_open("172.18.0.2", 31000));
    });
}

#[test]
fn root_health_and_metrics_are_served_where_the_configuration_says() {
    in_fresh_namespace(|| {
        let config = "healthzBindAddress: 172.18.0.2:10300\nmetricsBindAddress: 127.0.0.1\n\
                      nodePortAddresses: [127.0.0.0/8]\nmode: iptables\n";
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), config);
        let (code, head, body) = get("172.18.0.2:10300", "/healthz");
        assert_eq!(code, 200);
        assert!(head.contains("Content-Type: application/json"), "{head}");
        assert!(body.ends_with(", \"nodeEligible\": true}"), "{body}");
        assert_eq!(get("172.18.0.2:10300", "/livez").0, 200);
        assert_eq!(get("172.18.0.2:10300", "/metrics").0, 404);
        assert!(!is_open("127.0.0.1", 10300));
        assert_eq!(get("127.0.0.1:10249", "/healthz").2, "ok");
        assert_eq!(get("127.0.0.1:10249", "/proxyMode").2, "iptables");
        assert_eq!(get("127.0.0.1:31000", "/").0, 200);
        assert!(!is_open("172.18.0.2", 31000));
        let configz: serde_json::Value =
            serde_json::from_str(&get("127.0.0.1:10249", "/configz").2).unwrap();
        let config = &configz["kubeproxy.config.k8s.io"];
        assert_eq!(config["healthzBindAddress"], "172.18.0.2:10300");
        let (_, head, page) = get("127.0.0.1:10249", "/metrics");
        assert!(
            head.contains("Content-Type: text/plain; version=0.0.4"),
            "{head}"
        );
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 0",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 0",
            "penstock_services 1",
            "penstock_dropped_packets_total{reason=\"no-local-endpoint\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        for name in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "kubeproxy_network_programming_duration_seconds_count",
            "penstock_packets_total{verdict=\"forward\"}",
            "penstock_conntrack_entries",
            "penstock_conntrack_inserts_total",
            "penstock_source_ports_in_use",
        ] {
            assert!(page.contains(name), "{name}\n{page}");
        }
        drop(agent);
    });
}

#[test]
fn root_a_node_that_is_going_away_is_not_eligible() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        assert_eq!(get("127.0.0.1:10256", "/healthz").0, 200);
        let taint = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n";
        agent.replace(&format!("{NODE}{taint}{SERVICE}"));
        agent.wait_until(|status| status.generation > 1);
        let (code, _, body) = get("127.0.0.1:10256", "/healthz");
        assert_eq!(code, 503);
        assert!(body.ends_with("\"nodeEligible\": false}"), "{body}");
        assert_eq!(get("127.0.0.1:10256", "/livez").0, 200);
    });
}

#[test]
fn root_a_bad_file_changes_nothing_and_is_told_of() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let before = agent.status();
        assert_eq!((before.services, before.refused), (1, None));
        agent.replace(&format!("{NODE}{SERVICE}").replace("port: 80,", "port: 80000,"));
        let status = agent.wait_until(|status| status.refused.is_some());
        assert_eq!(status.generation, before.generation);
        let refused = status.refused.unwrap();
        assert!(refused.contains("objects.yaml:"), "{refused}");
        assert!(
            refused.contains("Service shop/web: spec.ports[0].port: "),
            "{refused}"
        );
        let failures = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 1\n";
        assert!(get("127.0.0.1:10249", "/metrics").2.contains(failures));
        assert_eq!(get("127.0.0.1:10256", "/healthz").0, 200);
        // Gone for a moment, and a folder without the node: refused as well.
        std::fs::remove_file(agent.folder.join("objects.yaml")).unwrap();
        agent.wait_until(|status| {
            status
                .refused
                .as_ref()
                .is_some_and(|text| text.contains("No such file"))
        });
        agent.replace(&format!("{NODE}{SERVICE}"));
        agent.wait_until(|status| status.refused.is_none());
        // And once more, from what is in the table.
        std::fs::remove_file(agent.folder.join("objects.yaml")).unwrap();
        agent.wait_until(|status| status.refused.is_some());
        agent.replace(&format!("{NODE}{SERVICE}"));
        agent.wait_until(|status| status.refused.is_none());
        // Not to be read, and mended by who has not closed it yet, of which nobody tells.
        let file = agent.folder.join("objects.yaml");
        std::fs::write(&file, b"\xff").unwrap();
        agent.wait_until(|status| status.refused.is_some());
        let mut open = std::fs::File::options().write(true).open(&file).unwrap();
        open.write_all(format!("{NODE}{SERVICE}").as_bytes())
            .unwrap();
        agent.wait_until(|status| status.refused.is_none());
        drop(open);
        // A pipe would keep who opens it waiting.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            agent.folder.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        std::fs::rename(agent.folder.join("pipe"), &file).unwrap();
        agent.wait_until(|status| {
            let refused = status.refused.as_ref();
            refused.is_some_and(|text| text.contains("neither a file nor a folder"))
        });
        agent.replace(&NODE.replace("node-a", "node-b"));
        agent.wait_until(|status| {
            status
                .refused
                .as_ref()
                .is_some_and(|text| text.contains("no Node node-a"))
        });
        agent.replace(&format!("{NODE}{SERVICE}# the end\n"));
        let status = agent.wait_until(|status| status.refused.is_none());
        assert_eq!(status.generation, before.generation + 4);
    });
}

const PLAIN_SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
";

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: plain}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
}

/// A file of slices alone is taken by itself; the table, the metrics and what is refused are as if all had been read.
#[test]
fn root_slices_of_a_file_are_exchanged() {
    in_fresh_namespace(|| {
        let agent = Agent::start("objects", "", |folder| {
            let objects = folder.join("objects");
            std::fs::create_dir(&objects).unwrap();
            std::fs::write(objects.join("all.yaml"), format!("{NODE}{PLAIN_SERVICE}")).unwrap();
            let text = slice("plain-1", "{addresses: [10.244.0.1]}");
            std::fs::write(objects.join("slices.yaml"), text).unwrap();
        });
        let replace = |file: &str, text: &str| {
            let new = agent.folder.join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, agent.folder.join("objects").join(file)).unwrap();
        };
        let metric = |name: &str| {
            let page = get("127.0.0.1:10249", "/metrics").2;
            let line = page
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        assert_eq!(metric("penstock_endpoints "), 1);
        let before = agent.status().generation;
        let two = slice(
            "plain-1",
            "{addresses: [10.244.0.2]}, {addresses: [10.244.0.3]}",
        );
        replace("slices.yaml", &two);
        agent.wait_until(|status| status.generation == before + 1);
        assert_eq!(metric("penstock_endpoints "), 2);
        assert_eq!(
            metric("kubeproxy_sync_proxy_rules_endpoint_changes_total "),
            2
        );
        replace("slices.yaml", &two.replace("10.244.0.3", "nowhere"));
        let status = agent.wait_until(|status| status.refused.is_some());
        assert_eq!(status.generation, before + 1);
        replace("slices.yaml", &slice("plain-1", ""));
        agent.wait_until(|status| status.refused.is_none());
        assert_eq!(metric("penstock_endpoints "), 0);
        // A name that another file has is refused, whichever of the two came first.
        replace("more.yaml", &slice("plain-1", "{addresses: [10.244.0.9]}"));
        agent.wait_until(|status| status.refused.is_some());
        std::fs::remove_file(agent.folder.join("objects").join("slices.yaml")).unwrap();
        agent.wait_until(|status| status.refused.is_none());
        assert_eq!(metric("penstock_endpoints "), 1);
        std::fs::remove_file(agent.folder.join("objects").join("more.yaml")).unwrap();
        agent.wait_until(|status| status.generation > before + 3);
        assert_eq!(metric("penstock_endpoints "), 0);
    });
}

#[test]
fn root_files_of_a_folder_and_links_are_followed() {
    let second = SERVICE
        .replace("web", "two")
        .replace("31000", "31002")
        .replace("30080", "30082");
    in_fresh_namespace(|| {
        let agent = Agent::start("objects", "", |folder| {
            let objects = folder.join("objects");
            std::fs::create_dir(&objects).unwrap();
            std::fs::write(objects.join("node.yaml"), NODE).unwrap();
        });
        assert_eq!(agent.status().services, 0);
        let objects = agent.folder.join("objects");
        std::fs::write(objects.join("one.yaml"), SERVICE).unwrap();
        agent.wait_until(|status| status.services == 1);
        let hidden = agent.folder.join("two");
        std::fs::write(&hidden, second.replace("10.96.0.10", "10.96.0.11")).unwrap();
        std::fs::rename(hidden, objects.join("two.yaml")).unwrap();
        agent.wait_until(|status| status.services == 2);
        std::fs::remove_file(objects.join("one.yaml")).unwrap();
        agent.wait_until(|status| status.services == 1);
    });
    // As a ConfigMap is mounted: the file is a link through a folder that is a link, which is replaced.
    in_fresh_namespace(|| {
        let agent = Agent::start("objects.yaml", "", |folder| {
            for (version, text) in [("v1", NODE.to_owned()), ("v2", format!("{NODE}{SERVICE}"))] {
                std::fs::create_dir(folder.join(version)).unwrap();
                std::fs::write(folder.join(version).join("objects.yaml"), text).unwrap();
            }
            std::os::unix::fs::symlink("v1", folder.join("..data")).unwrap();
            let target = Path::new("..data").join("objects.yaml");
            std::os::unix::fs::symlink(target, folder.join("objects.yaml")).unwrap();
        });
        assert_eq!(agent.status().services, 0);
        std::os::unix::fs::symlink("v2", agent.folder.join("..new")).unwrap();
        std::fs::rename(agent.folder.join("..new"), agent.folder.join("..data")).unwrap();
        agent.wait_until(|status| status.services == 1);
    });
}

#[test]
fn root_news_of_links_count_when_they_change_something() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let before = agent.status().generation;
        let mut netlink = Netlink::open().unwrap();
        let peer = netlink.link_index("peer").unwrap();
        for mtu in 1400..1410 {
            netlink.set_mtu(peer, mtu).unwrap();
        }
        let uplink = netlink.link_index("eth0").unwrap();
        let address = "172.19.0.2/16".parse().unwrap();
        netlink.add_address(uplink, address).unwrap();
        let after = agent.wait_until(|status| status.generation > before);
        assert_eq!(after.generation, before + 1);
    });
}

/// Whether the rules of IPv4 lead to the local table first, as they do where no agent runs.
fn has_local_rule_first(netlink: &mut Netlink) -> bool {
    let rules = netlink.rules(Family::V4).unwrap();
    let first = rules.iter().min_by_key(|rule| rule.priority);
    first.is_some_and(|rule| rule.priority == 0 && rule.action == RuleAction::Table(TABLE_LOCAL))
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn root_a_node_without_an_address_has_its_local_table() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let mut netlink = Netlink::open().unwrap();
        assert!(!has_local_rule_first(&mut netlink));
        let uplink = netlink.link_index("eth0").unwrap();
        let address = "172.18.0.2/16".parse().unwrap();
        netlink.delete_address(uplink, address).unwrap();
        wait_for(|| has_local_rule_first(&mut Netlink::open().unwrap()));
        assert_eq!(get("127.0.0.1:10256", "/livez").0, 200);
        netlink.add_address(uplink, address).unwrap();
        wait_for(|| !has_local_rule_first(&mut Netlink::open().unwrap()));
        assert_eq!(agent.status().refused, None);
    });
}

#[test]
fn root_what_cannot_be_an_uplink_is_refused() {
    in_fresh_namespace(|| {
        links();
        let folder = std::env::temp_dir().join(format!("penstock-uplink-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("objects.yaml"), NODE).unwrap();
        for (links, expected) in [
            (&["--uplink", "lo"][..], "--uplink lo: that is the loopback"),
            (&["--pods", "eth+"], "--uplink eth0: --pods has it, too"),
        ] {
            let mut command = Command::new(program());
            command.args(["node", "--node", "node-a", "--uplink", "eth0"]);
            command
                .args(links)
                .arg("--snapshot")
                .arg(folder.join("objects.yaml"));
            let output = command.output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(words.contains(expected), "{words}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    });
}

#[test]
fn root_an_address_may_take_its_time() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let before = agent.status().generation;
        // Without `nodad`: it is nobody's for a second or so.
        let arguments = ["-6", "addr", "add", "2001:db8::5/64", "dev", "eth0"];
        assert!(
            Command::new("ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
        agent.wait_until(|status| status.generation > before);
        let has_route = || {
            let mut netlink = Netlink::open().unwrap();
            let routes = netlink.routes(Family::V6).unwrap();
            let source = "2001:db8::5".parse::<IpAddr>().unwrap();
            routes
                .iter()
                .any(|route| route.table != TABLE_LOCAL && route.preferred_source == Some(source))
        };
        wait_for(has_route);
        assert_eq!(get("127.0.0.1:10256", "/livez").0, 200);
    });
}

#[test]
fn root_routes_are_followed() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let mut netlink = Netlink::open().unwrap();
        let uplink = netlink.link_index("eth0").unwrap();
        let settled = agent.status().generation;
        let route = Route {
            oif: Some(uplink),
            ..Route::new("10.244.2.0/24".parse().unwrap())
        };
        netlink.add_route(&route).unwrap();
        agent.wait_until(|status| status.generation > settled);
    });
}

/// A device that is down takes no routes.
#[test]
fn root_what_the_kernel_refuses_is_tried_again() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let before = agent.status().generation;
        let mut netlink = Netlink::open().unwrap();
        let device = netlink.link_index(DEVICES[2]).unwrap();
        netlink.set_up(device, false).unwrap();
        let uplink = netlink.link_index("eth0").unwrap();
        let address = "172.18.0.3/16".parse().unwrap();
        netlink.add_address(uplink, address).unwrap();
        agent.wait_until(|status| status.generation > before);
        let has_route = || {
            let routes = Netlink::open().unwrap().routes(Family::V4).unwrap();
            let itself = "172.18.0.3/32".parse().unwrap();
            let mut ours = routes.iter().filter(|route| route.oif == Some(device));
            ours.any(|route| route.destination == itself)
        };
        assert!(!has_route());
        netlink.set_up(device, true).unwrap();
        wait_for(has_route);
        // What led to the device went when it went down.
        let other = SERVICE.replace("10.96.0.10", "10.96.0.11");
        let other = other.replace("web", "blog").replace("3", "4");
        let (one, two) = (
            format!("{NODE}{SERVICE}"),
            format!("{NODE}{SERVICE}{other}"),
        );
        agent.replace(&two);
        wait_for(|| route_to("10.96.0.11").is_some());
        // A route can be taken away that went with it.
        netlink.set_up(device, false).unwrap();
        agent.replace(&one);
        agent.wait_until(|status| status.services == 1);
        netlink.set_up(device, true).unwrap();
        agent.replace(&two);
        wait_for(|| route_to("10.96.0.11").is_some());
    });
}

/// As in a new namespace, whose loopback has no address before it is up: no route may have it as its source.
#[test]
fn root_the_loopback_may_lack_its_address() {
    const TABLE_NODE_PORTS: u32 = 8304;
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let address = "127.0.0.1/8".parse().unwrap();
        let has_route = || {
            let mut netlink = Netlink::open().unwrap();
            let routes = netlink.routes_in(TABLE_NODE_PORTS, Family::V4).unwrap();
            let loopback = "127.0.0.0/8".parse().unwrap();
            routes.iter().any(|route| route.destination == loopback)
        };
        let loopback = netlink.link_index("lo").unwrap();
        let _agent = Agent::start("objects.yaml", "", |folder| {
            std::fs::write(folder.join("objects.yaml"), format!("{NODE}{SERVICE}")).unwrap();
            netlink.delete_address(loopback, address).unwrap();
        });
        assert!(!has_route());
        netlink.add_address(loopback, address).unwrap();
        wait_for(has_route);
        netlink.delete_address(loopback, address).unwrap();
        wait_for(|| !has_route());
        netlink.add_address(loopback, address).unwrap();
        wait_for(has_route);
    });
}

/// A server on the port of an endpoint, that has not chosen an address: it answers from that of the way to the client, as it
/// would without the agent, and what it says to a group leaves by the group's route.
#[test]
fn root_servers_of_the_node_answer_from_the_address_of_the_way() {
    const ON_NODE: &str = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [172.18.0.2], nodeName: node-a}]
";
    in_fresh_namespace(|| {
        let agent = Agent::start("objects.yaml", "", |folder| {
            let text = format!("{NODE}{SERVICE}{ON_NODE}");
            std::fs::write(folder.join("objects.yaml"), text).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let peer = netlink.link_index("peer").unwrap();
            let address = "172.19.0.2/16".parse().unwrap();
            netlink.add_address(peer, address).unwrap();
            let groups = Route {
                oif: Some(peer),
                ..Route::new("224.0.0.0/4".parse().unwrap())
            };
            netlink.add_route(&groups).unwrap();
        });
        let answers_from = |port: u16, client: &str| {
            let server = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            server.connect((client, 1000)).unwrap();
            server.local_addr().unwrap().ip().to_string()
        };
        for port in [8080, 8081] {
            assert_eq!(answers_from(port, "172.18.0.9"), "172.18.0.2");
            assert_eq!(answers_from(port, "172.19.0.9"), "172.19.0.2");
            assert_eq!(answers_from(port, "224.0.0.251"), "172.19.0.2");
        }
        // Another way to it, while the agent runs.
        let mut netlink = Netlink::open().unwrap();
        let peer = netlink.link_index("peer").unwrap();
        let before = agent.status().generation;
        let other = Route {
            oif: Some(peer),
            ..Route::new("172.18.7.0/24".parse().unwrap())
        };
        netlink.add_route(&other).unwrap();
        agent.wait_until(|status| status.generation > before);
        wait_for(|| answers_from(8080, "172.18.7.9") == "172.19.0.2");
        assert_eq!(answers_from(8080, "172.18.0.9"), "172.18.0.2");
    });
}

/// The route by which the node's own packets to `address` get here.
fn route_to(address: &str) -> Option<Route> {
    const TABLE_VIRTUAL: u32 = 8305;
    let mut netlink = Netlink::open().unwrap();
    let routes = netlink.routes_in(TABLE_VIRTUAL, Family::V4).unwrap();
    let destination = address.parse::<IpAddr>().unwrap().into();
    routes
        .into_iter()
        .find(|route| route.destination == destination)
}

#[test]
fn root_routes_share_a_nexthop_unless_its_number_is_taken() {
    const ID: u32 = 8305;
    let route = |is_taken| {
        in_fresh_namespace(|| {
            let mut netlink = Netlink::open().unwrap();
            let oif = netlink.link_index("lo").unwrap();
            netlink.set_up(oif, true).unwrap();
            let (id, family, protocol) = (ID, Family::V4, 3);
            let of_others = Nexthop {
                id,
                family,
                oif,
                protocol,
            };
            if is_taken {
                netlink.add_nexthop(&of_others).unwrap();
            }
            let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
            let device = netlink.link_index(DEVICES[2]).unwrap();
            let route = route_to("10.96.0.10").unwrap();
            drop(agent);
            assert_eq!(route_to("10.96.0.10"), None);
            let added = netlink.add_nexthop(&of_others);
            assert_eq!(added.is_err_and(|error| error.is_exists()), is_taken);
            (route.nexthop, route.oif == Some(device))
        })
    };
    assert_eq!(route(false).0, Some(ID));
    assert_eq!(route(true), (None, true));
}

/// Whether it is told to end before it listens to signals, while it reads, while it makes its devices, or later.
#[test]
fn root_an_agent_that_ends_while_it_starts_leaves_nothing() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let folder =
            std::env::temp_dir().join(format!("penstock-agent-{}-ends", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["objects.yaml", "kube-proxy.yaml"] {
            std::fs::copy(agent.folder.join(name), folder.join(name)).unwrap();
        }
        drop(agent);
        let network = || {
            let mut netlink = Netlink::open().unwrap();
            let names = netlink.links().unwrap().into_iter().map(|link| link.name);
            (
                netlink.rules(Family::V4).unwrap(),
                names.collect::<Vec<_>>(),
            )
        };
        let before = network();
        for milliseconds in [1, 4, 8, 12, 16, 20, 25, 30, 40, 60] {
            let mut command = command(&folder, "objects.yaml");
            let mut child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            terminate(&mut child);
            assert_eq!(network(), before, "after {milliseconds} ms");
        }
        std::fs::remove_dir_all(folder).unwrap();
    });
}

/// Who started it from a terminal that goes has it end, unless by `nohup`.
#[test]
fn root_a_hangup_ends_it_unless_that_is_ignored() {
    in_fresh_namespace(|| {
        let mut agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let hang_up = |child: &Child| {
            let id = Pid::from_child(child);
            rustix::process::kill_process(id, Signal::HUP).unwrap();
        };
        hang_up(&agent.child);
        assert!(agent.child.wait().unwrap().success());
        assert_eq!(route_to("10.96.0.10"), None);

        let of = command(&agent.folder, "objects.yaml");
        let mut ignoring = Command::new("sh");
        ignoring.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
        ignoring.arg(of.get_program()).args(of.get_args());
        ignoring.stdout(Stdio::null()).stderr(Stdio::null());
        agent.child = ignoring.spawn().unwrap();
        wait_for(|| ask(&agent.folder.join("socket")).is_ok());
        hang_up(&agent.child);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(agent.status().services, 1);
    });
}

#[test]
fn root_a_missing_privilege_is_told_of() {
    in_fresh_namespace(|| {
        let mut agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        terminate(&mut agent.child);
        let allowed = command(&agent.folder, "objects.yaml");
        let mut without = Command::new("setpriv");
        without.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
        without.arg(allowed.get_program()).args(allowed.get_args());
        let output = without.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{words}");
        assert!(words.contains("not permitted"), "{words}");
    });
}

#[test]
fn root_a_second_agent_leaves_the_first_alone() {
    in_fresh_namespace(|| {
        let agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        let mut netlink = Netlink::open().unwrap();
        let rules = netlink.rules(Family::V4).unwrap();
        // Its health servers listen on ports of their own.
        let config = agent.folder.join("kube-proxy.yaml");
        let text = std::fs::read_to_string(&config).unwrap();
        let ports = "healthzBindAddress: 127.0.0.1:10300\nmetricsBindAddress: 127.0.0.1:10301\n";
        std::fs::write(config, text + ports).unwrap();
        let output = command(&agent.folder, "objects.yaml").output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(
            words.contains("another agent runs in this network namespace"),
            "{words}"
        );
        assert_eq!(netlink.rules(Family::V4).unwrap(), rules);
        assert_eq!(agent.status().services, 1);
        // Nor does one of another namespace take its socket.
        let output = in_fresh_namespace(|| {
            links();
            command(&agent.folder, "objects.yaml").output().unwrap()
        });
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("another agent listens on"), "{words}");
        assert_eq!(agent.status().services, 1);
        let former = format!("/run/penstock/sysctls/{}", cookie().unwrap());
        assert!(Path::new(&former).exists(), "of the first one");
    });
}

/// Whatever it was before the first of them.
#[test]
fn root_an_agent_puts_back_what_one_before_it_changed() {
    in_fresh_namespace(|| {
        write_sysctl("ipv4/ip_forward", "0").unwrap();
        let mut agent = Agent::with_file(&format!("{NODE}{SERVICE}"), "");
        agent.child.kill().unwrap();
        agent.child.wait().unwrap();
        assert_eq!(read_sysctl("ipv4/ip_forward").unwrap(), "1");
        let mut command = command(&agent.folder, "objects.yaml");
        let mut second = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = second.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        terminate(&mut second);
        assert_eq!(read_sysctl("ipv4/ip_forward").unwrap(), "0");
    });
}
