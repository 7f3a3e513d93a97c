//! Real programs in one lab on our dataplane and on the kernel under kube-proxy's rules: the same assertions, on what
//! the programs report and on what the pods saw.

use super::Lab;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use tungstenite::Message;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 172.18.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.40, ports: [{name: http, port: 80, nodePort: 30040}, {name: stream, port: 9000}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.40}]}}
---
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: shop}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.41, ports: [{name: http, port: 80, nodePort: 30041}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.41}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.40], nodeName: node-a, targetRef: {kind: Pod, namespace: shop, name: api-1}}
- {addresses: [10.244.2.40], nodeName: node-b, targetRef: {kind: Pod, namespace: shop, name: api-2}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-2, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: stream, port: 9000}]
endpoints:
- {addresses: [10.244.2.50], nodeName: node-b, targetRef: {kind: Pod, namespace: shop, name: stream-1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-1, namespace: shop, labels: {kubernetes.io/service-name: kept}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.40], nodeName: node-a, targetRef: {kind: Pod, namespace: shop, name: api-1}}
"#;

const CLIENT: &str = "198.51.100.10";

/// Pod and source address of twenty requests, as the pods tell them.
fn seen(lab: &Lab, host: &str, url: &str) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let curl = format!("for i in $(seq 20); do curl -sf -m 5 {url} || exit 1; done");
    let answers = lab.sh(host, &curl);
    let facts = || {
        answers
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
    };
    assert_eq!(facts().count(), 20, "{answers}");
    let pods = facts().map(|facts| facts["pod"].as_str().unwrap().to_owned());
    let peer = |facts: Value| facts["peer"]["address"].as_str().unwrap().parse().unwrap();
    (pods.collect(), facts().map(peer).collect())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `curl` by every kind of address: which pods answer, and whose address they see.
fn curl(lab: &Lab) {
    let both = BTreeSet::from(["api-1".to_owned(), "api-2".to_owned()]);
    for url in ["http://203.0.113.40/", "http://172.18.0.2:30040/"] {
        let (pods, sources) = seen(lab, "client", url);
        assert_eq!(pods, both, "{url}");
        assert!(!sources.contains(&address(CLIENT)), "{url}: {sources:?}");
    }
    let (pods, sources) = seen(lab, "client", "http://203.0.113.41/");
    assert_eq!(pods, BTreeSet::from(["api-1".to_owned()]));
    assert_eq!(sources, BTreeSet::from([address(CLIENT)]));
    let (pods, sources) = seen(lab, "pod/shop/stream-1", "http://10.96.0.40/");
    assert_eq!(
        (pods, sources),
        (both.clone(), BTreeSet::from([address("10.244.2.50")]))
    );
    // To itself by way of its Service, a pod cannot have its own source.
    let (pods, sources) = seen(lab, "pod/shop/api-1", "http://10.96.0.41/");
    assert_eq!(pods, BTreeSet::from(["api-1".to_owned()]));
    assert!(!sources.contains(&address("10.244.1.40")), "{sources:?}");
    let (pods, sources) = seen(lab, "node/node-b", "http://10.96.0.40/");
    assert_eq!(pods, both);
    assert!(
        sources.iter().all(|source| !source.is_loopback()),
        "{sources:?}"
    );
}

/// Requests from many connections at once, kept and not: none fails.
fn wrk(lab: &Lab) {
    for header in ["Connection: keep-alive", "Connection: close"] {
        let report = lab.sh(
            "client",
            &format!("wrk -t1 -c8 -d1s -H '{header}' http://203.0.113.40/"),
        );
        assert!(
            !report.contains("Socket errors") && !report.contains("Non-2xx"),
            "{report}"
        );
        let requests = report
            .lines()
            .find(|line| line.contains("requests in"))
            .unwrap();
        let count: u64 = requests.split_whitespace().next().unwrap().parse().unwrap();
        assert!(count > 100, "{report}");
    }
}

/// A WebSocket with messages of many sizes, both ways; the pod sees a node's address.
fn websocket(name: &str, lab: &Lab) {
    // The pod's own server has the port.
    let kill = format!("for pid in $(ip netns pids {name}.shop-stream-1); do kill $pid; done");
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let bind = || {
        for _ in 0..100 {
            if let Ok(listener) = TcpListener::bind("10.244.2.50:9000") {
                return Ok(listener);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        TcpListener::bind("10.244.2.50:9000")
    };
    let listener = lab.namespace("stream-1").run(bind).unwrap();
    let server = std::thread::spawn(move || -> (SocketAddr, usize) {
        let (stream, peer) = listener.accept().unwrap();
        let mut socket = tungstenite::accept(stream).unwrap();
        let mut count = 0;
        while let Ok(message) = socket.read() {
            if message.is_binary() {
                socket.send(message).unwrap();
                count += 1;
            }
        }
        (peer, count)
    });
    let connect = || TcpStream::connect(("203.0.113.40", 9000));
    let stream: io::Result<TcpStream> = lab.namespace(".client").run(connect);
    let (mut socket, _) = tungstenite::client("ws://203.0.113.40:9000/", stream.unwrap()).unwrap();
    const MESSAGES: usize = 200;
    for number in 0..MESSAGES {
        let message = Message::binary(vec![number as u8; number * number]);
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message);
    }
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    let (peer, count) = server.join().unwrap();
    assert_eq!(count, MESSAGES);
    assert_eq!(
        peer.ip(),
        address("172.18.0.2"),
        "masqueraded by the node that it came in by"
    );
}

fn programs(name: &str, dataplane: &str) {
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("snapshot.yaml"), OBJECTS).unwrap();
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n";
    std::fs::write(folder.join("kube-proxy.yaml"), config).unwrap();
    let (of_test, _) = Lab::up(name, folder.to_str().unwrap(), &["--dataplane", dataplane]);
    std::fs::remove_dir_all(folder).unwrap();
    curl(&of_test);
    wrk(&of_test);
    websocket(name, &of_test);
}

#[test]
fn root_programs_on_our_dataplane() {
    programs("t-programs", "penstock");
}

#[test]
fn root_programs_on_the_kernel() {
    programs("t-k-programs", "iptables");
}
