use super::*;

fn parse(body: &str) -> Result<KubeProxyConfig, String> {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    KubeProxyConfig::parse("kube-proxy.yaml", &format!("{head}{body}"))
        .map_err(|error| error.to_string())
}

#[test]
fn an_empty_configuration_is_the_default() {
    assert_eq!(parse("").unwrap(), KubeProxyConfig::default());
}

#[test]
fn an_unknown_field_is_refused_with_the_likely_name() {
    assert_eq!(
        parse("iptables:\n  masqeradeAll: true\n").unwrap_err(),
        "kube-proxy.yaml:4: iptables.masqeradeAll: kube-proxy has no such field; did you mean `masqueradeAll`?"
    );
}

#[test]
fn reads_what_concerns_us() {
    let config = parse(
        "mode: ipvs\nipvs: {scheduler: sh}\nclusterCIDR: 10.244.3.0/16,fd00::/56\nnodePortAddresses: [10.0.0.0/8]\n\
         iptables: {masqueradeAll: true, localhostNodePorts: false, minSyncPeriod: 300ms}\n\
         conntrack: {tcpEstablishedTimeout: 24h0m0s, udpTimeout: 1m30s, tcpCloseWaitTimeout: 0s}\n",
    )
    .unwrap();
    assert_eq!(config.selection, Selection::SourceHash);
    assert_eq!(
        config.cluster_cidr(Family::V4),
        "10.244.0.0/16".parse().ok()
    );
    assert_eq!(config.cluster_cidr(Family::V6), "fd00::/56".parse().ok());
    assert!(config.masquerade_all && !config.localhost_node_ports);
    assert_eq!(config.min_sync_period, Duration::from_millis(300));
    assert_eq!(config.conntrack.udp_timeout, Some(Duration::from_secs(90)));
    assert_eq!(config.conntrack.tcp_close_wait_timeout, None);
    assert_eq!(config.warnings, ["mode has no effect here"]);
}

#[test]
fn bad_values_name_field_and_rule() {
    for (body, expected) in [
        (
            "detectLocalMode: InterfaceNamePrefix\n",
            "kube-proxy.yaml:1: detectLocal.interfaceNamePrefix: is needed with detectLocalMode InterfaceNamePrefix",
        ),
        (
            "clusterCIDR: 10.0.0.0/8,10.1.0.0/16\n",
            "kube-proxy.yaml:3: clusterCIDR: takes one range, or one of IPv4 and one of IPv6 with a comma between",
        ),
        (
            "clusterCIDR: 10.0.0.0\n",
            "kube-proxy.yaml:3: clusterCIDR: `10.0.0.0` is not a CIDR",
        ),
        (
            "conntrack: {udpTimeout: soon}\n",
            "kube-proxy.yaml:3: conntrack.udpTimeout: `soon` is not a duration; write one like 30s or 1h0m0s",
        ),
        (
            "mode: userspace\n",
            "kube-proxy.yaml:3: mode: `userspace` is none of iptables, nftables and ipvs",
        ),
        (
            "conntrack: {maxPerCore: -1}\n",
            "kube-proxy.yaml:3: conntrack.maxPerCore: invalid value: integer `-1`, expected a whole number from 0 on",
        ),
        (
            "conntrack: {maxPerCore: 5000000000, min: 2147483648}\n",
            "kube-proxy.yaml:3: conntrack.maxPerCore: 5000000000 entries are more than the 2147483647 that a table holds; \
             make it smaller\n\
             kube-proxy.yaml:3: conntrack.min: 2147483648 entries are more than the 2147483647 that a table holds; \
             make it smaller",
        ),
        (
            "conntrack: []\n",
            "kube-proxy.yaml:3: conntrack: has fields of its own, and is neither a list nor a single value",
        ),
        (
            "mode: nftables\nnftables: {syncPeriod: 1s, minSyncPeriod: 1h}\n",
            "kube-proxy.yaml:4: nftables.minSyncPeriod: is longer than syncPeriod; make it as long at most",
        ),
        (
            "iptables: {masqueradeBit: -1}\n",
            "kube-proxy.yaml:3: iptables.masqueradeBit: -1 is not from 0 to 31",
        ),
        (
            "mode: nftables\nnftables: {masqueradeBit: 32}\n",
            "kube-proxy.yaml:4: nftables.masqueradeBit: 32 is not from 0 to 31",
        ),
        (
            "winkernel: {networkName: x}\n",
            "kube-proxy.yaml:3: winkernel: is for Windows nodes, which Penstock does not run on; remove it",
        ),
    ] {
        assert_eq!(parse(body).unwrap_err(), expected);
    }
}

