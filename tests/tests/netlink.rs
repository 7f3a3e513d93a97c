//! rtnetlink, and the routing that the agent builds with it, against the real kernel, in a fresh network namespace per test.
//! Needs root.

#![expect(clippy::unwrap_used, reason = "a test may")]

use control::agent::steering::{DEVICES, PROTOCOL, Plan, Steering};
use control::model::{Family, Transport};
use control::netlink::{
    Monitor, Netlink, Route, RouteKind, Rule, RuleAction, Scope, Sockets, TABLE_LOCAL, TABLE_MAIN,
    VethEnd, read_sysctl, write_sysctl,
};
use control::node_network::Sources;
use std::fs::File;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

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

fn veth(netlink: &mut Netlink, name: &str, peer: &str) -> u32 {
    let end = |name| VethEnd {
        name,
        namespace: None,
        hardware_address: None,
    };
    netlink.add_veth(end(name), end(peer)).unwrap();
    for name in [name, peer] {
        let index = netlink.link_index(name).unwrap();
        netlink.set_up(index, true).unwrap();
    }
    netlink.link_index(name).unwrap()
}

#[test]
fn root_links_are_made_changed_moved_and_deleted() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let hardware_address = [0x02, 0, 0, 0, 0, 7];
        let end = VethEnd {
            name: "a",
            namespace: None,
            hardware_address: Some(hardware_address),
        };
        netlink.add_veth(end, VethEnd { name: "b", ..end }).unwrap();
        netlink.add_bridge("br0", None).unwrap();
        let (a, bridge) = (
            netlink.link_index("a").unwrap(),
            netlink.link_index("br0").unwrap(),
        );
        netlink.set_mtu(a, 1400).unwrap();
        netlink.set_controller(a, bridge).unwrap();
        netlink.isolate_port(a).unwrap();
        netlink.set_no_queue(a).unwrap();
        assert!(netlink.set_no_queue(a).unwrap_err().is_exists());
        netlink.set_up(a, true).unwrap();

        let links = netlink.links().unwrap();
        let link = links.iter().find(|link| link.name == "a").unwrap();
        assert_eq!(
            (link.mtu, link.up, link.controller),
            (1400, true, Some(bridge))
        );
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.hardware_address, Some(hardware_address));
        assert!(
            links
                .iter()
                .any(|link| link.loopback && link.name == "lo" && !link.up)
        );
        let isolated = std::fs::read_to_string("/sys/class/net/a/brport/isolated");
        // /sys shows the namespace of whoever mounted it, so it may not show ours.
        assert!(isolated.is_err() || isolated.unwrap().trim() == "1");

        let b = netlink.link_index("b").unwrap();
        netlink.rename_link(b, "renamed").unwrap();
        let other = in_fresh_namespace(|| File::open("/proc/thread-self/ns/net").unwrap());
        netlink.move_link(b, other.as_fd()).unwrap();
        let error = netlink.link_index("renamed").unwrap_err();
        assert!(error.is_missing());
        assert_eq!(error.to_string(), "find link renamed: No such device");
        netlink.delete_link(a).unwrap();
        assert!(netlink.link_index("a").is_err());
    });
}

#[test]
fn root_addresses_are_usable_at_once() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let index = veth(&mut netlink, "a", "b");
        for address in ["10.0.0.1/24", "10.0.0.2/24", "fd00::1/64"] {
            netlink
                .add_address(index, address.parse().unwrap())
                .unwrap();
        }
        let again = netlink
            .add_address(index, "10.0.0.1/24".parse().unwrap())
            .unwrap_err();
        assert!(again.is_exists());

        let addresses = netlink.addresses().unwrap();
        let find = |text: &str| {
            let address = text.parse().unwrap();
            *addresses
                .iter()
                .find(|found| found.address == address)
                .unwrap()
        };
        assert!(!find("10.0.0.1/24").secondary && find("10.0.0.2/24").secondary);
        let six = find("fd00::1/64");
        assert_eq!(
            (six.index, six.scope, six.tentative),
            (index, Scope::Universe, false)
        );
        netlink
            .delete_address(index, "10.0.0.1/24".parse().unwrap())
            .unwrap();
    });
}

