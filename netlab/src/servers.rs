//! Starts what runs in the hosts of a lab: servers of pods, and the agents of nodes.

use crate::names::HostName;
use crate::namespace::Namespace;
use crate::plan::{Host, Plan, Protocol, Run, Server};
use crate::process::ProcessId;
use crate::state::{self, AgentOptions, Process};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// A program of a lab that did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed, or not built.
    #[error("{program} is missing; {remedy}")]
    Missing {
        /// Its name.
        program: String,
        /// What to do.
        remedy: String,
    },
    /// It cannot be started.
    #[error("{host}: cannot start {program}: {source}")]
    Start {
        /// Where.
        host: String,
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended, or did not become ready.
    #[error("{host}: the {role} {what}; its log ends so:\n{log}")]
    NotReady {
        /// Where.
        host: String,
        /// `server`, `nginx`, `command` or `agent`.
        role: String,
        /// What happened.
        what: &'static str,
        /// The last lines of its log, which may go with the lab.
        log: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// A process that was started and may not be ready yet.
pub struct Started {
    /// For the state.
    pub process: Process,
    log: PathBuf,
    ready: Ready,
}

/// How it shows that it is ready.
enum Ready {
    /// Its log has a line `ready`.
    Line,
    /// These addresses accept connections, asked from this namespace.
    Accepts(Vec<SocketAddr>, String),
}

/// The log of a host.
pub fn log(lab: &str, host: &HostName) -> PathBuf {
    state::folder(lab)
        .join("logs")
        .join(format!("{}.log", host.file_name()))
}

/// The folder of a pod: its files, and what its program writes.
fn pod_folder(lab: &str, host: &HostName) -> PathBuf {
    state::folder(lab).join("pods").join(host.file_name())
}

/// Where an agent listens for `penstock conntrack` and others. Socket paths have 107 bytes at most.
pub fn control_socket(lab: &str, node: &str) -> PathBuf {
    const LENGTH: usize = 100;
    let path = state::folder(lab).join(format!("{node}.sock"));
    if path.as_os_str().len() <= LENGTH {
        return path;
    }
    state::folder(lab).join(format!("{}.sock", crate::names::interface("node-", node)))
}

/// Starts the server of a host, if it has one.
pub fn start_server(
    lab: &str,
    host: &Host,
    namespace: &Namespace,
) -> Result<Option<Started>, Error> {
    let Some(server) = &host.server else {
        return Ok(None);
    };
    let folder = pod_folder(lab, &host.name);
    let written = write_files(&folder, server);
    written.map_err(|source| start_error(host, "its files", source))?;
    let tcp = || {
        server
            .ports
            .iter()
            .filter(|(protocol, _)| *protocol == Protocol::Tcp)
    };
    let accepts = || {
        let port = tcp().next().map(|(_, port)| *port);
        let address = server.addresses.first().zip(port);
        let addresses = address
            .map(|(ip, port)| SocketAddr::new(*ip, port))
            .into_iter()
            .collect();
        Ready::Accepts(addresses, namespace.name().to_owned())
    };
    let (role, mut command, ready) = match &server.run {
        Run::BuiltIn => ("server", built_in(server)?, Ready::Line),
        Run::Nginx => ("nginx", nginx(&folder, server, host)?, accepts()),
        Run::Command(words) => ("command", in_folder(words, server), accepts()),
    };
    command.current_dir(&folder);
    start(lab, host, namespace, role, command, ready).map(Some)
}

/// Starts the agent of a node.
pub fn start_agent(
    lab: &str,
    plan: &Plan,
    host: &Host,
    namespace: &Namespace,
    options: AgentOptions,
) -> Result<Started, Error> {
    let HostName::Node(node) = &host.name else {
        return Err(start_error(
            host,
            "an agent",
            io::Error::other("it is no node"),
        ));
    };
    let folder = state::folder(lab);
    let program = beside_us("penstock")?;
    let mut command = Command::new(program);
    command
        .arg("node")
        .arg("--snapshot")
        .arg(folder.join("snapshot.yaml"));
    command.arg("--config").arg(folder.join("kube-proxy.yaml"));
    command.args(["--node", node, "--uplink", crate::plan::UPLINK]);
    command.args(["--pods", &plan.pod_interfaces]);
    command
        .arg("--control-socket")
        .arg(control_socket(lab, node))
        .args(options.arguments());
    start(lab, host, namespace, "agent", command, Ready::Line)
}

impl Started {
    /// Waits until it is ready; `interrupted` ends the wait.
    pub fn wait(&self, interrupted: &dyn Fn() -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            let what = match (self.process.id.is_alive(), Instant::now() > deadline) {
                (false, _) => "ended at once",
                (true, true) => "is not ready after 10 seconds",
                (true, false) => "",
            };
            if interrupted() {
                return Err(Error::Interrupted);
            }
            if !what.is_empty() {
                return Err(self.not_ready(what));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn is_ready(&self) -> bool {
        match &self.ready {
            Ready::Line => fs::read_to_string(&self.log)
                .is_ok_and(|log| log.lines().any(|line| line == "ready")),
            Ready::Accepts(addresses, namespace) => {
                let connect = || {
                    let each = addresses.iter();
                    each.map(|address| TcpStream::connect_timeout(address, READY_WITHIN))
                        .collect()
                };
                let inside = Namespace::open(namespace).and_then(|inside| inside.run(connect));
                inside.is_ok_and(|_: Vec<TcpStream>| true)
            }
        }
    }

    fn not_ready(&self, what: &'static str) -> Error {
        not_ready(&self.process.host, &self.process.role, what, &self.log)
    }
}

fn not_ready(host: &str, role: &str, what: &'static str, log: &Path) -> Error {
    const LINES: usize = 20;
    let log = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    Error::NotReady {
        host: host.to_owned(),
        role: role.to_owned(),
        what,
        log: if last.is_empty() {
            "(empty)".to_owned()
        } else {
            last
        },
    }
}

/// Starts a process in its own process group, so that Ctrl-C in a terminal is not meant for it.
fn start(
    lab: &str,
    host: &Host,
    namespace: &Namespace,
    role: &str,
    mut command: Command,
    ready: Ready,
) -> Result<Started, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = log(lab, &host.name);
    let mut spawn = || {
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        namespace.spawn(&mut command)
    };
    let child = spawn().map_err(|source| start_error(host, &program, source))?;
    let id = ProcessId::of(child.id());
    let id = id.ok_or_else(|| not_ready(&host.name.to_string(), role, "ended at once", &log))?;
    let arguments = command
        .get_args()
        .map(|word| word.to_string_lossy().into_owned());
    let process = Process {
        host: host.name.to_string(),
        role: role.to_owned(),
        id,
        command: std::iter::once(program).chain(arguments).collect(),
    };
    Ok(Started {
        process,
        log,
        ready,
    })
}

fn start_error(host: &Host, program: &str, source: io::Error) -> Error {
    Error::Start {
        host: host.name.to_string(),
        program: program.to_owned(),
        source,
    }
}

fn write_files(folder: &Path, server: &Server) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, contents) in &server.files {
        let path = folder.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, contents)?;
    }
    Ok(())
}

