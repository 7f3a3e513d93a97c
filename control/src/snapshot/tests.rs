use super::*;
use serde_json::{Value, json};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

#[test]
fn reads_every_fixture() {
    for (name, nodes) in [
        ("aks-app-routing", 3),
        ("aks-kubenet-deploy", 2),
        ("aks-kubenet-pod", 2),
        ("dual-stack", 2),
        ("iks-wordpress", 3),
        ("policy-matrix", 3),
    ] {
        let path = format!("{FIXTURES}/{name}/snapshot.yaml");
        let snapshot = Snapshot::read(Path::new(&path)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let count = |kind: &str| {
            text.lines()
                .filter(|line| *line == format!("kind: {kind}"))
                .count()
        };
        assert_eq!(snapshot.services.len(), count("Service"), "{name}");
        assert_eq!(
            snapshot.endpoint_slices.len(),
            count("EndpointSlice"),
            "{name}"
        );
        assert_eq!(snapshot.nodes.len(), nodes, "{name}");
    }
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {name: http, port: 80}
";

const TWO: &str = "# comment\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.10\n  ports:\n  - port: 80\n---\n\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\n";

#[test]
fn objects_know_where_they_were_read() {
    let snapshot = Snapshot::parse("two.yaml", TWO).unwrap();
    assert_eq!(
        snapshot.services[0].metadata.location.to_string(),
        "two.yaml:3"
    );
    assert_eq!(
        snapshot.nodes[0].metadata.location.to_string(),
        "two.yaml:13 (document 2)"
    );
    assert_eq!(snapshot.services[0].metadata.namespace, "default");
}

#[test]
fn lists_and_json_are_the_same_as_documents() {
    let documents = Snapshot::parse("x", TWO).unwrap();
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n  spec:\n    clusterIP: 10.96.0.10\n    ports: [{port: 80}]\n- apiVersion: v1\n  kind: Node\n  metadata: {name: node-a}\n";
    let json = r#"{"apiVersion":"v1","kind":"List","items":[
      {"apiVersion":"v1","kind":"Service","metadata":{"name":"web","creationTimestamp":null},"spec":{"clusterIP":"10.96.0.10","ports":[{"port":80}]}},
      {"apiVersion":"v1","kind":"Node","metadata":{"name":"node-a"}}]}"#;
    let raw = r#"{"apiVersion":"v1","kind":"ServiceList","items":[
      {"metadata":{"name":"web"},"spec":{"clusterIP":"10.96.0.10","ports":[{"port":80}]}}]}"#;
    for (text, line) in [(list, 10), (json, 3)] {
        let snapshot = Snapshot::parse("x", text).unwrap();
        assert_eq!(snapshot.services[0].spec, documents.services[0].spec);
        assert_eq!(snapshot.nodes[0].metadata.location.line, line);
    }
    assert_eq!(
        Snapshot::parse("x", raw).unwrap().services[0].spec,
        documents.services[0].spec
    );
}

/// A list too large to be read whole, as kubectl prints it, with dashes in `column`.
fn large_list(column: usize, item: impl Fn(usize) -> String) -> String {
    let indented = |number| {
        let text = item(number);
        let lines = text.trim().lines().enumerate();
        lines
            .map(|(line, text)| {
                let lead = if line == 0 { "- " } else { "  " };
                format!("{:column$}{lead}{text}\n", "")
            })
            .collect::<String>()
    };
    let items: String = (0..600).map(indented).collect();
    format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
}

fn numbered(number: usize) -> String {
    SERVICE
        .replace("web", &format!("web-{number}"))
        .replace("0.10", &format!("{}.{}", number / 250, number % 250 + 1))
}

/// So many that they are put together on two processors.
#[test]
fn many_objects_are_sorted_and_one_that_is_twice_is_found() {
    let read = |numbers: &[usize]| {
        let documents: Vec<String> = numbers.iter().map(|number| numbered(*number)).collect();
        Snapshot::parse("many.yaml", &documents.join("\n---\n"))
    };
    let mut numbers: Vec<usize> = (0..MANY_PARTS * document::TURN + 1).rev().collect();
    let snapshot = read(&numbers).unwrap();
    assert_eq!(snapshot.services.len(), numbers.len());
    let names = snapshot
        .services
        .iter()
        .map(|service| &service.metadata.name);
    assert!(names.is_sorted());
    numbers.push(7);
    let error = read(&numbers).unwrap_err().to_string();
    assert!(
        error.contains("Service demo/web-7") && error.contains("a second time"),
        "{error}"
    );
}

