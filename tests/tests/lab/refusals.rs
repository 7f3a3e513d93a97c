//! What is no lab is refused whole: one clear message, the right exit code, and nothing left half made.

use super::{lab, leftovers, program, project, stderr};
use std::process::Command;

/// iperf3 is in none of the folders that are looked through.
#[test]
fn root_a_program_that_is_not_installed_is_named_with_what_to_do() {
    let output = Command::new(program())
        .args(["up", "streams", "--name", "t-lacks", "--dataplane", "none"])
        .current_dir(project())
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("apt-get install iperf3"), "{said}");
    assert_eq!(leftovers("t-lacks"), Vec::<String>::new());
}

/// Agents keep their sockets and records beside the labs.
#[test]
fn root_the_folders_of_agents_are_no_labs() {
    let folder = std::path::Path::new("/run/penstock/nodes");
    let file = folder.join(format!("t-of-agents-{}", std::process::id()));
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(&file, "").unwrap();
    for name in ["nodes", "sysctls", "..", "."] {
        let down = lab(&["down", name]);
        let said = stderr(&down);
        assert!(
            said.contains("is not up") || !down.status.success(),
            "{said}"
        );
        assert!(file.exists(), "{name}: {said}");
    }
    let up = lab(&["up", "quickstart", "--name", "nodes", "--dataplane", "none"]);
    let said = stderr(&up);
    assert_eq!(up.status.code(), Some(2), "{said}");
    assert!(said.contains("/run/penstock/nodes is no lab's"), "{said}");
    assert!(file.exists());
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn root_without_the_capability_nothing_is_made() {
    let up = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program())
        .args([
            "up",
            "quickstart",
            "--name",
            "t-incapable",
            "--dataplane",
            "none",
        ])
        .current_dir(project())
        .output()
        .unwrap();
    let said = stderr(&up);
    assert_eq!(up.status.code(), Some(3), "{said}");
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    assert_eq!(leftovers("t-incapable"), Vec::<String>::new());
}

/// Runs a script in a mount namespace where the folder of labs is a disk of its own, so that it can be full.
fn with_disk(size: &str, script: &str) -> std::process::Output {
    std::fs::create_dir_all("/run/penstock").unwrap();
    let mount = format!(
        "mount --make-rprivate / && mount -t tmpfs -o size={size} tmpfs /run/penstock && {script}"
    );
    Command::new("unshare")
        .args(["--mount", "bash", "-c", &mount, "bash"])
        .arg(program())
        .current_dir(project())
        .output()
        .unwrap()
}

#[test]
fn root_a_full_disk_keeps_no_lab_from_going_down() {
    let script = "\"$1\" up quickstart --name t-full --dataplane none >&2 || exit 9
        dd if=/dev/zero of=/run/penstock/filling bs=4k 2>/dev/null
        \"$1\" down t-full && ! test -e /run/penstock/t-full";
    let output = with_disk("4m", script);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(leftovers("t-full"), Vec::<String>::new());
}

#[test]
fn root_up_on_a_disk_that_is_too_small_says_so_and_leaves_nothing() {
    let script = "\"$1\" up quickstart --name t-small --dataplane none
        code=$?
        test -e /run/penstock/t-small || exit $code";
    let output = with_disk("24k", script);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(!said.contains("undoing it failed"), "{said}");
    assert_eq!(leftovers("t-small"), Vec::<String>::new());
}