#[test]
fn root_routes_come_back_as_they_were_given() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let link = veth(&mut netlink, "a", "b");
        let oif = Some(link);
        netlink
            .add_address(link, "10.0.0.1/24".parse().unwrap())
            .unwrap();
        netlink
            .add_address(link, "fd00::1/64".parse().unwrap())
            .unwrap();
        let new = |text: &str| Route {
            oif,
            ..Route::new(text.parse().unwrap())
        };
        let routes = [
            Route {
                gateway: Some("192.0.2.1".parse().unwrap()),
                onlink: true,
                table: 1000,
                mtu: Some(1400),
                ..new("198.51.100.0/24")
            },
            Route {
                preferred_source: Some("10.0.0.1".parse().unwrap()),
                metric: Some(7),
                protocol: 80,
                ..new("203.0.113.1/32")
            },
            Route {
                kind: RouteKind::Local,
                table: TABLE_LOCAL,
                ..new("203.0.113.2/32")
            },
            Route {
                gateway: Some("fd00::2".parse().unwrap()),
                metric: Some(5),
                ..new("::/0")
            },
        ];
        netlink.add_routes(&routes).unwrap();
        for route in &routes {
            let all = netlink.routes(route.family()).unwrap();
            let found = all
                .iter()
                .find(|found| (found.destination, found.table) == (route.destination, route.table));
            let expected = Route {
                scope: found.unwrap().scope,
                ..*route
            };
            assert_eq!(*found.unwrap(), expected);
        }

        let tables = [(1000, 1), (TABLE_LOCAL, 2), (TABLE_MAIN, 2), (4711, 0)];
        for (table, at_least) in tables {
            let of_table = netlink.routes_in(table, Family::V4).unwrap();
            assert!(of_table.len() >= at_least, "{table}: {of_table:?}");
            assert!(of_table.iter().all(|route| route.table == table));
        }

        let error = netlink.add_route(&routes[0]).unwrap_err();
        assert!(error.is_exists());
        let text = error.to_string();
        assert!(
            text.starts_with("add route 198.51.100.0/24 via 192.0.2.1 dev"),
            "{text}"
        );
        assert!(text.ends_with("table 1000: File exists"), "{text}");
        netlink.replace_routes(&routes).unwrap();
        netlink.delete_routes(&routes).unwrap();
        netlink.delete_routes(&routes).unwrap();
        let left = netlink.routes(Family::V4).unwrap();
        assert!(left.iter().all(|route| route.table != 1000));
    });
}

#[test]
fn root_ten_thousand_routes_go_in_and_out_in_batches() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let oif = Some(veth(&mut netlink, "a", "b"));
        let routes: Vec<Route> = (0..10_000u32)
            .map(|number| IpAddr::from((0x0a00_0000 + number).to_be_bytes()))
            .map(|address| Route {
                oif,
                table: 1000,
                ..Route::new(address.into())
            })
            .collect();
        let started = std::time::Instant::now();
        netlink.add_routes(&routes).unwrap();
        eprintln!("10,000 routes added in {:?}", started.elapsed());
        let all = netlink.routes(Family::V4).unwrap();
        assert_eq!(
            all.iter().filter(|route| route.table == 1000).count(),
            routes.len()
        );
        // Every one is refused the second time: refusals must not overflow the receive buffer.
        assert!(netlink.add_routes(&routes).unwrap_err().is_exists());
        netlink.delete_routes(&routes).unwrap();
        let all = netlink.routes(Family::V4).unwrap();
        assert!(all.iter().all(|route| route.table != 1000));
    });
}

