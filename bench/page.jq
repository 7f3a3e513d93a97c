# The page docs/benchmarks.md from the reports of all benchmarks: DESIGN.md, section 10, row by row.
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
def by($a; $b): if $a == null or $b == null or $b == 0 then "-" else $a / $b | two end;
def verdict($ok): if $ok then "yes" else "no" end;
def most($report): [$report.rows[].services] | max;
def in_words: if . == 1 then "1 Service" else "\(.) Services" end;

$fastpath[0] as $f | $attack[0] as $a | $connections[0] as $c | $update[0] as $u | $snat[0] as $s
| $attacked[0] as $n | $busy[0] as $b
| $c.machine as $m
| def row($name; $aim; $ours; $peers; $ok): "| \($name) | \($aim) | \($ours) | \($peers) | \(if $aim == "-" then "-" else verdict($ok) end) |";
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
        | row("\($metric), \($services | in_words), \($placement)"; $aim;
            "\($ratio | short) T; \($ours | short) \($unit) (\($own.min | short) to \($own.max | short))";
            (["tun-copy", "plain", "iptables", "nftables"]
             | map(. as $name | "\($name) \(median(of($report; $services; $name; $placement; $metric)) | short)") | join(", "));
            $ratio != null and $ratio >= $least) end;
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
    "L is the bare loop in memory, T the bare copy loop through the same TUN devices (`tun-copy`).",
    "",
    "\($m.processors) x \($m.processor), Linux \($m.kernel); load \($m.load) before the runs through labs.",
    "Settings: \($c.settings.rounds) rounds of \($c.settings.milliseconds) ms, agents of \($c.settings.workers) worker with offloads; \($c.settings.iptables),",
    "\($c.settings.nftables), nf_conntrack_max \($c.settings.nf_conntrack_max). The client's times are of an HDR histogram.",
    "",
    "| benchmark | aim | ours | peers in the same run | reached |",
    "| --- | --- | --- | --- | --- |",
    established(1000), established(100000), established(1000000), established(10000000),
    ($f.churn[] | select(.threads == 2) | .flows as $flows
     | def limit($threads): [$f.rows[] | select(.flows == $flows and .threads == $threads and .batch == 64)][0].limit_ns_per_packet;
       row("two threads, \(.new_flows_per_second | short) new flows per second"; "1.8 times one thread";
           "\(.scaling | two) times"; "L without new flows \(limit(1) / limit(2) | two) times"; .scaling >= 1.8)),
    ($f.new_flows[]
     | row("new flows in memory\(if .masquerade then ", masqueraded" else "" end): insert, NAT, expire, one core"; "5 million/s";
           "\(.flows_per_second / 1e6 | two) million/s"; "-"; .flows_per_second >= 5e6),
       ((1e9 / .flows_per_second) as $nanoseconds
        | [$f.rows[] | select(.flows == 1000000 and .threads == 1 and .batch == 64)][0].limit_ns_per_packet as $limit
        | if $limit == null then empty else
          row("the same in bare loops"; "9.5 L (5 million/s where L took 21 ns)"; "\($nanoseconds / $limit | two) L, \($nanoseconds | short) ns";
              "L \($limit | short) ns at 1000000 flows"; $nanoseconds <= 9.5 * $limit) end)),
    ($f.memory | row("memory per translated flow, \(.flows) flows"; "128 bytes";
           "\(.bytes_per_flow | short) bytes, \(.resident_bytes_per_flow | short) resident"; "kernel 278"; .bytes_per_flow <= 128)),
    (["one-cpu", "apart"][] as $placement | ([$c.rows[].services] | unique)[] as $services
     | in_lab($c; "connections_per_second"; $placement; $services; "0.95 T"; 0.95)),
    (["one-cpu", "apart"][] as $placement | most($c) as $many
     | median(of($c; $many; "penstock"; $placement; "connections_per_second")) as $at_many
     | median(of($c; 1; "penstock"; $placement; "connections_per_second")) as $at_one
     | median(of($c; $many; "iptables"; $placement; "connections_per_second")) as $iptables
     | if $at_many == null then empty else
       median(of($c; $many; "tun-copy"; $placement; "connections_per_second")) as $copy_at_many
       | median(of($c; 1; "tun-copy"; $placement; "connections_per_second")) as $copy_at_one
       | row("connections per second at \($many) Services by those at 1, each in T of its turns, \($placement)"; "0.97";
           by($at_many / $copy_at_many; $at_one / $copy_at_one); "not in T \(by($at_many; $at_one)), tun-copy itself \(by($copy_at_many; $copy_at_one))";
           $at_one != null and $at_many / $copy_at_many >= 0.97 * $at_one / $copy_at_one),
       (median(of($c; $many; "tun-copy"; $placement; "connections_per_second")) as $copy
        | median(in_the_middle($c; $many; "iptables"; $placement; "connections_per_second")) as $halfway
        | row("the same by iptables at \($many) Services, the probed one at the end, \($placement)"; "4"; by($at_many; $iptables);
              "iptables \($iptables | short), in the middle \($halfway | short); tun-copy, the limit, \(by($copy; $iptables)) times iptables";
              $iptables != null and $at_many >= 4 * $iptables)) end),
    (["one-cpu", "apart"][] as $placement
     | in_lab($latency[0]; "requests_per_second"; $placement; 1; "0.95 T"; 0.95),
       in_lab($latency[0]; "round_trip_p50"; $placement; 1; "0.95 T"; 0.95),
       in_lab($latency[0]; "round_trip_p99"; $placement; 1; "0.95 T"; 0.95),
       in_lab($latency[0]; "round_trip_p99.9"; $placement; 1; "-"; 0),
       in_lab($bulk[0]; "throughput"; $placement; 1; "0.95 T"; 0.95),
       (median(of($bulk[0]; 1; "penstock"; $placement; "throughput")) as $ours
        | median(of($bulk[0]; 1; "nftables"; $placement; "throughput")) as $nftables
        | if $ours == null then empty else
          row("bulk by nftables, \($placement)"; "0.85 N"; by($ours; $nftables); "nftables \($nftables | short) Gbit/s";
              $nftables != null and $ours >= 0.85 * $nftables) end),
       in_lab($packets[0]; "packets_received_per_second"; $placement; 1; "0.95 T"; 0.95)),
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
        | if $ours == null or $iptables == null then empty else
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
    ($a.rows[] | (.attack | startswith("table full")) as $is_full
     | row("attack: \(.attack)"; "no established flow lost, 2 times the cost\(if $is_full then "" else ", 99 % of new ones made" end)";
           "\(.established_lost) of \(.established_packets) lost, \(.ratio | two) times; new flows \(.new_flows_succeeded) of \(.new_flows)"; "-";
           .established_lost == 0 and .ratio <= 2 and ($is_full or .new_flows_succeeded >= 0.99 * .new_flows))),
    "",
    "## Where the probed Service stands",
    "",
    "TCP connections per second, the probed Service in the middle / at the end of all Services; kube-proxy puts them in another",
    "order at every sync, so the middle is what one gets on the mean.",
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
    "## Why some aims are not reached",
    "",
    "- Established packets: the bare loop knows that each packet is a datagram of IPv4 without options. The path must find out:",
    "  it parses, verifies lengths, tells fragments and errors apart, carries addresses of either family in 16 bytes, and checks",
    "  that the entry that it read was of one life. The profile below says what each costs.",
    "- New flows: an entry is found by two tuples, so two buckets are filled and both are searched for rivals, behind a full fence;",
    "  the sweep does the same backwards.",
    "- Cold load: the agent is started anew; it reads and checks all objects from files, in YAML or in JSON, compiles them, and makes its devices. The",
    "  rows *of it* say what reading, compiling and indexing take; the peers' rows begin with rules that are ready made, so the row",
    "  beside them is `objects_to_table`: from decoded objects to the table, without the routes below. Objects in JSON of the usual shape go from text to their",
    "  types in one step. Of 170 and 220 ms (one and ten endpoints each, on a quiet machine) reading the text took 12 and 30 ms,",
    "  decoding and checking 60 and 100, compiling 14 and 30, devices 10, and 50 the routes that lead the node's own packets to 10,000",
    "  addresses (5 us each in the kernel: there is one per address, so that nothing else is led here). A fifth of all is memory that",
    "  is touched for the first time. With a heap of huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) a start takes a fifth less.",
    "  Another allocator, mimalloc, took a quarter less in some runs and half as much again in others, and twice the memory: it was",
    "  left out.",
    "- Aims in absolute units come from where the bare loop took 21 ns at 1 million flows, and iptables 0.29 s for 10,000 Services: the",
    "  rows *in bare loops* and *by that of iptables* hold the same aims against what these took in this run.",
    "- Numbers of Services are measured one after the other, and only dataplanes in turns: between them the machine gets faster or",
    "  slower by a tenth. So connections at many Services are held against those at one in units of T.",
    "- Connections by the bare copy loop: of a connection's time (some ten packets, 250 us on one processor) 15 us are the path's and 4",
    "  the loop's (samples of the processor). A packet that comes alone finds little of the path in the caches: between two of them the",
    "  kernel carries one all the way, and client and server run.",
    "- Bulk, by nftables: each frame of 64 KB is copied out of the kernel and into it again, apart on the processor that the server",
    "  needs too; the bare copy loop falls short as well. GRO of the TUN device (`IFF_NAPI`) was measured and makes no difference.",
    "- Change of one endpoint: the slice has a file of its own, which lies ready. Of the time some 0.1 ms go to the notice of",
    "  the file system and to waking the agent's thread, 0.1 (JSON) or 0.25 ms (YAML) to reading and checking the slice, 0.1 ms to its",
    "  Service and the table, the rest to the next packet of the client (one every 100 us, of a new flow) and its way.",
    "- Connections per second by iptables: rules are compared faster than a packet goes through a TUN device and back. The bare copy",
    "  loop, which looks nothing up, bounds the ratio, and its own is in the row.",
    "- The peers' changes are what kube-proxy writes: with iptables the chains that list all Services and those of the changed one,",
    "  by `--noflush`, for which iptables-legacy takes the whole table out of the kernel and puts it back; with nftables the chains",
    "  of the changed Service, as newer kube-proxies do (1.30 writes everything again). Time grows with the endpoints: aims of 140",
    "  and 90 ms were taken from Services of one endpoint, so both are here. A cold load of nftables is one transaction, and the",
    "  kernel's time for it grows with its square (`__nft_set_trans_bind` walks all of it for every anonymous set, `nf_tables_newset`",
    "  all sets for a free name); where it is given up the rules go in in portions before changes are measured.",
    "- Others while somebody floods: in the kernel the sender's own processor carries each packet all the way, so a flood slows",
    "  itself down. In front of a TUN device are queues of 500 packets, and who sends faster than the agent reads and writes fills",
    "  them: a tenth of the packets and more is lost there (`tx_dropped` of the device). A program in the kernel chooses the queue,",
    "  so that these are the flood's own packets; those of others wait for their queue's turn, and for the processor, which the",
    "  agent has to share with whoever sends. Where the flood's SYNs share a queue with another Service's, which the keys",
    "  of a start decide (one in eight), new connections to that one are lost and sent again after TCP's second. All of them were, and",
    "  established ones after 200 ms, while there was one queue; longer ones, of 2,000 and 10,000, lost somewhat fewer packets and",
    "  let the others wait longer (`docs/decisions/2026-11-22-queues.md`).",
    "- With a single packet on its way, as in request and response, nothing overlaps: reading from and writing to a TUN device is",
    "  what takes the time, for the bare copy loop as well.",
    "",
    "## In memory, all rows",
    "",
    "Before each round the benchmark waits until a loop that keeps a core busy runs at its full speed (\($f.waited.seconds | short) s in all;",
    "\($f.waited.rounds_disturbed) rounds were measured beside others). Two threads share what one has where two processors are halves of a core.",
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