#[test]
fn a_large_list_is_the_same_as_its_documents() {
    let documents: Vec<String> = (0..600).map(numbered).collect();
    let whole = Snapshot::parse("many.yaml", &documents.join("\n---\n")).unwrap();
    assert_eq!(whole.services.len(), 600);
    for column in [0, 2] {
        let list = large_list(column, numbered);
        let cut = Snapshot::parse("list.yaml", &list).unwrap();
        assert_eq!(cut.services, whole.services);
        for service in &cut.services {
            let name = format!("name: {},", service.metadata.name);
            let line = list.lines().position(|line| line.contains(&name)).unwrap();
            // `metadata` is the third line of its object.
            assert_eq!(service.metadata.location.line, line + 1 - 2, "{name}");
        }
    }
}

#[test]
fn a_large_list_that_cannot_be_cut_is_read_whole() {
    let anchored = large_list(0, |number| match number {
        0 => numbered(0).replace("{name: http", "&port {name: http"),
        _ => numbered(number).replace("{name: http, port: 80}", "*port"),
    });
    let snapshot = Snapshot::parse("list.yaml", &anchored).unwrap();
    assert!(
        snapshot
            .services
            .iter()
            .all(|service| service.spec.ports[0].port == 80)
    );
    assert_eq!(snapshot.services.len(), 600);

    let broken = large_list(0, |number| match number {
        300 => numbered(300).replace("clusterIP: ", "clusterIP: 'not closed "),
        _ => numbered(number),
    });
    let error = Snapshot::parse("list.yaml", &broken)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not readable as YAML"), "{error}");

    let wrong = large_list(0, |number| match number {
        300 => numbered(300).replace("clusterIP: ", "clusterIP: x"),
        _ => numbered(number),
    });
    let line = wrong.lines().position(|line| line.contains(": x")).unwrap() + 1;
    let error = Snapshot::parse("list.yaml", &wrong)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!(
            "list.yaml:{line}: Service demo/web-300: spec.clusterIP"
        )),
        "{error}"
    );
}

#[test]
fn endpoints_serve_where_there_is_no_slice() {
    let endpoints = "
apiVersion: v1
kind: Endpoints
metadata: {name: web, namespace: demo}
subsets:
- addresses: [{ip: 10.1.0.1, nodeName: node-a}, {ip: 'fd00::1'}]
  notReadyAddresses: [{ip: 10.1.0.2}]
  ports: [{name: http, port: 8080}]
";
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: demo, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: []
ports: []
";
    let alone = Snapshot::parse("x", &format!("{SERVICE}---{endpoints}")).unwrap();
    let of_v4 = alone
        .endpoint_slices
        .iter()
        .find(|slice| slice.address_type == AddressType::IPv4);
    let ready: Vec<_> = of_v4
        .unwrap()
        .endpoints
        .iter()
        .map(|endpoint| endpoint.conditions.ready)
        .collect();
    assert_eq!(ready, [Some(true), Some(false)]);
    assert_eq!(alone.endpoint_slices.len(), 2);
    let both = Snapshot::parse("x", &format!("{SERVICE}---{endpoints}---{slice}")).unwrap();
    assert_eq!(both.endpoint_slices.len(), 1);
    assert!(both.endpoint_slices[0].endpoints.is_empty());
}

#[test]
fn leading_zeros_are_dropped() {
    let text = SERVICE.replace("10.96.0.10", "172.30.0.041");
    let snapshot = Snapshot::parse("x", &text).unwrap();
    let address = objects::ClusterIp::Address([172, 30, 0, 41].into());
    assert_eq!(snapshot.services[0].spec.cluster_ip, address);
    assert_eq!(
        parse_cidr("203.0.113.000/025"),
        "203.0.113.0/25".parse().ok()
    );
    for text in [
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.",
        "256.1.1.1",
        "1.2.3.0400",
        "x",
    ] {
        assert_eq!(parse_ip(text), None, "{text}");
    }
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let text = format!(
        "{SERVICE}---\napiVersion: apps/v1\nkind: Deployment\nspec: {{ports: 7}}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: x}}\n"
    );
    let snapshot = Snapshot::parse("x", &text).unwrap();
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(snapshot.notes().len(), 2, "{:?}", snapshot.notes());
}

