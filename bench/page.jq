# The page docs/benchmarks.md from the reports of all benchmarks, aim by aim.
def two: . * 100 | round / 100 | tostring;
def short: if . == null then "-" elif . >= 1000 then round | tostring elif . >= 100 then . * 10 | round / 10 | tostring else two end;
def of($report; $services; $dataplane; $placement; $metric):
  [$report.rows[] | select(.services == $services and .dataplane == $dataplane and .placement == $placement and .metric == $metric
    and (.probed == null or .probed == "end"))][0];
def in_the_middle($report; $services; $dataplane; $placement; $metric):
  [$report.rows[] | select(.services == $services and .dataplane == $dataplane and .placement == $placement and .metric == $metric
    and .probed == "middle")][0];
def updated($report; $endpoints; $dataplane; $metric):
  [$report.rows[] | select(.endpoints == $endpoints and .dataplane == $dataplane and .metric == $metric)][0];
def under($report; $attack; $dataplane; $metric):
  [$report.rows[] | select(.attack == $attack and .dataplane == $dataplane and .metric == $metric)][0];
def median($row): if $row == null then null else $row.median end;
def three: . * 1000 | round / 1000 | tostring;
def by($a; $b): if $a == null or $b == null or $b == 0 then "-" else $a / $b | three end;
def spread($row): if $row == null then "-" else "\($row.median | short) (\($row.min | short) to \($row.max | short))" end;
def verdict($ok): if $ok then "yes" else "no" end;
def most($report): [$report.rows[].services] | max;
def instructed:
  if . == "first" then "the first packet of a flow, UDP over IPv4"
  elif . == "first-masqueraded" then "the same, masqueraded"
  elif . == "expired" then "the end of such a flow, by the sweep"
  else split("-") | "a packet of an established flow, \(.[0] | ascii_upcase) over \(.[1] | sub("ip"; "IP"))" end;
def in_words: if . == 1 then "1 Service" else "\(.) Services" end;