#[test]
fn root_rules_come_back_as_they_were_given() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let table = |family| Rule {
            iif: Some("eth0".into()),
            ip_protocol: Some(17),
            destination_ports: Some(30000..=32767),
            protocol: 80,
            ..Rule::new(family, 50, RuleAction::Table(1000))
        };
        let rules = [
            table(Family::V4),
            table(Family::V6),
            Rule {
                source: Some("10.0.0.0/8".parse().unwrap()),
                destination: Some("10.96.0.0/12".parse().unwrap()),
                source_ports: Some(53..=53),
                ..Rule::new(Family::V4, 60, RuleAction::Goto(70))
            },
            Rule::new(Family::V4, 70, RuleAction::Table(TABLE_LOCAL)),
        ];
        netlink.add_rules(&rules).unwrap();
        for rule in &rules {
            assert!(netlink.rules(rule.family).unwrap().contains(rule), "{rule}");
        }
        let error = netlink.add_rule(&rules[0]).unwrap_err();
        let text = "add rule 50: iif eth0 ipproto 17 dport 30000-32767 lookup 1000: File exists";
        assert_eq!(error.to_string(), text);
        netlink.delete_rule(&rules[0]).unwrap();
        assert!(!netlink.rules(Family::V4).unwrap().contains(&rules[0]));
        assert!(netlink.delete_rule(&rules[0]).unwrap_err().is_missing());
        // As an agent does before it takes the packets of the node's own addresses.
        let local = Rule {
            protocol: 2,
            ..Rule::new(Family::V4, 0, RuleAction::Table(TABLE_LOCAL))
        };
        assert!(netlink.rules(Family::V4).unwrap().contains(&local));
        netlink.delete_rule(&local).unwrap();
    });
}

#[test]
fn root_monitor_tells_what_changed() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let index = veth(&mut netlink, "a", "b");
        let mut monitor = Monitor::open().unwrap();
        // What the kernel still has to say of the new links: their state and link-local addresses come late.
        while monitor.wait(Duration::from_millis(200)).unwrap().any() {}
        netlink.set_mtu(index, 1300).unwrap();
        let changes = monitor.wait(Duration::from_secs(5)).unwrap();
        assert!(changes.links && !changes.addresses);
        netlink
            .add_address(index, "10.0.0.1/24".parse().unwrap())
            .unwrap();
        let changes = monitor.wait(Duration::from_secs(5)).unwrap();
        assert!(changes.addresses && changes.routes);
    });
}

#[test]
fn root_sysctls_are_those_of_the_namespace() {
    let forwards = read_sysctl("ipv4/ip_forward").unwrap();
    in_fresh_namespace(|| {
        let other = if forwards == "1" { "0" } else { "1" };
        write_sysctl("ipv4/ip_forward", other).unwrap();
        assert_eq!(read_sysctl("ipv4/ip_forward").unwrap(), other);
        let error = write_sysctl("ipv4/conf/none0/rp_filter", "0").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/proc/sys/net/ipv4/conf/none0/rp_filter")
        );
    });
    assert_eq!(read_sysctl("ipv4/ip_forward").unwrap(), forwards);
}

#[test]
fn root_sockets_that_take_packets_are_listed() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.link_index("lo").unwrap();
        netlink.set_up(loopback, true).unwrap();
        let mut sockets = Sockets::open().unwrap();
        assert_eq!(sockets.listening_tcp().unwrap(), [0; 0]);
        assert_eq!(sockets.bound_udp().unwrap(), [0; 0]);
        // Of a kernel without SCTP there is nothing to list either.
        assert_eq!(sockets.listening_sctp().unwrap(), [0; 0]);

        let listeners = ["127.0.0.1:0", "[::]:0"].map(|at| TcpListener::bind(at).unwrap());
        let own = listeners.each_ref().map(|at| at.local_addr().unwrap());
        let connected = TcpStream::connect(own[0]).unwrap();
        let mut ports = own.map(|at| at.port());
        ports.sort_unstable();
        let mut listed = sockets.listening_tcp().unwrap();
        listed.sort_unstable();
        assert_eq!(listed, ports);
        drop((connected, listeners));

        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asking = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = bound.local_addr().unwrap().port();
        asking.connect(("127.0.0.1", port)).unwrap();
        assert_eq!(sockets.bound_udp().unwrap(), [port]);
    });
}

