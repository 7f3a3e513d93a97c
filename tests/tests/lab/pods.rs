//! Pods without a dataplane: their routes, their servers, and how `apply` changes them.

use super::{Lab, lab, leftovers, pids, stderr, stdout};
use serde_json::Value;
use std::path::Path;

/// Without a dataplane the client's own routes and both families can be seen to be right.
#[test]
fn root_dual_stack_pods_reach_each_other_in_both_families() {
    let (dual, _) = Lab::up(
        "t-dual",
        "tests/fixtures/dual-stack",
        &["--dataplane", "none"],
    );
    for url in [
        "http://10.244.2.10:8080/",
        "http://[fd00:10:244:2::10]:8080/",
    ] {
        let answer = dual.exec("pod/dual/p-a1", &["curl", "-s", "-m", "2", url]);
        let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(
            (&facts["pod"], &facts["node"]),
            (&"p-b1".into(), &"node-b".into())
        );
        assert!(
            ["10.244.1.10", "fd00:10:244:1::10"]
                .contains(&facts["peer"]["address"].as_str().unwrap())
        );
    }
    let routes = dual.exec("client", &["ip", "-6", "route", "get", "2001:db8::204"]);
    assert!(
        stdout(&routes).contains("via fd00:18::2"),
        "{}",
        stdout(&routes)
    );
}

#[test]
fn root_apply_adds_and_removes_pods() {
    let (quick, _) = Lab::up("t-apply", "quickstart", &["--dataplane", "none"]);
    let slice = |endpoints: &[(&str, &str, &str)]| {
        let endpoints: String = endpoints
            .iter()
            .map(|(address, node, name)| {
                format!(
                    "- addresses: [{address}]\n  nodeName: {node}\n  targetRef: {{kind: Pod, namespace: default, \
                     name: {name}}}\n"
                )
            })
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-x7k2p\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports:\n- {{name: http, port: 80}}\n\
             endpoints:\n{endpoints}"
        )
    };
    let file = std::env::temp_dir().join(format!("penstock-apply-{}.yaml", std::process::id()));
    let apply = |text: &str| {
        std::fs::write(&file, text).unwrap();
        lab(&["apply", "--lab", "t-apply", "-f", file.to_str().unwrap()])
    };
    let web1 = ("10.244.1.10", "node-a", "web-1");
    let web3 = ("10.244.2.30", "node-b", "web-3");
    let before = pids("t-apply");
    let output = apply(&slice(&[web1, web3]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("- pod/default/web-2\n+ pod/default/web-3\n"),
        "{}",
        stderr(&output)
    );
    let answer = quick.exec("pod/default/client", &["curl", "-s", "http://10.244.2.30/"]);
    let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(facts["pod"], "web-3");
    assert!(!Path::new("/run/netns/t-apply.default-web-2").exists());
    // web-1 was not touched.
    assert!(pids("t-apply").iter().any(|pid| before.contains(pid)));

    let refused = apply(&slice(&[("10.244.1.10", "node-z", "web-1")]));
    assert_eq!(refused.status.code(), Some(1));
    // Where the object stands in the file that was given, and not among the lab's objects.
    let place = format!("{}:1: EndpointSlice default/web-x7k2p", file.display());
    let said = stderr(&refused);
    assert!(said.contains(&place) && said.contains("node-z"), "{said}");
    let answer = quick.exec("pod/default/client", &["curl", "-s", "http://10.244.1.10/"]);
    assert_eq!(stdout(&answer), "web-1 on node-a\n");
    std::fs::remove_file(&file).unwrap();
}

/// Kubernetes allows names that are longer than those of files, with an ending, may be.
#[test]
fn root_pods_and_nodes_of_the_longest_names_come_up() {
    let node = vec!["n".repeat(62); 4].join(".");
    let pod = |last: char| format!("{}{last}", "p".repeat(252));
    let endpoint = |address: &str, last: char| {
        format!(
            "- {{addresses: [{address}], nodeName: {node}, targetRef: {{kind: Pod, namespace: default, name: \
             {}}}}}\n",
            pod(last)
        )
    };
    let objects = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\nspec: {{podCIDR: 10.244.1.0/24}}\nstatus: \
         {{addresses: [{{type: InternalIP, address: 172.18.0.2}}]}}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}\n---\napiVersion: \
         discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n{}{}",
        endpoint("10.244.1.10", '1'),
        endpoint("10.244.1.11", '2')
    );
    let file = std::env::temp_dir().join(format!("penstock-longest-{}.yaml", std::process::id()));
    std::fs::write(&file, objects).unwrap();
    let (of_test, _) = Lab::up("t-longest", file.to_str().unwrap(), &[]);
    for (address, last) in [("10.244.1.10", '1'), ("10.244.1.11", '2')] {
        let url = format!("http://{address}/");
        let answer = of_test.exec(&format!("node/{node}"), &["curl", "-s", &url]);
        let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(facts["pod"], pod(last).as_str());
    }
    drop(of_test);
    assert_eq!(leftovers("t-longest"), Vec::<String>::new());
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn root_the_built_in_server_serves_and_echoes() {
    let (lab, _) = Lab::up(
        "t-serve",
        "tests/fixtures/dual-stack",
        &["--dataplane", "none"],
    );
    let script = "set -e
        url=http://10.244.2.10:8080
        head -c 3000000 /dev/zero | tr '\\0' x > \"$1\"
        curl -s --data-binary @\"$1\" $url/upload
        sha256sum < \"$1\"
        curl -s -H 'Transfer-Encoding: chunked' --data-binary @\"$1\" $url/upload
        curl -s $url/bytes/1000003 | wc -c
        curl -sI $url/bytes/77 | grep -i content-length
        curl -s $url/ $url/ -w '%{num_connects}\\n' -o /dev/null -o /dev/null
        rm \"$1\"";
    let file = format!("/tmp/penstock-serve-{}", std::process::id());
    let output = lab.exec("pod/dual/p-a1", &["bash", "-c", script, "bash", &file]);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let upload: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(upload["length"], 3_000_000);
    assert_eq!(upload["sha256"].as_str(), lines[1].split(' ').next());
    assert_eq!(lines[2], lines[0], "chunks make no difference");
    assert_eq!(lines[3].trim(), "1000003");
    assert_eq!(lines[4].trim().to_lowercase(), "content-length: 77");
    assert_eq!(
        &lines[5..],
        ["1", "0"],
        "the second request has the first one's connection"
    );

    let echo = "exec 3<>/dev/udp/10.244.2.10/5353; printf 'hi there' >&3; timeout 2 head -n 1 <&3";
    let answer = lab.exec("pod/dual/p-a1", &["bash", "-c", echo]);
    let facts: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        (&facts["echo"], &facts["pod"]),
        (&"hi there".into(), &"p-b1".into())
    );
}