$fastpath[0] as $f | $attack[0] as $a | $connections[0] as $c | $update[0] as $u | $snat[0] as $s
| $attacked[0] as $n | $busy[0] as $b
| $c.machine as $m
| def row($name; $aim; $ours; $peers; $ok): "| \($name) | \($aim) | \($ours) | \($peers) | \(if $aim == "-" then "-" else verdict($ok) end) |";
  def in_limits($what; $row): row("established packet in memory, \($what), \($row.flows) flows, batch 64"; "1.5 L";
    "\($row.ratio | two) L (\($row.ratio_spread | map(two) | join(" to "))), \($row.ns_per_packet | short) ns";
    "L \($row.limit_ns_per_packet | short) ns"; $row.ratio <= 1.5);
  def established: $f.rows[] | select(.threads == 1 and .batch == 64) | in_limits("UDP over IPv4"; .);
  def traffic: "\(.protocol | ascii_upcase) over \(.family | sub("ip"; "IP"))";
  def kinds: $f.kinds[1:][] | in_limits(traffic; .);
  # Ours by that of tun-copy, also of times: there the aim is an upper limit, as far from 1 as the lower one of rates.
  def in_lab($report; $metric; $placement; $services; $least):
    (median(of($report; $services; "penstock"; $placement; $metric))) as $ours
    | of($report; $services; "penstock"; $placement; $metric) as $own
    | median(of($report; $services; "tun-copy"; $placement; $metric)) as $copy
    | if $own == null then empty else
        ($own.unit) as $unit
        | (if $copy != null and $copy > 0 then $ours / $copy else null end) as $ratio
        | (if $least == null then "-" elif $unit == "us" then "T / \($least)" else "\($least) T" end) as $aim
        | row("\($metric), \($services | in_words), \($placement)"; $aim;
            "\(if $ratio == null then "-" else $ratio | three end) T; \(spread($own)) \($unit)";
            (["tun-copy", "plain", "iptables", "nftables"]
             | map(. as $name | "\($name) \(spread(of($report; $services; $name; $placement; $metric)))") | join(", "));
            $ratio != null and $least != null and (if $unit == "us" then $ratio * $least <= 1 else $ratio >= $least end)) end;
  def place($dataplane; $placement; $services):
    median(of($c; $services; $dataplane; $placement; "connections_per_second")) as $last
    | median(in_the_middle($c; $services; $dataplane; $placement; "connections_per_second")) as $middle
    | if $middle == null then $last | short else "\($middle | short) / \($last | short)" end;
  def peers_update($endpoints; $metric):
    ["iptables", "nftables"] | map(. as $peer
      | updated($u; $endpoints; $peer; $metric) as $row
      | updated($u; $endpoints; $peer; "\($metric)_given_up_after") as $given_up
      | if $row != null then "\($peer) \($row.median | short) ms\(if $row.runs == 1 then " (once)" else "" end)"
        elif $given_up != null then "\($peer) given up after \($given_up.median / 1000 | short) s"
        else empty end) | join(", ") | if . == "" then "-" else . end;
  [
    "# Benchmarks",
    "",
    "Written by `bench/write-page`, which runs the commands; do not edit it. All rows of one benchmark were measured in turns in",
    "one run; medians, in brackets the least and the most of the rounds. `bench/README.md` says how it is measured.",
    "L is the bare loop in memory, T the bare copy loop through the same TUN devices (`tun-copy`). All ratios are ours by theirs: of",
    "times, aims are the most that may be, of rates the least.",
    "",
    "\($m.processors) x \($m.processor), Linux \($m.kernel).",
    "Settings: rounds of \($c.settings.milliseconds) ms where time counts, agents of \($c.settings.workers) worker with offloads; \($c.settings.iptables),",
    "\($c.settings.nftables), nf_conntrack_max \($c.settings.nf_conntrack_max). The client's times are of an HDR histogram.",
    "",
    "| run through labs | rounds | began | load before and after |",
    "| --- | --- | --- | --- |",
    ([["connections", $c], ["latency", $latency[0]], ["bulk", $bulk[0]], ["packets", $packets[0]], ["latency with `--busy-poll`", $b],
      ["snat", $s], ["attack", $n], ["update", $u]][]
     | "| \(.[0]) | \(.[1].settings.rounds) | \(.[1].began) | \(.[1].machine.load) and \(.[1].machine.load_after) |"),
    "",
    "The load before a run is that of the run before it, too, but for the first. What was measured in memory ended at \($in_memory).",
    (if $c.busy then "The machine was busy with other programs when the first one began (`--busy-is-fine`): ratios say more than figures." else empty end),
    "",
    "| benchmark | aim | ours | peers in the same run | reached |",
    "| --- | --- | --- | --- | --- |",
    established, kinds,
    ([$f.churn[] | select(.threads == 2)] as $churn
     # The aim is for 50,000 and no more; what is nearest to it from above.
     | ([$churn[] | select(.new_flows_per_second >= 50000)] | max_by(.packets_per_new_flow)) as $least
     | $churn[] | .flows as $flows
     | [$f.rows[] | select(.flows == $flows and .threads == 2 and .batch == 64)][0] as $without
     | row("two threads, \(.new_flows_per_second | short) new flows per second"; if . == $least then "1.8 times one thread" else "-" end;
           "\(.scaling | two) times"; "without new flows \($without.scaling | two) times, L \($without.limit_scaling | two) times";
           if . == $least then .scaling >= 1.8 else null end)),
    ($f.new_flows[]
     | row("new flows in memory\(if .masquerade then ", masqueraded" else "" end): insert, NAT, expire, one core"; "5 million/s";
           "\(.flows_per_second / 1e6 | two) million/s"; "-"; .flows_per_second >= 5e6),
       ((1e9 / .flows_per_second) as $nanoseconds
        | [$f.rows[] | select(.flows == 1000000 and .threads == 1 and .batch == 64)][0].limit_ns_per_packet as $limit
        | if $limit == null then empty else
          row("the same in bare loops"; "9.5 L (5 million/s where L took 21 ns)"; "\($nanoseconds / $limit | two) L, \($nanoseconds | short) ns";
              "L \($limit | short) ns at 1000000 flows"; $nanoseconds <= 9.5 * $limit) end)),
    ($f.memory | row("memory per translated flow, \(.flows) flows"; "128 bytes";
           "\(.bytes_per_flow | short) bytes, \(.resident_bytes_per_flow | short) resident"; "the kernel's 278 are of its structures, not of this run"; .bytes_per_flow <= 128)),
    (["one-cpu", "apart"][] as $placement | ([$c.rows[].services] | unique)[] as $services
     | in_lab($c; "connections_per_second"; $placement; $services; 0.95)),
    (["one-cpu", "apart"][] as $placement | most($c) as $many
     | median(of($c; $many; "penstock"; $placement; "connections_per_second")) as $at_many
     | median(of($c; 1; "penstock"; $placement; "connections_per_second")) as $at_one
     | median(of($c; $many; "iptables"; $placement; "connections_per_second")) as $iptables
     | if $at_many == null then empty else
       median(of($c; $many; "tun-copy"; $placement; "connections_per_second")) as $copy_at_many
       | median(of($c; 1; "tun-copy"; $placement; "connections_per_second")) as $copy_at_one
       | row("connections per second at \($many) Services by those at 1, \($placement)"; "0.97"; by($at_many; $at_one);
           "tun-copy, in whose labs are no Services, \(by($copy_at_many; $copy_at_one))"; $at_one != null and $at_many >= 0.97 * $at_one),
       (median(of($c; $many; "tun-copy"; $placement; "connections_per_second")) as $copy
        | median(in_the_middle($c; $many; "iptables"; $placement; "connections_per_second")) as $halfway
        | row("the same by iptables at \($many) Services, the probed one at the end, \($placement)"; "4"; by($at_many; $iptables);
              "iptables \($iptables | short), in the middle \($halfway | short); tun-copy, the limit, \(by($copy; $iptables)) times iptables";
              $iptables != null and $at_many >= 4 * $iptables)) end),
    (["one-cpu", "apart"][] as $placement
     | in_lab($latency[0]; "requests_per_second"; $placement; 1; 0.95),
       in_lab($latency[0]; "round_trip_p50"; $placement; 1; 0.95),
       in_lab($latency[0]; "round_trip_p99"; $placement; 1; 0.95),
       in_lab($latency[0]; "round_trip_p99.9"; $placement; 1; null),
       in_lab($bulk[0]; "throughput"; $placement; 1; 0.95),
       (median(of($bulk[0]; 1; "penstock"; $placement; "throughput")) as $ours
        | median(of($bulk[0]; 1; "nftables"; $placement; "throughput")) as $nftables
        | if $ours == null then empty else
          row("bulk by nftables, \($placement)"; "0.85 N"; by($ours; $nftables); "nftables \($nftables | short) Gbit/s";
              $nftables != null and $ours >= 0.85 * $nftables) end),
       in_lab($packets[0]; "packets_received_per_second"; $placement; 1; 0.95)),
    ((([$u.rows[].endpoints | select(. != null)] | unique | map(select(. != 10)))[], 10) as $endpoints
     | most($u) as $many
     | ([["change_to_effect_json", "change_to_effect", "change of one endpoint until a packet goes the new way, from JSON", 1],
         ["change_to_effect", "change_to_effect", "the same from YAML", 1],
         ["cold_load_json", "cold_load", "cold load, from JSON", 100], ["cold_load", "cold_load", "the same from YAML", 100]][]
        as [$metric, $of_peers, $name, $aim]
        | updated($u; $endpoints; "penstock"; $metric) as $own
        | if $own == null then empty else
          row("\($name), \($many) Services of \($endpoints) endpoint\(if $endpoints == 1 then "" else "s" end)"; "\($aim) ms";
              "\($own.median | short) ms (\($own.min | short) to \($own.max | short))"; peers_update($endpoints; $of_peers); $own.median <= $aim) end),
       (median(updated($u; $endpoints; "penstock"; "cold_load_json")) as $ours
        | median(updated($u; $endpoints; "iptables"; "cold_load")) as $iptables
        | if $ours == null or $iptables == null or $endpoints != 1 then empty else
          row("cold load, from JSON, by that of iptables"; "0.34 (100 ms where iptables took 0.29 s)"; by($ours; $iptables); "iptables \($iptables | short) ms";
              $ours <= 0.34 * $iptables) end),
       (["read_objects", "read_objects_json", "compile_table", "index_table", "objects_to_table"][] as $metric | updated($u; $endpoints; "penstock"; $metric) as $own
        | if $own == null then empty else "| of it \($metric) | - | \($own.median | short) ms (\($own.min | short) to \($own.max | short)) | - | - |" end)),
    (["50", "99", "99.9"][] as $share
     | of($s; 1; "penstock"; "any"; "delivered_from_\($share)_percent") as $own
     | if $own == null then empty else
       row("SNAT from \($share) % of the ports: flows that arrive"; "100 %"; "\($own.median | short) % (\($own.min | short) to \($own.max | short))";
           (["iptables", "nftables"] | map(. as $peer | "\($peer) \(median(of($s; 1; $peer; "any"; "delivered_from_\($share)_percent")) | short) %") | join(", "));
           $own.min >= 100) end),
    ($f.ports[] | row("allocation of a port in memory, \(.taken * 100 | two) % taken"; "500 ns, every one found";
           "\(.ns_per_allocation | short) ns, \(.found) of \(.tried)"; "-"; .ns_per_allocation <= 500 and .found == .tried)),
    ((["syn-flood", "first packets of 2 tables, from many sources"], ["scan", "scan of 10 tables from one source"],
      ["ports-taken", "99.9 % of the ports towards an endpoint taken"], ["full-table", "more answered flows than the table has room for"]) as [$attack, $what]
     | under($n; $attack; "penstock"; "established_kept") as $kept
     | if $kept == null then empty else
       def seen($dataplane): median(under($n; $attack; $dataplane; "established_kept")) as $kept
         | median(under($n; $attack; $dataplane; "new_flows_succeeded")) as $new
         | median(under($n; $attack; $dataplane; "new_flow_p99")) as $p99
         | median(under($n; $attack; $dataplane; "established_p99")) as $echo
         | median(under($n; $attack; $dataplane; "last_ports_found")) as $ports
         | if $kept == null then "-" else
           "\($kept | short) % of connections kept (a byte there and back: p99 \($echo / 1000 | short) ms), \($new | short) % of new ones made (p99 \($p99 / 1000 | short) ms)\(if $ports == null then "" else "; \($ports | short) % of flows found one of the last ports" end)" end;
       row("through a lab, while attacked: \($what)"; "no established flow lost\(if $attack == "full-table" then "" else ", new ones succeed" end)"; seen("penstock"); "iptables " + seen("iptables");
           $kept.min >= 100 and ($attack == "full-table" or under($n; $attack; "penstock"; "new_flows_succeeded").median >= 99)) end),
    ([$a.rows[] | select(.attack | startswith("as many tuples"))][0].ns_per_attack_packet as $uniform
     | $a.rows[] | select(.attack | startswith("tuples crafted"))
     | row("attack: a crafted tuple by one at random, in memory"; "2 times the cost"; "\(by(.ns_per_attack_packet; $uniform)) times, \(.ns_per_attack_packet | short) ns";
           "at random \($uniform | short) ns"; .ns_per_attack_packet <= 2 * $uniform)),
    ($a.rows[] | select(.attack | startswith("as many tuples") | not) | (.attack | startswith("table full")) as $is_full
     | row("attack: \(.attack)"; "no established flow lost, 2 times the cost\(if $is_full then "" else ", 99 % of new ones made" end)";
           "\(.established_lost) of \(.established_packets) lost, \(.ratio | two) times; new flows \(.new_flows_succeeded) of \(.new_flows)"; "-";
           .established_lost == 0 and .ratio <= 2 and ($is_full or .new_flows_succeeded >= 0.99 * .new_flows))),
    "",
    "## Where the probed Service stands",
    "",
    "TCP connections per second, the probed Service in the middle / at the end of all Services; kube-proxy puts them in another",
    "order at every sync, so on average a Service stands in the middle.",
    "",
    "| Services | placement | penstock | iptables | nftables |",
    "| --- | --- | --- | --- | --- |",
    (["one-cpu", "apart"][] as $placement | ([$c.rows[].services] | unique)[] as $services
     | if of($c; $services; "penstock"; $placement; "connections_per_second") == null then empty else
       "| \($services) | \($placement) | \(place("penstock"; $placement; $services)) | \(place("iptables"; $placement; $services)) | \(place("nftables"; $placement; $services)) |" end),
    "",
    "## The agent with `--busy-poll`",
    "",
    "| metric | placement | penstock | with --busy-poll | times |",
    "| --- | --- | --- | --- | --- |",
    (["one-cpu", "apart"][] as $placement | ["requests_per_second", "round_trip_p50", "round_trip_p99"][] as $metric
     | of($b; 1; "penstock"; $placement; $metric) as $sleeps | of($b; 1; "busy-poll"; $placement; $metric) as $polls
     | if $polls == null then empty else
       "| \($metric) | \($placement) | \($sleeps.median | short) \($sleeps.unit) | \($polls.median | short) \($polls.unit) | \(by($polls.median; $sleeps.median)) |" end),
    "",
    "Polling takes a whole processor, also while nothing comes.",
    "",
    $why,
    "## In memory, all rows",
    "",
    "Before each round the benchmark waits until a loop that keeps a core busy runs at its full speed (\($f.waited.seconds | short) s in all;",
    "\($f.waited.rounds_disturbed) rounds were measured beside others). Two threads share what one has where two processors are halves of a core.",
    "Figures of two threads are of both together, as far as both ran at the same time.",
    "",
    "| flows | threads | batch | ns per packet | limit | ratio | spread | times one thread |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ($f.rows[] | "| \(.flows) | \(.threads) | \(.batch) | \(.ns_per_packet | short) | \(.limit_ns_per_packet | short) | \(.ratio | two) | \(.ratio_spread | map(two) | join(" to ")) | \(.scaling | two) |"),
    "",
    "| traffic | flows | ns per packet | limit | ratio | spread | times UDP over IPv4 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ($f.kinds[] | "| \(traffic) | \(.flows) | \(.ns_per_packet | short) | \(.limit_ns_per_packet | short) | \(.ratio | two) | \(.ratio_spread[0] | two) to \(.ratio_spread[1] | two) | \(.ratio_to_udp_ipv4 | two) |"),
    "",
    "Instructions (`penstock bench instructions`), which no other program changes:",
    "",
    "| of | instructions |",
    "| --- | --- |",
    ($instructions[0].rows[] | "| \(.kind | instructed) | \(.instructions | round) |"),
    "",
    "The table alone, beside maps of the standard kind. *One by one* it is asked as they are, without batches whose waits for",
    "memory overlap; its pages are huge ones, theirs of the usual size.",
    "",
    "| table | flows | threads | ns per lookup | times ours |",
    "| --- | --- | --- | --- | --- |",
    ($f.tables[] | "| \(.table) | \(.flows) | \(.threads) | \(.ns_per_lookup | short) | \(.ratio | two) |")
  ] | .[]