#[test]
fn each_node_that_is_missing_has_one_note() {
    let slice = |name: &str, endpoints: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nendpoints: [{endpoints}]\n"
        )
    };
    let on = |address: &str, node: &str| format!("{{addresses: [{address}], nodeName: {node}}}");
    let first = [on("10.0.0.1", "here"), on("10.0.0.2", "gone")].join(", ");
    let second = [on("10.0.0.3", "gone"), on("10.0.0.4", "away")].join(", ");
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: here}\n";
    let text = format!("{node}{}{}", slice("a", &first), slice("b", &second));
    let snapshot = Snapshot::parse("x", &text).unwrap();
    assert_eq!(
        snapshot.notes(),
        [
            "x:12 (document 3): EndpointSlice default/b: endpoints[1].nodeName: there is no Node away here",
            "x:6 (document 2): EndpointSlice default/a: endpoints[1].nodeName: there is no Node gone here; 2 endpoints are on it",
        ]
    );
}

#[test]
fn the_order_of_documents_makes_no_difference() {
    let a = SERVICE;
    let b = SERVICE.replace("web", "api").replace("0.10", "0.11");
    let names = |text: String| {
        let snapshot = Snapshot::parse("x", &text).unwrap();
        let names = snapshot
            .services
            .iter()
            .map(|service| service.metadata.name.clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(format!("{a}---{b}")), ["api", "web"]);
    assert_eq!(names(format!("{b}---{a}")), ["api", "web"]);
}

/// The API server fills these in where they are empty.
#[test]
fn what_is_empty_is_the_default() {
    let empty = "  type: ''\n  sessionAffinity: ''\n  externalTrafficPolicy: ''\n";
    let without = service("  clusterIP: 10.96.0.10\n  ports: [{port: 80}]\n");
    let with = service(&format!(
        "{empty}  clusterIP: 10.96.0.10\n  ports: [{{port: 80, protocol: ''}}]\n"
    ));
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"demo"},"spec":{"type":"",
      "sessionAffinity":"","externalTrafficPolicy":"","clusterIP":"10.96.0.10","ports":[{"port":80,"protocol":""}]}}"#;
    let expected = Snapshot::parse("x", &without).unwrap();
    for text in [&with, json] {
        assert_eq!(Snapshot::parse("x", text).unwrap(), expected, "{text}");
    }
}

/// A Service with `spec` in place of the good one.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: demo}}\nspec:\n{spec}"
    )
}

fn slice(body: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: demo}}\n{body}"
    )
}

fn node(body: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node-a}}\n{body}")
}

/// An IPv4 address in the form of IPv6 is what it stands for.
#[test]
fn mapped_addresses_are_of_ipv4() {
    let text = SERVICE.replace("10.96.0.10", "\"::ffff:10.96.0.10\"");
    let snapshot = Snapshot::parse("x", &text).unwrap();
    let address = objects::ClusterIp::Address([10, 96, 0, 10].into());
    assert_eq!(snapshot.services[0].spec.cluster_ip, address);
}