fn built_in(server: &Server) -> Result<Command, Error> {
    let own = std::env::current_exe().map_err(|_| Error::Missing {
        program: "penstock-lab".to_owned(),
        remedy: "build it again: ./lab up".to_owned(),
    })?;
    let mut command = Command::new(own);
    command
        .arg("serve")
        .arg("--pod")
        .arg(format!("{}/{}", server.pod.0, server.pod.1));
    command.args(["--node", &server.node]);
    for address in &server.addresses {
        command.arg("--address").arg(address.to_string());
    }
    for (protocol, port) in &server.ports {
        command.arg(match protocol {
            Protocol::Tcp => "--http",
            Protocol::Udp => "--udp",
            Protocol::Sctp => "--sctp",
        });
        command.arg(port.to_string());
    }
    Ok(command)
}

/// nginx with a folder of its own, one worker, and a page that names the pod unless the lab file has one.
fn nginx(folder: &Path, server: &Server, host: &Host) -> Result<Command, Error> {
    let configure = || {
        let page = folder.join("html/index.html");
        if !page.exists() {
            fs::create_dir_all(folder.join("html"))?;
            let (namespace, name) = &server.pod;
            fs::write(page, format!("pod {namespace}/{name} on {}\n", server.node))?;
        }
        fs::create_dir_all(folder.join("tmp"))?;
        fs::write(
            folder.join("nginx.conf"),
            nginx_configuration(folder, server),
        )
    };
    configure().map_err(|source| start_error(host, "nginx", source))?;
    let program = in_path("nginx").ok_or_else(|| Error::Missing {
        program: "nginx".to_owned(),
        remedy: "install it: apt-get install nginx-light".to_owned(),
    })?;
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"));
    command.arg("-e").arg(folder.join("error.log"));
    Ok(command)
}

fn nginx_configuration(folder: &Path, server: &Server) -> String {
    let folder = folder.display();
    let tcp = server
        .ports
        .iter()
        .filter(|(protocol, _)| *protocol == Protocol::Tcp);
    let has_v6 = server.addresses.iter().any(IpAddr::is_ipv6);
    let listen: String = tcp
        .map(|(_, port)| {
            let v6 = if has_v6 {
                format!("    listen [::]:{port};\n")
            } else {
                String::new()
            };
            format!("    listen {port};\n{v6}")
        })
        .collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/tmp/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 8192; }}\nworker_rlimit_nofile 16384;\nhttp {{\n{temporary}  \
         access_log off;\n  default_type text/plain;\n  server {{\n{listen}    root {folder}/html;\n  }}\n}}\n"
    )
}

fn in_folder(words: &[String], server: &Server) -> Command {
    let mut command = Command::new(words.first().map_or("true", String::as_str));
    command.args(words.iter().skip(1));
    let (namespace, name) = &server.pod;
    command
        .env("POD_NAMESPACE", namespace)
        .env("POD_NAME", name)
        .env("NODE_NAME", &server.node);
    if let Some(address) = server.addresses.first() {
        command.env("POD_IP", address.to_string());
    }
    command
}

/// The binary that is built together with ours.
pub fn beside_us(name: &str) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().ok();
    let path = own
        .as_deref()
        .and_then(Path::parent)
        .map(|folder| folder.join(name));
    path.filter(|path| path.is_file())
        .ok_or_else(|| Error::Missing {
            program: name.to_owned(),
            remedy: "it is built together with penstock-lab: cargo build --release".to_owned(),
        })
}

/// Finds a program in PATH, and where PATH may lack what only root runs.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(extra);
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}