/// Its log goes with the lab, so what it says is in the message.
#[test]
fn root_a_program_that_does_not_come_up_is_quoted() {
    let folder = std::env::temp_dir().join(format!("penstock-quoted-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = "snapshot: snapshot.yaml\npods:\n- {name: default/web-1, run: [sh, -c, 'echo I cannot; exit 3']}\n";
    std::fs::write(folder.join("lab.yaml"), text).unwrap();
    let objects = project().join("labs/quickstart/snapshot.yaml");
    std::fs::copy(objects, folder.join("snapshot.yaml")).unwrap();
    let source = folder.to_str().unwrap();
    let up = lab(&["up", source, "--name", "t-quoted", "--dataplane", "none"]);
    let said = stderr(&up);
    assert_eq!(up.status.code(), Some(1), "{said}");
    assert!(
        said.contains("pod/default/web-1: ") && said.contains("I cannot"),
        "{said}"
    );
    assert!(!said.contains("/run/penstock/"), "{said}");
    assert_eq!(leftovers("t-quoted"), Vec::<String>::new());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn root_bad_input_is_refused_whole() {
    let folder = std::env::temp_dir().join(format!("penstock-bad-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let node = |name: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: 10.244.1.0/24}}\nstatus: \
             {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
        )
    };
    let endpoint = |endpoint: &str| {
        format!(
            "{}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n\
             - {endpoint}\n",
            node("node-a", "172.18.0.2")
        )
    };
    let no_ports = format!(
        "{}apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1}}\n",
        node("node-a", "172.18.0.2")
    );
    let cases: [(&str, String, i32, &[&str]); 7] = [
        (
            "unreadable.yaml",
            "kind: [\n".to_owned(),
            1,
            &["unreadable.yaml:", "not readable as YAML"],
        ),
        (
            "no-ports.yaml",
            no_ports,
            1,
            &["no-ports.yaml:", "Service default/web", "ports"],
        ),
        (
            "unknown-node.yaml",
            endpoint("{addresses: [10.244.1.5], nodeName: node-b}"),
            1,
            &[
                "EndpointSlice default/web-1",
                "endpoints[0].nodeName",
                "node-b",
                "node-a",
            ],
        ),
        (
            "outside.yaml",
            endpoint(
                "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: web-1, namespace: default}}",
            ),
            1,
            &[
                "EndpointSlice default/web-1",
                "endpoints[0].addresses[0]",
                "10.9.9.9",
                "podCIDRs",
            ],
        ),
        (
            "two-nodes.yaml",
            node("node-a", "172.18.0.2")
                + &node("node-b", "172.18.0.2").replace("10.244.1.", "10.244.2."),
            1,
            &[
                "Node node-b",
                "status.addresses",
                "172.18.0.2",
                "Node node-a",
            ],
        ),
        (
            "lab.yaml",
            "snapshot: none.yaml\npodz: []\n".to_owned(),
            1,
            &["lab.yaml:2", "podz", "pods?"],
        ),
        (
            "no-node.yaml",
            endpoint("{addresses: [10.244.1.5]}")
                .split("---\n")
                .nth(1)
                .unwrap()
                .into(),
            2,
            &["no Node"],
        ),
    ];
    for (file, text, code, words) in cases {
        let path = folder.join(file);
        std::fs::write(&path, text).unwrap();
        let output = lab(&[
            "up",
            path.to_str().unwrap(),
            "--name",
            "t-bad",
            "--dataplane",
            "none",
        ]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{file}: {said}");
        for word in words {
            assert!(said.contains(word), "{file}: {word} in {said}");
        }
        assert!(output.stdout.is_empty());
        assert_eq!(leftovers("t-bad"), Vec::<String>::new());
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::remove_dir(&folder).unwrap();

    let unknown = lab(&["up", "quikstart"]);
    assert_eq!(unknown.status.code(), Some(4));
    assert!(
        stderr(&unknown).contains("did you mean quickstart?"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(lab(&["status", "t-bad"]).status.code(), Some(4));
    assert_eq!(
        lab(&["up", "quickstart", "--via", "node-q", "--name", "t-bad"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(lab(&["frobnicate"]).status.code(), Some(2));

    let program = program();
    let as_nobody = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            program.to_str().unwrap(),
        ])
        .args(["up", "quickstart", "--name", "t-bad", "--dataplane", "none"])
        .current_dir(project())
        .output()
        .unwrap();
    // Where the project itself cannot be read by others there is nothing to see.
    if as_nobody.status.code() != Some(127) && as_nobody.status.code() != Some(126) {
        assert_eq!(as_nobody.status.code(), Some(3), "{}", stderr(&as_nobody));
        assert!(
            stderr(&as_nobody).contains("sudo"),
            "{}",
            stderr(&as_nobody)
        );
    }
}