fn bad_objects() -> Vec<(String, &'static str)> {
    let ports = "  ports:\n  - port: 80\n";
    vec![
        ("kind: [".to_owned(), "x.yaml:1: this is not readable as YAML: "),
        ("just words".to_owned(), "x.yaml:1: this is a single value; a Kubernetes object has apiVersion and kind"),
        ("# objects\n- {apiVersion: v1, kind: Node}\n".to_owned(), "x.yaml:2: this is a list without a head; put it below `kind: List` as its `items`; a Kubernetes object has apiVersion and kind"),
        ("kind: A\napiVersion: b\n---\n[{\"kind\": \"Node\"}]".to_owned(), "x.yaml:4 (document 2): this is a list without a head; put it below `kind: List` as its `items`; a Kubernetes object has apiVersion and kind"),
        ("kind: A\n---\nkind: A\nkind: B\n".to_owned(), "x.yaml:1: A without a name: apiVersion: is missing; every Kubernetes object has one\nx.yaml:4 (document 2): this is not readable as YAML: `kind` stands twice in one object; remove one"),
        ("kind: Service\nmetadata: {name: web}\n".to_owned(), "x.yaml:1: Service default/web: apiVersion: is missing; every Kubernetes object has one"),
        ("apiVersion: v1\nmetadata: {name: web}\n".to_owned(), "x.yaml:1: kind: is missing; every Kubernetes object has one"),
        ("apiVersion: v1\nkind: Sevice\nmetadata: {name: web}\n".to_owned(), "x.yaml:2: Sevice default/web: kind: there is no kind Sevice in v1; did you mean Service?"),
        ("apiVersion: v1\nkind: EndpointSlice\nmetadata: {name: web}\n".to_owned(), "x.yaml:1: EndpointSlice default/web: apiVersion: EndpointSlice is in discovery.k8s.io/v1, not in v1; write `apiVersion: discovery.k8s.io/v1`"),
        ("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: web}\n".to_owned(), "x.yaml:1: EndpointSlice default/web: apiVersion: discovery.k8s.io/v1beta1 is no longer served; write discovery.k8s.io/v1"),
        (service(ports).replace("apiVersion: v1", "apiVersion: v2"), "x.yaml:1: Service demo/web: apiVersion: Service is in v1, not in v2; write `apiVersion: v1`"),
        (service(ports).replace("apiVersion: v1", "apiVersion: core/v1"), "x.yaml:1: Service demo/web: apiVersion: Service is in v1, not in core/v1; write `apiVersion: v1`"),
        (slice("addressType: IPv4\n").replace("k8s.io/v1", "k8s.io/v2"), "x.yaml:1: EndpointSlice demo/web-1: apiVersion: EndpointSlice is in discovery.k8s.io/v1, not in discovery.k8s.io/v2; write `apiVersion: discovery.k8s.io/v1`"),
        ("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items: [{apiVersion: v1, kind: Node, metadata: {name: a}}]\n".to_owned(), "x.yaml:5: List without a name: kind: is a list within a list; put its items into the one around it"),
        ("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n{\"apiVersion\":\"v1\",\"kind\":\"ServiceList\",\n\"items\":[]}]}".to_owned(), "x.yaml:2: ServiceList without a name: kind: is a list within a list; put its items into the one around it"),
        ("apiVersion: v1\nkind: Service\nspec: {ports: [{port: 80}]}\n".to_owned(), "x.yaml:1: Service without a name: missing field `metadata`"),
        ("apiVersion: v1\nkind: Service\nmetadata: {namespace: demo}\nspec: {ports: [{port: 80}]}\n".to_owned(), "x.yaml:3: Service without a name: metadata.name: is missing; every object has one"),
        (service(ports).replace("web", "Web_1"), "x.yaml:3: Service demo/Web_1: metadata.name: `Web_1` has characters other than a-z, 0-9, `-` and `.`; no cluster would take it"),
        (service("  ports:\n  - port: 80\n    name: \"a\\n-A b\"\n"), "x.yaml:7: Service demo/web: spec.ports[0].name: `a\\n-A b` has other characters than a-z, 0-9 and `-`, or more than 63 of them; no cluster would take it"),
        (service(ports).replace("name: web", "name: 7"), "x.yaml:3: Service without a name: metadata.name: invalid type: integer `7`, expected a string"),
        (service("  clusterIP: 10.96.0.10\n"), "x.yaml:5: Service demo/web: spec.ports: is empty; a Service needs at least one port"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: []\n".to_owned(), "x.yaml:4: Service default/web: spec: invalid type: sequence, expected an object"),
        (slice("addressType: IPv4\nendpoints:\n- {addresses: [10.0.0.1], conditions: [false]}\n"), "x.yaml:6: EndpointSlice demo/web-1: endpoints[0].conditions: invalid type: sequence, expected an object"),
        (service("  ports: 80\n"), "x.yaml:5: Service demo/web: spec.ports: invalid type: integer `80`, expected a sequence"),
        (service("  ports:\n  - port: 70000\n"), "x.yaml:6: Service demo/web: spec.ports[0].port: 70000 is not a port; give a number from 1 to 65535"),
        (service("  ports:\n  - port: 0\n"), "x.yaml:6: Service demo/web: spec.ports[0].port: 0 is not a port; give a number from 1 to 65535"),
        (service("  ports:\n  - port: -1\n"), "x.yaml:6: Service demo/web: spec.ports[0].port: -1 is not a port; give a number from 1 to 65535"),
        (service("  ports:\n  - port: eighty\n"), "x.yaml:6: Service demo/web: spec.ports[0].port: invalid type: string \"eighty\", expected a whole number"),
        (service("  ports:\n  - name: http\n"), "x.yaml:6: Service demo/web: spec.ports[0]: missing field `port`"),
        (service("  ports:\n  - port: 80\n    protocol: HTTP\n"), "x.yaml:7: Service demo/web: spec.ports[0].protocol: unknown variant `HTTP`, expected one of `TCP`, `UDP`, `SCTP`"),
        (service("  ports:\n  - port: 80\n    protocol: tcp\n"), "x.yaml:7: Service demo/web: spec.ports[0].protocol: unknown variant `tcp`, expected one of `TCP`, `UDP`, `SCTP`"),
        (service("  ports:\n  - port: 80\n    nodePort: 99999\n"), "x.yaml:7: Service demo/web: spec.ports[0].nodePort: 99999 is not a port; give a number from 1 to 65535"),
        (service("  ports:\n  - port: 80\n  - port: 81\n"), "x.yaml:7: Service demo/web: spec.ports[1].name: is missing; a Service with several ports names each of them"),
        (service("  ports:\n  - {name: a, port: 80}\n  - {name: a, port: 81}\n"), "x.yaml:7: Service demo/web: spec.ports[1].name: another port is called `a` too; names are unique"),
        (service("  ports:\n  - {name: a, port: 80}\n  - {name: b, port: 80}\n"), "x.yaml:7: Service demo/web: spec.ports[1].port: another port has 80/TCP too; remove one of them"),
        (service("  ports:\n  - {name: a, port: 80, nodePort: 30000}\n  - {name: b, port: 81, nodePort: 30000}\n"), "x.yaml:7: Service demo/web: spec.ports[1].nodePort: another port of this Service has the same nodePort; give each its own"),
        (service(&format!("  clusterIP: 10.96.0.300\n{ports}")), "x.yaml:5: Service demo/web: spec.clusterIP: `10.96.0.300` is not an IP address; write one, or None for a headless Service"),
        (service(&format!("  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.2]\n{ports}")), "x.yaml:6: Service demo/web: spec.clusterIPs[0]: is 10.96.0.2, but spec.clusterIP is 10.96.0.1; they must be the same"),
        (service(&format!("  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd00::1', 'fd00::2']\n{ports}")), "x.yaml:6: Service demo/web: spec.clusterIPs: takes one address of each family at most"),
        (service(&format!("  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 10.96.0.2]\n{ports}")), "x.yaml:6: Service demo/web: spec.clusterIPs[1]: is of the same family as the first; a Service has one address of each at most"),
        (service(&format!("  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1]\n  ipFamilies: [IPv6]\n{ports}")), "x.yaml:6: Service demo/web: spec.clusterIPs[0]: 10.96.0.1 is not of IPv6, which spec.ipFamilies[0] asks for"),
        (service(&format!("  ipFamilies: [IPv4, IPv4]\n{ports}")), "x.yaml:5: Service demo/web: spec.ipFamilies[1]: names the same family again; give the other one"),
        (service(&format!("  ipFamilies: [IPv5]\n{ports}")), "x.yaml:5: Service demo/web: spec.ipFamilies[0]: unknown variant `IPv5`, expected `IPv4` or `IPv6`"),
        (service(&format!("  type: Loadbalancer\n{ports}")), "x.yaml:5: Service demo/web: spec.type: unknown variant `Loadbalancer`, expected one of `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`"),
        (service(&format!("  externalIPs: [example.org]\n{ports}")), "x.yaml:5: Service demo/web: spec.externalIPs[0]: `example.org` is not an IP address; write one like 10.0.0.10 or fd00::10"),
        (service(&format!("  loadBalancerSourceRanges: [10.0.0.0/33]\n{ports}")), "x.yaml:5: Service demo/web: spec.loadBalancerSourceRanges[0]: `10.0.0.0/33` is not a CIDR; write one like 10.0.0.0/8 or fd00::/48"),
        (service(&format!("  loadBalancerSourceRanges: [10.0.0.1]\n{ports}")), "x.yaml:5: Service demo/web: spec.loadBalancerSourceRanges[0]: `10.0.0.1` is not a CIDR; write one like 10.0.0.0/8 or fd00::/48"),
        (service(&format!("  externalTrafficPolicy: local\n{ports}")), "x.yaml:5: Service demo/web: spec.externalTrafficPolicy: unknown variant `local`, expected `Cluster` or `Local`"),
        (service(&format!("  internalTrafficPolicy: Node\n{ports}")), "x.yaml:5: Service demo/web: spec.internalTrafficPolicy: unknown variant `Node`, expected `Cluster` or `Local`"),
        (service(&format!("  sessionAffinity: Cookie\n{ports}")), "x.yaml:5: Service demo/web: spec.sessionAffinity: unknown variant `Cookie`, expected `None` or `ClientIP`"),
        (service(&format!("  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 0}}}}\n{ports}")), "x.yaml:6: Service demo/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not from 1 to 86400 seconds"),
        (service(&format!("  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 99999999999}}}}\n{ports}")), "x.yaml:5: Service demo/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 99999999999 is not from 1 to 86400 seconds"),
        (format!("{}status: {{loadBalancer: {{ingress: [{{ip: 1.2.3}}]}}}}\n", service(ports)), "x.yaml:7: Service demo/web: status.loadBalancer.ingress[0].ip: `1.2.3` is not an IP address; write one like 10.0.0.10 or fd00::10"),
        (service(ports).replace("namespace: demo", "annotations: {penstock.dev/load-balancing: fastest}"), "x.yaml:3: Service default/web: metadata.annotations[penstock.dev/load-balancing]: `fastest` is none of random, round-robin, least-connections, source-hash, maglev"),
        (format!("{}---\n{}", service(ports), service(ports)), "x.yaml:8 (document 2): Service demo/web: metadata.name: is here a second time, the first is at x.yaml:1; remove one of them"),
        (slice("endpoints: []\n"), "x.yaml:1: EndpointSlice demo/web-1: missing field `addressType`"),
        (slice("addressType: IPv5\n"), "x.yaml:4: EndpointSlice demo/web-1: addressType: unknown variant `IPv5`, expected one of `IPv4`, `IPv6`, `FQDN`"),
        (slice("addressType: IPv4\nendpoints:\n- addresses: []\n"), "x.yaml:6: EndpointSlice demo/web-1: endpoints[0].addresses: is empty; an endpoint needs an address"),
        (slice("addressType: IPv4\nendpoints:\n- conditions: {}\n"), "x.yaml:6: EndpointSlice demo/web-1: endpoints[0]: missing field `addresses`"),
        (slice("addressType: IPv4\nendpoints:\n- addresses: [pod-1]\n"), "x.yaml:6: EndpointSlice demo/web-1: endpoints[0].addresses[0]: `pod-1` is not an IP address; write one like 10.0.0.10 or fd00::10"),
        (slice("addressType: IPv4\nendpoints:\n- addresses: [127.0.0.1]\n"), "x.yaml:6: EndpointSlice demo/web-1: endpoints[0].addresses[0]: 127.0.0.1 is a loopback address; no packet could be sent there from elsewhere"),
        (slice("addressType: IPv4\nendpoints:\n- addresses: [10.0.0.1]\n  conditions: {ready: maybe}\n"), "x.yaml:7: EndpointSlice demo/web-1: endpoints[0].conditions.ready: invalid type: string \"maybe\", expected a boolean"),
        (slice("addressType: IPv4\nports:\n- {name: a, port: 80}\n- {name: a, port: 81}\n"), "x.yaml:7: EndpointSlice demo/web-1: ports[1].name: another port is called `a` too; names are unique"),
        (slice("addressType: IPv4\nports:\n- {name: a, port: 65536}\n"), "x.yaml:6: EndpointSlice demo/web-1: ports[0].port: 65536 is not a port; give a number from 1 to 65535"),
        (node("spec: {podCIDR: 10.244.0.0}\n"), "x.yaml:4: Node node-a: spec.podCIDR: `10.244.0.0` is not a CIDR; write one like 10.0.0.0/8 or fd00::/48"),
        (node("spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.1.0/24]}\n"), "x.yaml:4: Node node-a: spec.podCIDRs[0]: is 10.244.1.0/24, but spec.podCIDR is 10.244.0.0/24; they must be the same"),
    ]
}

#[test]
fn bad_objects_are_refused_with_a_message() {
    let table = bad_objects();
    assert!(table.len() >= 40);
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let message = match Snapshot::parse("x.yaml", &text) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        // The parser's own words on what is no YAML are its business.
        let same = if expected.ends_with(": ") {
            message.starts_with(expected)
        } else {
            message == expected
        };
        if !same {
            wrong.push(format!("expected: {expected}\n     got: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn two_nodes(first: &str, second: &str) -> String {
    format!(
        "{}---\n{}",
        node(first),
        node(second).replace("node-a", "node-b")
    )
}

/// They may be left of a node that is gone, and kube-proxy reads its own alone.
#[test]
fn what_nodes_share_and_addresses_that_are_none_have_notes() {
    let address = "status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n";
    let external = "status: {addresses: [{type: ExternalIP, address: 10.0.0.1}]}\n";
    let none =
        "status: {addresses: [{type: InternalIP, address: ''}, {type: Hostname, address: x}]}\n";
    let range = "spec: {podCIDRs: [10.244.0.0/16]}\n";
    for (first, second, note) in [
        (
            address,
            address,
            "status.addresses: 10.0.0.1 is an address of Node node-a too (x.yaml:1); in a lab each node needs its own",
        ),
        (
            address,
            external,
            "status.addresses: 10.0.0.1 is an address of Node node-a too (x.yaml:1); in a lab each node needs its own",
        ),
        (
            range,
            "spec: {podCIDRs: [10.244.1.0/24]}\n",
            "spec.podCIDRs: 10.244.1.0/24 overlaps 10.244.0.0/16 of Node node-a (x.yaml:1); in a lab each node needs its own range",
        ),
        (
            address,
            none,
            "status.addresses[0].address: `` is not an IP address, so kube-proxy skips it",
        ),
    ] {
        let snapshot = Snapshot::parse("x.yaml", &two_nodes(first, second)).unwrap();
        let note = format!("x.yaml:6 (document 2): Node node-b: {note}");
        assert_eq!(snapshot.notes(), [note]);
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = format!(
        "{}---\n{}",
        service("  ports:\n  - port: 0\n"),
        slice("addressType: IPv5\n")
    );
    let message = Snapshot::parse("x.yaml", &text).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 2, "{message}");
}

#[test]
fn a_lab_needs_a_place_for_every_endpoint() {
    let endpoints = "addressType: IPv4\nendpoints:\n- addresses: [10.244.0.5]\n- addresses: [10.9.9.9]\n- {addresses: [10.244.0.6], nodeName: nowhere}\n";
    let text = format!(
        "{}---\n{}",
        node("spec: {podCIDRs: [10.244.0.0/24]}\n"),
        slice(endpoints)
    );
    let problems = Snapshot::parse("x.yaml", &text).unwrap().check_for_lab();
    let messages: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect();
    assert_eq!(
        messages,
        [
            "status.addresses: has no InternalIP; a node of a lab needs one",
            "endpoints[1].addresses: 10.9.9.9 is on no node and in no spec.podCIDRs; give the endpoint a nodeName",
            "endpoints[2].nodeName: there is no Node nowhere; add it, or name another",
        ]
    );
}

#[test]
fn a_lab_has_no_more_pods_than_a_machine_takes() {
    let pods = |count: usize| {
        let endpoint =
            |number: usize| format!("- addresses: [10.244.{}.{}]\n", number / 250, number % 250);
        let endpoints: String = (0..count).map(endpoint).collect();
        let status = "status: {addresses: [{type: InternalIP, address: 10.244.0.0}]}\n";
        let node = node(&format!("spec: {{podCIDRs: [10.244.0.0/16]}}\n{status}"));
        let slice = slice(&format!("addressType: IPv4\nendpoints:\n{endpoints}"));
        Snapshot::parse("x", &format!("{node}---\n{slice}"))
            .unwrap()
            .check_for_lab()
    };
    // The first address is the node's.
    assert_eq!(pods(2001), []);
    let problems = pods(2002);
    assert!(problems[0].message.contains("to 2001 pods"), "{problems:?}");
}

/// Some hundred kilobytes of Services, as `kubectl -o json` prints them.
fn printed() -> String {
    let service = |number: usize| {
        json!({"apiVersion": "v1", "kind": "Service",
               "metadata": {"name": format!("web-{number}"), "namespace": "demo"},
               "spec": {"clusterIP": format!("10.96.{}.{}", number / 250, number % 250 + 1),
                        "ports": [{"name": "http", "port": 80}]}})
    };
    let services: Vec<Value> = (0..1000).map(service).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": services});
    serde_json::to_string_pretty(&list).unwrap()
}

/// Whether it is read block by block, or has to be read whole, as most of these.
#[test]
fn a_large_file_says_what_its_text_says() {
    let path = std::env::temp_dir().join(format!("penstock-printed-{}.json", std::process::id()));
    let name = path.display().to_string();
    let digests = RandomState::new();
    let good = printed();
    assert!(good.len() > 4 * BLOCK);
    let (last, behind) = good.rsplit_once("\"port\": 80").unwrap();
    let mut seen = Vec::new();
    for text in [
        good.clone(),
        good.replacen("web-900\"", "web-90x\"", 1),
        good.replacen("web-900\"", "web-901\"", 1),
        good.replace("\n      ", "\n    "),
        good.replace("\"List\"", "\"ServiceList\""),
        format!("{good}\n{{}}"),
        format!("{good}\n---\n{SERVICE}"),
        format!("# a comment\n{good}"),
        format!("\u{feff}{good}"),
        format!("{last}\"port\": 0{behind}"),
        format!("{last}\"port\": 80,,{behind}"),
        last.to_owned(),
        good.replace("\"port\"", "\"portt\""),
        good.replace('\n', "\r\n"),
        String::new(),
    ] {
        std::fs::write(&path, &text).unwrap();
        let contents = Contents::read(&path, &digests).unwrap();
        assert_eq!(contents.digest, digest(&path, &digests).unwrap());
        seen.push(contents.digest);
        let told = |snapshot: Result<Snapshot, SnapshotError>| snapshot.map_err(|e| e.to_string());
        assert_eq!(told(contents.snapshot), told(Snapshot::parse(&name, &text)));
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count, "texts that differ have other digests");
    std::fs::write(&path, [&good.as_bytes()[..200_000], &[0xff]].concat()).unwrap();
    let error = Contents::read(&path, &digests).unwrap_err().to_string();
    let line = good[..200_000].lines().count();
    let expected = format!("line {line} is not text in UTF-8");
    assert!(error.ends_with(&expected), "{error}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_list_is_read_block_by_block_when_all_is_well() {
    let text = printed();
    let read = |text: &str| {
        let parts = document::read_list("list.json", &mut text.as_bytes(), AsTyped)?;
        Some(parts.into_iter().flat_map(|part| part.services).count())
    };
    assert_eq!(read(&text), Some(1000));
    let its_kind_first = text.replacen('{', "{\n  \"kind\": \"ServiceList\",", 1);
    for odd in [
        // Its kind is known too late.
        text.replace("\"List\"", "\"ServiceList\""),
        // Its kind stands there twice.
        its_kind_first.clone(),
        format!("{text}\n{text}"),
        text.replacen("},\n    {", "}\n    {", 1),
    ] {
        assert_eq!(read(&odd), None);
    }
    // An item of several blocks, and one that is larger than any.
    let annotated = |bytes| {
        let annotations = format!("\"annotations\": {{\"a\": \"{}\"}},", "a".repeat(bytes));
        let metadata = text.rfind("\"name\": \"web-500\"").unwrap();
        let (before, behind) = text.split_at(metadata);
        format!("{before}{annotations}{behind}")
    };
    assert_eq!(read(&annotated(3 * BLOCK)), Some(1000));
    assert_eq!(read(&annotated(9 << 20)), None);
    let behind = its_kind_first.rfind(",\n  \"kind\": \"List\"");
    let once = its_kind_first[..behind.unwrap_or_default()].to_owned() + "\n}";
    let without = once.replace("\"kind\": \"Service\",", "\"more\": 1,");
    assert_eq!(
        read(&without),
        Some(1000),
        "{}",
        &without[without.len() - 99..]
    );
}