/// What an installer leaves to kube-proxy, it writes as null, as nothing and as zero.
#[test]
fn fields_without_a_value_are_the_default() {
    let body = "bindAddress: ''\nclusterCIDR: null\nmode: ~\nhealthzBindAddress: ''\nmetricsBindAddress: ''\n\
        hostnameOverride: null\nnodePortAddresses: null\noomScoreAdj: null\nfeatureGates: null\ndetectLocal: null\n\
        iptables: {masqueradeBit: null, masqueradeAll: null, minSyncPeriod: 0s, syncPeriod: 0s, localhostNodePorts: null}\n\
        conntrack: {maxPerCore: null, min: null, tcpEstablishedTimeout: null, tcpBeLiberal: null, udpTimeout: 0s}\n\
        ipvs: {scheduler: '', excludeCIDRs: null}\nnftables: null\n";
    assert_eq!(parse(body).unwrap(), KubeProxyConfig::default());

    let of_v6 = parse("bindAddress: '::'\n").unwrap();
    assert_eq!(of_v6.healthz_bind_address, "[::]:10256".parse().ok());
    assert_eq!(of_v6.metrics_bind_address, "[::1]:10249".parse().ok());
}

#[test]
fn another_kind_is_named_and_not_its_fields() {
    let map =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-proxy}\ndata: {config.conf: ''}\n";
    let error = KubeProxyConfig::parse("x", map).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.starts_with("x:2: kind: is ConfigMap, inside of which"),
        "{error}"
    );
    let other =
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: x\n";
    assert_eq!(
        KubeProxyConfig::parse("x", other).unwrap_err().to_string(),
        "x:2: kind: must be KubeProxyConfiguration\nx:1: apiVersion: must be kubeproxy.config.k8s.io/v1alpha1"
    );
}

/// Every field is one of: honoured, mapped, idle, warned about, refused; only the last two say something.
#[test]
fn every_field_is_accounted_for() {
    let warnings = |body: &str| parse(body).unwrap().warnings;
    for body in [
        "clientConnection: {kubeconfig: /etc/kube, qps: 5, burst: 10}\nconfigSyncPeriod: 15m0s\n",
        "bindAddressHardFail: true\nhealthzBindAddress: 0.0.0.0:10256\noomScoreAdj: -999\n",
        "logging: {flushFrequency: 0, verbosity: 0, options: {json: {infoBufferSize: '0'}}}\n",
        "logging: {flushFrequency: 5s, format: text, verbosity: 0, options: {json: {infoBufferSize: '0'}}}\n",
        "ipvs: {strictARP: false, tcpTimeout: 0s, excludeCIDRs: null}\nportRange: ''\n",
    ] {
        assert_eq!(warnings(body), Vec::<String>::new(), "{body}");
    }
    for (body, field) in [
        ("logging: {verbosity: 4}\n", "logging"),
        ("logging: {format: json}\n", "logging"),
        ("enableProfiling: true\n", "enableProfiling"),
        ("portRange: 1000-2000\n", "portRange"),
        (
            "showHiddenMetricsForVersion: '1.29'\n",
            "showHiddenMetricsForVersion",
        ),
        ("ipvs: {strictARP: true}\n", "ipvs.strictARP"),
        ("iptables: {masqueradeBit: 15}\n", "iptables.masqueradeBit"),
        (
            "featureGates: {NFTablesProxyMode: true}\n",
            "featureGates.NFTablesProxyMode",
        ),
    ] {
        assert_eq!(warnings(body), [format!("{field} has no effect here")]);
    }
    for body in [
        "windowsRunAsService: true\n",
        "winkernel: {networkName: x}\n",
        "oomScoreAdj: 1001\n",
        "iptables: {masqueradeBit: 32}\n",
        "nodePortAddresses: [all]\n",
        "healthzBindAddress: somewhere\n",
        "conntrack: {maxPerCores: 1}\n",
    ] {
        let refused = parse(body).unwrap_err();
        assert!(refused.starts_with("kube-proxy.yaml:3: "), "{refused}");
    }
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, milliseconds) in [
        ("24h0m0s", 86_400_000),
        ("1.5s", 1500),
        ("300ms", 300),
        ("0", 0),
        ("0s", 0),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_millis(milliseconds)),
            "{text}"
        );
    }
    for text in ["", "5", "1x", "-1s", "s", "1.2.3s"] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

