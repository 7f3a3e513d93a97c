use super::super::document;
use super::super::typed::{self, Typed};
use super::typed;
use crate::problem::{Location, Problem};
use std::sync::Arc;

const SERVICE: &str = r#"{"apiVersion": "v1", "kind": "Service",
    "metadata": {"name": "web", "labels": {"app": "web"}, "creationTimestamp": null, "managedFields": [{"f:a": {}}]},
    "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
             "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}],
             "selector": {"a": "b"}, "sessionAffinity": "ClientIP",
             "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}, "externalTrafficPolicy": "Local"},
    "status": {"loadBalancer": {}}}"#;
const SLICE: &str = r#"{"addressType": "IPv4", "apiVersion": "discovery.k8s.io/v1", "endpoints": [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": null}, "nodeName": "node-a",
         "targetRef": {"kind": "Pod", "name": "a\tb", "namespace": "x"}, "hints": {"forZones": [{"name": "z"}]}}],
    "kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}"#;
const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}], "capacity": {"cpu": 2.5}}}"#;

fn location() -> Location {
    Location {
        file: Arc::from("x.json"),
        document: 1,
        line: 1,
    }
}

/// By way of the tree; `None` when it is not one object.
fn thoroughly(text: &str) -> Option<Result<Typed, Vec<Problem>>> {
    let (parts, problems) = document::read("x.json", text, typed::typed);
    let mut objects: Vec<_> = parts.into_iter().flatten().collect();
    let object = objects.pop()?;
    (objects.is_empty() && problems.is_empty()).then_some(object)
}

#[test]
fn what_is_usual_needs_no_tree() {
    for text in [SERVICE, SLICE, NODE] {
        let compact = serde_json::from_str::<serde_json::Value>(text).unwrap();
        for text in [text.to_owned(), compact.to_string(), format!("{compact:#}")] {
            let direct = typed(&text, &location());
            assert!(direct.is_some(), "{text}");
            assert_eq!(direct, thoroughly(&text).unwrap().ok(), "{text}");
        }
    }
}

/// A part of one of the objects, and what stands there instead.
const UNUSUAL: [(&str, &str); 26] = [
    (r#""kind": "Service""#, r#""kind": "Pod""#),
    (r#""kind": "Service","#, ""),
    (r#""apiVersion": "v1""#, r#""apiVersion": "v2""#),
    (r#""apiVersion": "v1""#, r#""apiVersion": null"#),
    (r#""app": "web""#, r#""app": "web", "app": "web""#),
    (r#""f:a": {}"#, r#""f:a": {}, "f:a": {}"#),
    (r#""f:a": {}"#, r#""f:a": {"a": 1, "\u0061": 2}"#),
    (r#""f:a": {}"#, r#""f:a": "\ud800""#),
    (r#""f:a": {}"#, r#""f:a": 1e999"#),
    (r#""f:a": {}"#, r#""f:a": {},"#),
    (r#""name": "web","#, r#""name": "web", "name": "web","#),
    (r#""name": "web","#, r#""name": null,"#),
    (r#""name": "web","#, r#""name": "Web","#),
    (
        r#""kind": "Service""#,
        r#""kind": "Service", "kind": "Service""#,
    ),
    (r#""app": "web""#, r#""app": null"#),
    (r#""app": "web""#, r#""app": 1"#),
    (r#""status": {"loadBalancer": {}}"#, r#""status": []"#),
    (r#""status": {"loadBalancer": {}}"#, r#""status": null"#),
    (r#""loadBalancer": {}"#, r#""loadBalancer": [[]]"#),
    (r#""port": 80,"#, r#""port": 80.5,"#),
    (r#""port": 80,"#, r#""port": 0,"#),
    (r#""port": 8080"#, r#""port": null"#),
    (r#""type": "NodePort""#, r#""type": {"NodePort": null}"#),
    (r#""type": "NodePort""#, r#""type": "Nodeport""#),
    (r#""10.0.0.1""#, r#""127.0.0.1""#),
    (r#""conditions": {"#, r#""conditions": {"ready": false, "#),
];

#[test]
fn what_is_unusual_is_as_by_way_of_the_tree() {
    for (part, instead) in UNUSUAL {
        for object in [SERVICE, SLICE, NODE] {
            let text = object.replace(part, instead);
            if let Some(direct) = typed(&text, &location()) {
                assert_eq!(thoroughly(&text), Some(Ok(direct)), "{text}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_never_taken() {
    let many: Vec<String> = (0..40)
        .map(|number| format!(r#""l{number}": "x""#))
        .collect();
    let many = SERVICE.replace(r#""app": "web""#, &many.join(", "));
    assert_eq!(typed(&many, &location()), None);
    assert!(matches!(thoroughly(&many), Some(Ok(_))));
    let behind = format!("{SERVICE} {{");
    for text in ["", "{", "[]", "{}", &behind, &SERVICE[..SERVICE.len() - 1]] {
        assert_eq!(typed(text, &location()), None, "{text}");
    }
    for end in 0..SLICE.len() {
        assert_eq!(typed(&SLICE[..end], &location()), None);
    }
    for (part, instead) in [UNUSUAL[4], UNUSUAL[5], UNUSUAL[6], UNUSUAL[7], UNUSUAL[8]] {
        let text = SERVICE.replace(part, instead);
        assert!(text != SERVICE && thoroughly(&text).is_none(), "{text}");
        assert_eq!(typed(&text, &location()), None, "{text}");
    }
}
