# The page docs/benchmarks.md from the reports of all benchmarks: DESIGN.md, section 10, row by row.
def two: . * 100 | round / 100 | tostring;
def short: if . == null then "-" elif . >= 1000 then round | tostring elif . >= 100 then . * 10 | round / 10 | tostring else two end;
def of($report; $services; $dataplane; $placement; $metric):
  [$report.rows[] | select(.services == $services and .dataplane == $dataplane and .placement == $placement and .metric == $metric)][0];
def median($row): if $row == null then null else $row.median end;
def by($a; $b): if $a == null or $b == null or $b == 0 then "-" else $a / $b | two end;
def verdict($ok): if $ok then "yes" else "no" end;
def most($report): [$report.rows[].services] | max;

$fastpath[0] as $f | $attack[0] as $a | $connections[0] as $c | $update[0] as $u | $snat[0] as $s
| $c.machine as $m
| def row($name; $aim; $ours; $peers; $ok): "| \($name) | \($aim) | \($ours) | \($peers) | \(verdict($ok)) |";
  def established($flows):
    [$f.rows[] | select(.flows == $flows and .threads == 1 and .batch == 64)][0]
    | if . == null then empty else
        row("established packet in memory, \($flows) flows, batch 64"; "1.5 L";
            "\(.ratio | two) L (\(.ratio_spread | map(two) | join(" to "))), \(.ns_per_packet | short) ns";
            "L \(.limit_ns_per_packet | short) ns"; .ratio <= 1.5) end;
  def in_lab($report; $metric; $placement; $services; $aim; $least):
    (median(of($report; $services; "penstock"; $placement; $metric))) as $ours
    | of($report; $services; "penstock"; $placement; $metric) as $own
    | median(of($report; $services; "tun-copy"; $placement; $metric)) as $copy
    | if $own == null then empty else
        ($own.unit) as $unit
        | (if $unit == "us" then (if $ours > 0 and $copy != null then $copy / $ours else null end)
           else (if $copy != null and $copy > 0 then $ours / $copy else null end) end) as $ratio
        | row("\($metric), \($services) Services, \($placement)"; $aim;
            "\($ratio | short) T; \($ours | short) \($unit) (\($own.min | short) to \($own.max | short))";
            (["tun-copy", "plain", "iptables", "nftables"]
             | map(. as $name | "\($name) \(median(of($report; $services; $name; $placement; $metric)) | short)") | join(", "));
            $ratio != null and $ratio >= $least) end;
  [
    "# Benchmarks",
    "",
    "Written by `bench/write-page`, which runs the commands; do not edit it. All rows of one benchmark were measured in turns in",
    "one run; medians, in brackets the least and the most of the rounds. `bench/README.md` says how it is measured.",
    "L is the bare loop in memory, T the bare copy loop through the same TUN devices (`tun-copy`).",
    "",
    "\($m.processors) x \($m.processor), Linux \($m.kernel); load \($m.load) before the runs through labs, \($snat[0].machine.load_after) after them.",
    "",
    "| benchmark | aim | ours | peers in the same run | reached |",
    "| --- | --- | --- | --- | --- |",
    established(1000), established(100000), established(1000000), established(10000000),
    ($f.churn[] | select(.threads == 2)
     | row("two threads, \(.new_flows_per_second | short) new flows per second"; "1.8 times one thread";
           "\(.scaling | two) times"; "-"; .scaling >= 1.8)),
    ($f.new_flows[]
     | row("new flows in memory\(if .masquerade then ", masqueraded" else "" end): insert, NAT, expire, one core"; "5 million/s";
           "\(.flows_per_second / 1e6 | two) million/s"; "-"; .flows_per_second >= 5e6)),
    ($f.memory | row("memory per translated flow, \(.flows) flows"; "128 bytes";
           "\(.bytes_per_flow | short) bytes, \(.resident_bytes_per_flow | short) resident"; "kernel 278"; .bytes_per_flow <= 128)),
    (["one-cpu", "apart"][] as $placement | ([$c.rows[].services] | unique)[] as $services
     | in_lab($c; "connections_per_second"; $placement; $services; "0.95 T"; 0.95)),
    (["one-cpu", "apart"][] as $placement | most($c) as $many
     | median(of($c; $many; "penstock"; $placement; "connections_per_second")) as $at_many
     | median(of($c; 1; "penstock"; $placement; "connections_per_second")) as $at_one
     | median(of($c; $many; "iptables"; $placement; "connections_per_second")) as $iptables
     | if $at_many == null then empty else
       row("connections per second at \($many) Services by those at 1, \($placement)"; "0.97"; by($at_many; $at_one); "-";
           $at_one != null and $at_many >= 0.97 * $at_one),
       row("the same by iptables at \($many) Services, \($placement)"; "4"; by($at_many; $iptables); "iptables \($iptables | short)";
           $iptables != null and $at_many >= 4 * $iptables) end),
    (["one-cpu", "apart"][] as $placement
     | in_lab($latency[0]; "requests_per_second"; $placement; 1; "0.95 T"; 0.95),
       in_lab($latency[0]; "round_trip_p50"; $placement; 1; "0.95 T"; 0.95),
       in_lab($latency[0]; "round_trip_p99"; $placement; 1; "0.95 T"; 0.95),
       in_lab($bulk[0]; "throughput"; $placement; 1; "0.95 T"; 0.95),
       (median(of($bulk[0]; 1; "penstock"; $placement; "throughput")) as $ours
        | median(of($bulk[0]; 1; "nftables"; $placement; "throughput")) as $nftables
        | if $ours == null then empty else
          row("bulk by nftables, \($placement)"; "0.85 N"; by($ours; $nftables); "nftables \($nftables | short) Gbit/s";
              $nftables != null and $ours >= 0.85 * $nftables) end),
       in_lab($packets[0]; "packets_received_per_second"; $placement; 1; "0.95 T"; 0.95)),
    ([["change_to_effect", "change of one endpoint until a packet goes the new way", 1], ["cold_load", "cold load", 100]][] as [$metric, $name, $aim]
     | most($u) as $many | of($u; $many; "penstock"; "any"; $metric) as $own
     | if $own == null then empty else
       row("\($name), \($many) Services of 10 endpoints"; "\($aim) ms"; "\($own.median | short) ms (\($own.min | short) to \($own.max | short))";
           (["iptables", "nftables"] | map(. as $peer | "\($peer) \(median(of($u; $many; $peer; "any"; $metric)) | short) ms") | join(", "));
           $own.median <= $aim) end),
    (["read_objects", "compile_table", "index_table"][] as $metric | most($u) as $many | of($u; $many; "penstock"; "in-process"; $metric) as $own
     | if $own == null then empty else "| of it \($metric) | - | \($own.median | short) ms (\($own.min | short) to \($own.max | short)) | - | - |" end),
    (["50", "99", "99.9"][] as $share
     | of($s; 1; "penstock"; "any"; "delivered_from_\($share)_percent") as $own
     | if $own == null then empty else
       row("SNAT from \($share) % of the ports: flows that arrive"; "100 %"; "\($own.median | short) % (\($own.min | short) to \($own.max | short))";
           (["iptables", "nftables"] | map(. as $peer | "\($peer) \(median(of($s; 1; $peer; "any"; "delivered_from_\($share)_percent")) | short) %") | join(", "));
           $own.min >= 100) end),
    ($f.ports[] | row("allocation of a port in memory, \(.taken * 100 | two) % taken"; "500 ns, every one found";
           "\(.ns_per_allocation | short) ns, \(.found) of \(.tried)"; "-"; .ns_per_allocation <= 500 and .found == .tried)),
    ($a.rows[] | row("attack: \(.attack)"; "no established flow lost, 2 times the cost";
           "\(.established_lost) of \(.established_packets) lost, \(.ratio | two) times; new flows \(.new_flows_succeeded) of \(.new_flows)"; "-";
           .established_lost == 0 and .ratio <= 2)),
    "",
    "## Why some aims are not reached",
    "",
    "- Established packets: the bare loop knows that each packet is a datagram of IPv4 without options. The path must find out:",
    "  it parses, verifies lengths, tells fragments and errors apart, carries addresses of either family in 16 bytes, and checks",
    "  that the entry that it read was of one life. The profile below says what each costs.",
    "- New flows: an entry is found by two tuples, so two buckets are filled and both are searched for rivals, behind a full fence;",
    "  the sweep does the same backwards.",
    "- Cold load: the agent is started anew; it reads and checks all objects from files, compiles them, and makes its devices. The",
    "  rows *of it* say what reading, compiling and indexing take; the peers' rows begin with rules that are ready made. For the",
    "  change of one endpoint the slice has a file of its own, and the time includes the notice of the file system.",
    "- With a single packet on its way, as in request and response, nothing overlaps: reading from and writing to a TUN device is",
    "  what takes the time, for the bare copy loop as well.",
    "",
    "## In memory, all rows",
    "",
    "| flows | threads | batch | ns per packet | limit | ratio | spread | times one thread |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ($f.rows[] | "| \(.flows) | \(.threads) | \(.batch) | \(.ns_per_packet | short) | \(.limit_ns_per_packet | short) | \(.ratio | two) | \(.ratio_spread | map(two) | join(" to ")) | \(.scaling | two) |"),
    "",
    "| traffic | flows | ns per packet | limit | ratio | spread | times UDP over IPv4 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ($f.kinds[] | "| \(.protocol) over \(.family) | \(.flows) | \(.ns_per_packet | short) | \(.limit_ns_per_packet | short) | \(.ratio | two) | \(.ratio_spread[0] | two) to \(.ratio_spread[1] | two) | \(.ratio_to_udp_ipv4 | two) |"),
    "",
    "The table alone, beside maps of the standard kind:",
    "",
    "| table | flows | threads | ns per lookup | times ours |",
    "| --- | --- | --- | --- | --- |",
    ($f.tables[] | "| \(.table) | \(.flows) | \(.threads) | \(.ns_per_lookup | short) | \(.ratio | two) |")
  ] | .[]