/// LoadBalancerIPMode and TopologyAwareHints are beta, ServiceTrafficDistribution is alpha.
#[test]
fn a_gate_of_all_of_a_stage_gives_way_to_one_that_is_named() {
    for (gates, expected) in [
        ("{}", [true, true, false]),
        ("{AllBeta: false}", [false, false, false]),
        ("{AllBeta: true}", [true, true, false]),
        ("{AllAlpha: true}", [true, true, true]),
        ("{AllAlpha: true, AllBeta: false}", [false, false, true]),
        (
            "{AllBeta: false, LoadBalancerIPMode: true}",
            [true, false, false],
        ),
        (
            "{TopologyAwareHints: false, AllBeta: true}",
            [true, false, false],
        ),
        (
            "{AllAlpha: true, ServiceTrafficDistribution: false}",
            [true, true, false],
        ),
    ] {
        let config = parse(&format!("featureGates: {gates}\n")).unwrap();
        let found = [
            config.load_balancer_ip_mode,
            config.topology_aware_hints,
            config.service_traffic_distribution,
        ];
        assert_eq!(found, expected, "{gates}");
        assert_eq!(config.warnings, [""; 0], "{gates}");
    }
}

/// What kube-proxy 1.30 refuses, and what makes rules that iptables refuses.
#[test]
fn what_kube_proxy_could_not_start_with_is_refused() {
    for (body, expected) in [
        (
            "clusterCIDR: 10.0.0.0/8, fd00::/48\n",
            "kube-proxy.yaml:3: clusterCIDR: ` fd00::/48` is not a CIDR",
        ),
        (
            "clusterCIDR: 10.0.0.0/8,\n",
            "kube-proxy.yaml:3: clusterCIDR: `` is not a CIDR",
        ),
        (
            "clusterCIDR: ' '\n",
            "kube-proxy.yaml:3: clusterCIDR: ` ` is not a CIDR",
        ),
        (
            "detectLocalMode: NodeCIDR\nclusterCIDR: all\n",
            "kube-proxy.yaml:4: clusterCIDR: `all` is not a CIDR",
        ),
        (
            "configSyncPeriod: x\n",
            "kube-proxy.yaml:3: configSyncPeriod: `x` is not a duration; write one like 30s or 1h0m0s",
        ),
        (
            "healthzBindAddress: 0.0.0.0:0\n",
            "kube-proxy.yaml:3: healthzBindAddress: `0.0.0.0:0` is not ADDRESS:PORT; write one like 0.0.0.0:10256",
        ),
        (
            "metricsBindAddress: 127.0.0.1:0\n",
            "kube-proxy.yaml:3: metricsBindAddress: `127.0.0.1:0` is not ADDRESS:PORT; write one like 127.0.0.1:10249",
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: abcdefghijklmnop}\n",
            "kube-proxy.yaml:4: detectLocal.bridgeInterface: `abcdefghijklmnop` has more than 15 bytes, and iptables \
             takes no rule with it",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: abcdefghijklmno}\n",
            "kube-proxy.yaml:4: detectLocal.interfaceNamePrefix: `abcdefghijklmno` has more than 14 bytes, and iptables \
             takes no rule with it",
        ),
        (
            "mode: nftables\niptables: {masqueradeBit: 40}\n",
            "kube-proxy.yaml:4: iptables.masqueradeBit: 40 is not from 0 to 31",
        ),
        (
            "mode: nftables\niptables: {syncPeriod: 1s, minSyncPeriod: 5s}\n",
            "kube-proxy.yaml:4: iptables.minSyncPeriod: is longer than syncPeriod; make it as long at most",
        ),
        (
            "mode: ipvs\nipvs: {syncPeriod: 1s, minSyncPeriod: 5s}\n",
            "kube-proxy.yaml:4: ipvs.minSyncPeriod: is longer than syncPeriod; make it as long at most",
        ),
        (
            "mode: ipvs\nipvs: {tcpTimeout: -1s}\n",
            "kube-proxy.yaml:4: ipvs.tcpTimeout: `-1s` is not a duration; write one like 30s or 1h0m0s",
        ),
        (
            "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, foo]}\n",
            "kube-proxy.yaml:4: ipvs.excludeCIDRs[1]: `foo` is not a CIDR",
        ),
        (
            "nodePortAddresses: [' 10.0.0.0/8']\n",
            "kube-proxy.yaml:3: nodePortAddresses[0]: ` 10.0.0.0/8` is not a CIDR (and `primary` stands alone)",
        ),
    ] {
        assert_eq!(parse(body).unwrap_err(), expected);
    }
    for body in [
        "clusterCIDR: 10.0.0.0/8,fd00::/48\nconfigSyncPeriod: 0s\n",
        "mode: iptables\nipvs: {syncPeriod: 1s, minSyncPeriod: 5s, excludeCIDRs: [foo]}\n",
        "mode: ipvs\nipvs: {syncPeriod: 5s, minSyncPeriod: 5s, tcpFinTimeout: 1m, excludeCIDRs: [fd00::/48]}\n",
        "healthzBindAddress: 010.010.010.010:1\n",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: abcdefghijklmno}\n",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: abcdefghijklmn}\n",
    ] {
        assert!(parse(body).is_ok(), "{body}");
    }
}
