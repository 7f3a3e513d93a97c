//! What becomes of each field of a KubeProxyConfiguration (v1alpha1 of Kubernetes 1.30).

use crate::problem::did_you_mean;
use serde_json::Value;

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It does what it does in kube-proxy.
    Honoured,
    /// It sets something of ours that has the same effect.
    Mapped,
    /// It is about the connection to the API server, which objects do not come from here: nothing to say.
    Idle,
    /// It has no effect here: a warning says so when it is set.
    Warned,
    /// It cannot be honoured, and ignoring it would mislead.
    Refused,
}

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

use Treatment::{Honoured, Idle, Mapped, Refused, Warned};

/// Every field, by its path. Below a path ending in `.*` anything goes.
pub(super) const FIELDS: &[(&str, Treatment)] = &[
    ("apiVersion", Honoured),
    ("kind", Honoured),
    ("bindAddress", Honoured),
    ("bindAddressHardFail", Honoured),
    ("clientConnection.acceptContentTypes", Idle),
    ("clientConnection.burst", Idle),
    ("clientConnection.contentType", Idle),
    ("clientConnection.kubeconfig", Idle),
    ("clientConnection.qps", Idle),
    ("clusterCIDR", Honoured),
    ("configSyncPeriod", Idle),
    ("conntrack.maxPerCore", Mapped),
    ("conntrack.min", Mapped),
    ("conntrack.tcpBeLiberal", Mapped),
    ("conntrack.tcpCloseWaitTimeout", Mapped),
    ("conntrack.tcpEstablishedTimeout", Mapped),
    ("conntrack.udpStreamTimeout", Mapped),
    ("conntrack.udpTimeout", Mapped),
    ("detectLocal.bridgeInterface", Honoured),
    ("detectLocal.interfaceNamePrefix", Honoured),
    ("detectLocalMode", Honoured),
    ("enableProfiling", Warned),
    ("featureGates.*", Honoured),
    ("healthzBindAddress", Honoured),
    ("hostnameOverride", Honoured),
    ("iptables.localhostNodePorts", Mapped),
    ("iptables.masqueradeAll", Mapped),
    ("iptables.masqueradeBit", Warned),
    ("iptables.minSyncPeriod", Mapped),
    ("iptables.syncPeriod", Mapped),
    ("ipvs.excludeCIDRs", Warned),
    ("ipvs.minSyncPeriod", Mapped),
    ("ipvs.scheduler", Mapped),
    ("ipvs.strictARP", Warned),
    ("ipvs.syncPeriod", Mapped),
    ("ipvs.tcpFinTimeout", Warned),
    ("ipvs.tcpTimeout", Warned),
    ("ipvs.udpTimeout", Warned),
    ("logging.*", Warned),
    ("metricsBindAddress", Honoured),
    ("mode", Warned),
    ("nftables.masqueradeAll", Mapped),
    ("nftables.masqueradeBit", Warned),
    ("nftables.minSyncPeriod", Mapped),
    ("nftables.syncPeriod", Mapped),
    ("nodePortAddresses", Honoured),
    ("oomScoreAdj", Honoured),
    ("portRange", Warned),
    ("showHiddenMetricsForVersion", Warned),
    ("windowsRunAsService", Refused),
    ("winkernel.*", Refused),
];

/// Fields that say nothing when they have these values.
const SILENT: &[(&str, &str)] = &[
    ("mode", "iptables"),
    ("iptables.masqueradeBit", "14"),
    ("nftables.masqueradeBit", "14"),
    ("logging.flushFrequency", "5s"),
    ("logging.flushFrequency", "5000000000"),
    ("logging.format", "text"),
];

/// Fields with a problem: path and message.
pub(super) type Wrong = Vec<(String, String)>;

/// Warnings for fields without effect, or what must be refused.
pub(super) fn check(value: &Value) -> Result<Vec<String>, Wrong> {
    let mut warnings = Vec::new();
    let mut wrong = Vec::new();
    let Value::Object(_) = value else {
        let message = "a KubeProxyConfiguration is a mapping with apiVersion and kind";
        return Err(vec![(String::new(), message.to_owned())]);
    };
    let other = other_kind(value);
    if !other.is_empty() {
        return Err(other);
    }
    walk(value, "", &mut |path, value| match treatment(path) {
        None => wrong.push((path.to_owned(), unknown(path))),
        Some(Refused) if !is_unset(value) => wrong.push((
            path.to_owned(),
            "is for Windows nodes, which Penstock does not run on; remove it".to_owned(),
        )),
        Some(Warned) if !is_unset(value) && !is_silent(path, value) => {
            warnings.push(format!("{path} has no effect here"));
        }
        Some(_) => {}
    });
    if wrong.is_empty() {
        Ok(warnings)
    } else {
        Err(wrong)
    }
}

/// What makes it something else, of whose fields nothing need be said.
fn other_kind(value: &Value) -> Wrong {
    let mut wrong = Wrong::new();
    match value["kind"].as_str() {
        Some("KubeProxyConfiguration") => {}
        Some("ConfigMap") => {
            let message = "is ConfigMap, inside of which the configuration is; \
                `kubectl -n kube-system get configmap kube-proxy -o jsonpath='{.data.config\\.conf}'` prints it";
            wrong.push(("kind".to_owned(), message.to_owned()));
            return wrong;
        }
        _ => wrong.push((
            "kind".to_owned(),
            "must be KubeProxyConfiguration".to_owned(),
        )),
    }
    if value["apiVersion"].as_str() != Some(API_VERSION) {
        wrong.push(("apiVersion".to_owned(), format!("must be {API_VERSION}")));
    }
    wrong
}

/// Visits each field that is not itself a group of known fields.
fn walk(value: &Value, prefix: &str, visit: &mut impl FnMut(&str, &Value)) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, value) in fields {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let group = format!("{path}.");
        let is_group = FIELDS.iter().any(|(known, _)| known.starts_with(&group));
        if is_group && treatment(&path).is_none() && (value.is_object() || value.is_null()) {
            walk(value, &path, visit);
        } else {
            visit(&path, value);
        }
    }
}

fn treatment(path: &str) -> Option<Treatment> {
    let covers = |known: &str| match known.strip_suffix(".*") {
        Some(group) => path == group,
        None => path == known,
    };
    let field = FIELDS.iter().find(|(known, _)| covers(known))?;
    Some(field.1)
}

fn unknown(path: &str) -> String {
    let is_group = FIELDS
        .iter()
        .any(|(known, _)| known.rsplit_once('.').is_some_and(|known| known.0 == path));
    if is_group {
        return "has fields of its own, and is neither a list nor a single value".to_owned();
    }
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let siblings = FIELDS.iter().filter_map(|(known, _)| {
        let rest = match parent {
            "" => known,
            _ => known.strip_prefix(parent)?.strip_prefix('.')?,
        };
        rest.split('.').next()
    });
    match did_you_mean(name, siblings) {
        Some(likely) => format!("kube-proxy has no such field; did you mean `{likely}`?"),
        None => "kube-proxy has no such field; remove it".to_owned(),
    }
}

/// As defaults look in a dump of a configuration.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
        Value::Bool(true) => false,
    }
}

fn is_silent(path: &str, value: &Value) -> bool {
    if let ("logging", Value::Object(fields)) = (path, value) {
        let is_silent =
            |(name, value)| is_unset(value) || is_silent(&format!("logging.{name}"), value);
        return fields.iter().all(is_silent);
    }
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    SILENT.contains(&(path, text.as_str()))
}