#[test]
fn root_a_route_of_several_ways_has_the_first_one() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let first = veth(&mut netlink, "one", "one-peer");
        veth(&mut netlink, "two", "two-peer");
        ip("addr add 10.1.0.2/24 dev one");
        ip("addr add 10.2.0.2/24 dev two");
        ip("route add 10.9.0.0/16 nexthop via 10.1.0.1 nexthop via 10.2.0.1");
        let routes = netlink.routes(Family::V4).unwrap();
        let destination = "10.9.0.0/16".parse().unwrap();
        let mut of_both = routes
            .iter()
            .filter(|route| route.destination == destination);
        let found = of_both.next().map(|route| (route.oif, route.gateway));
        assert_eq!(found, Some((Some(first), Some([10, 1, 0, 1].into()))));
        assert!(of_both.next().is_none());
    });
}

/// A plan over links in the place of the devices, which has nothing to lead here yet.
fn plan(netlink: &mut Netlink) -> Plan {
    veth(netlink, "pen-pod", "pen-out");
    let node_device = veth(netlink, "pen-node", "peer");
    let loopback = netlink.link_index("lo").unwrap();
    netlink.set_up(loopback, true).unwrap();
    let own: [IpAddr; 2] = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
    for address in own {
        netlink.add_address(node_device, address.into()).unwrap();
    }
    Plan {
        devices: DEVICES.map(|name| netlink.link_index(name).unwrap()),
        node_addresses: own.into(),
        sources: Sources::everywhere(own),
        ..Plan::default()
    }
}

/// Rules and routes that an agent made, in words; rules of one place may stand in any order.
fn led_here(netlink: &mut Netlink) -> Vec<String> {
    let mut words = Vec::new();
    for family in [Family::V4, Family::V6] {
        let rules = netlink.rules(family).unwrap();
        let own = rules.iter().filter(|rule| rule.protocol == PROTOCOL);
        words.extend(own.map(ToString::to_string));
        let routes = netlink.routes(family).unwrap();
        let own = routes.iter().filter(|route| route.protocol == PROTOCOL);
        words.extend(own.map(ToString::to_string));
    }
    words.sort();
    words
}

#[test]
fn root_nothing_of_a_refused_plan_outlives_the_next_one() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let plan = plan(&mut netlink);
        let of = |addresses: &[&str], uplink: &str, last_port| Plan {
            uplinks: vec![uplink.to_owned()],
            virtual_addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            node_ports: vec![(Transport::Tcp, 30_000..=last_port)],
            ..plan.clone()
        };
        let first = of(&["10.96.0.1", "10.96.0.2"], "eth0", 30_010);
        let mut refused = of(&["10.96.0.2", "10.96.0.3"], "eth1", 32_000);
        let unknown = ["10.0.0.1", "fd00::9"].map(|ip| ip.parse().unwrap());
        refused.sources = Sources::everywhere(unknown);

        let mut steering = Steering::start(Netlink::open().unwrap(), plan.devices[2]).unwrap();
        steering.follow(first.clone()).unwrap();
        let before = led_here(&mut netlink);
        for _ in 0..2 {
            // Of IPv4 all is done by then.
            let error = steering.follow(refused.clone()).unwrap_err();
            assert!(error.to_string().starts_with("replace route"), "{error}");
            assert_ne!(led_here(&mut netlink), before);
        }
        let either: Vec<String> = steering
            .plan()
            .virtual_addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        steering.follow(first).unwrap();
        assert_eq!(led_here(&mut netlink), before);
        assert_eq!(either, ["10.96.0.1", "10.96.0.2", "10.96.0.3"]);
    });
}

/// A device that goes down loses its routes, and whoever tidies up may take rules for his.
#[test]
fn root_what_others_remove_is_noticed_and_put_back() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let plan = plan(&mut netlink);
        let node_device = plan.devices[2];
        let mut steering = Steering::start(Netlink::open().unwrap(), node_device).unwrap();
        steering.follow(plan.clone()).unwrap();
        assert!(steering.is_whole().unwrap());
        let before = led_here(&mut netlink);
        for removal in [
            "-4 rule del pref 700",
            "-6 rule del pref 1000",
            "-4 route flush table 8303",
            "-4 rule add pref 0 lookup local",
            "link set pen-out down",
        ] {
            ip(removal);
            if removal.starts_with("link") {
                ip("link set pen-out up");
            }
            assert!(!steering.is_whole().unwrap(), "{removal}");
            steering.follow(plan.clone()).unwrap();
            assert!(steering.is_whole().unwrap(), "{removal}");
            let mut now = led_here(&mut netlink);
            let mut before = before.clone();
            // Rules of one priority may stand in another order.
            now.sort();
            before.sort();
            assert_eq!(now, before, "{removal}");
        }
    });
}

/// What is for the node itself does not go by the devices, whatever rule takes it.
#[test]
fn root_broadcasts_and_loopback_are_the_nodes_own() {
    in_fresh_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let mut plan = plan(&mut netlink);
        plan.broadcasts = [[10, 0, 0, 255].into(), [255; 4].into()].into();
        plan.host_ports = [(Transport::Udp, 9090)].into();
        let node_device = plan.devices[2];
        let mut steering = Steering::start(Netlink::open().unwrap(), node_device).unwrap();
        steering.follow(plan).unwrap();
        let way = |to: &str| {
            let arguments = format!("route get {to} ipproto udp sport 9090");
            let output = Command::new("ip")
                .args(arguments.split(' '))
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let by_the_device = |to: &str| way(to).contains("table 8306");
        assert!(by_the_device("192.0.2.9"), "{}", way("192.0.2.9"));
        for own in [
            "127.0.0.1",
            "::1",
            "10.0.0.255",
            "255.255.255.255",
            "224.0.0.251",
            "ff05::fb",
        ] {
            assert!(!by_the_device(own), "{}", way(own));
        }
        steering.stop().unwrap();
    });
}

/// Rules of others that lead some packets to the local table.
const NARROW: [&str; 9] = [
    "iif other",
    "oif other",
    "fwmark 1",
    "tos 0x10",
    "uidrange 1-2",
    "ipproto tcp dport 1",
    "not iif other",
    "suppress_prefixlength 0",
    "to ADDRESS",
];

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

#[test]
fn root_who_has_a_rule_for_some_packets_has_none_for_the_local_table() {
    for narrow in NARROW {
        in_fresh_namespace(|| {
            let mut netlink = Netlink::open().unwrap();
            let plan = plan(&mut netlink);
            let all = |netlink: &mut Netlink| {
                let mut of = |family| netlink.rules(family).unwrap();
                [of(Family::V4), of(Family::V6)]
            };
            // One before that of the local table, one behind it.
            for (family, address) in [("-4", "192.0.2.1"), ("-6", "2001:db8::1")] {
                let narrow = narrow.replace("ADDRESS", address);
                ip(&format!("{family} rule add pref 50 {narrow} lookup local"));
                ip(&format!("{family} rule add pref 0 {narrow} lookup local"));
            }
            let before = all(&mut netlink);
            let node_device = plan.devices[2];
            let mut steering = Steering::start(Netlink::open().unwrap(), node_device).unwrap();
            steering.follow(plan).unwrap();
            for (now, before) in all(&mut netlink).iter().zip(&before) {
                let gone: Vec<_> = before.iter().filter(|rule| !now.contains(rule)).collect();
                assert_eq!(gone.len(), 1, "{narrow}: {gone:?}");
                assert_eq!(gone[0].to_string(), "0: lookup 255");
            }
            steering.stop().unwrap();
            for (mut now, mut before) in all(&mut netlink).into_iter().zip(before) {
                // Ours comes behind theirs in the same place.
                now.sort_by_key(ToString::to_string);
                before.sort_by_key(ToString::to_string);
                assert_eq!(now, before, "{narrow}");
            }
        });
    }
}
