//! The table itself: who owns a tuple, races, expiry, early drop, limits; against a plain model.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{
    ConfirmError, Confirmed, Conntrack, Count, Headers, NoTable, ServiceTag, Settings, Statistics,
    Tracked, Transport,
};
use dataplane::service::Generation;
use dataplane::tuple::{Address, Direction, Protocol, Timestamp, Tuple};
use flow::{ACK, Client, Flow, RST, SYN, SYN_ACK, Server, address, remove, segment};
use std::collections::{HashMap, HashSet};
use std::sync::Barrier;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_seconds(5000);

fn tuple(ipv4: bool, client: u32) -> Tuple {
    let source = if ipv4 {
        Address::from_v4((0x0a00_0000 + client).to_be_bytes())
    } else {
        Address::from_bits(0xfd00 << 112 | u128::from(client))
    };
    Tuple {
        source,
        destination: address(ipv4, 250),
        source_port: 40_000,
        destination_port: 53,
        protocol: Protocol::UDP,
    }
}

fn udp(tuple: Tuple) -> Headers {
    Headers {
        tuple,
        transport: Transport::Udp,
        length: 60,
    }
}

/// DNAT to `pod`.
fn confirm(
    conntrack: &Conntrack,
    tuple: Tuple,
    pod: Address,
    now: Timestamp,
) -> Result<Confirmed, ConfirmError> {
    let mut tentative = conntrack.open(&udp(tuple), now).unwrap();
    tentative.reply.source = pod;
    conntrack.confirm(&tentative, now)
}

fn total(conntrack: &Conntrack) -> Statistics {
    conntrack.statistics().into_iter().sum()
}

/// Two flows whose tuples have one hash, tag and buckets alike: each is found as itself, guessed or not, also when the other
/// one has gone.
#[test]
fn tuples_of_one_hash_are_told_apart() {
    for ipv4 in flow::FAMILIES {
        let conntrack = Conntrack::new(Settings::kernel(16), [1, 2, 3, 4]);
        let mut seen = HashMap::new();
        let pair = (0..20_000).find_map(|client| {
            let hash = format!("{:?}", conntrack.hash(&tuple(ipv4, client)));
            seen.insert(hash, client).map(|other| [other, client])
        });
        let flows = pair.unwrap().map(|client| tuple(ipv4, client));
        let pods = [address(ipv4, 2), address(ipv4, 3)];
        for (flow, pod) in flows.iter().zip(pods) {
            assert!(matches!(
                confirm(&conntrack, *flow, pod, NOW),
                Ok(Confirmed::Inserted(_))
            ));
        }
        let pod_of = |flow: &Tuple| {
            let hash = conntrack.hash(flow);
            let guess = conntrack.guess(hash, flow.protocol, ipv4);
            let guessed = conntrack.find_near(flow, hash, guess, NOW);
            let found = conntrack.find(flow, NOW);
            let pods = [guessed, found].map(|found| Some(found?.translation()?.destination));
            assert_eq!(pods[0], pods[1]);
            pods[0]
        };
        assert_eq!(flows.each_ref().map(pod_of), pods.map(Some));
        conntrack.end(conntrack.find(&flows[1], NOW).unwrap().entry(), NOW);
        assert_eq!(flows.each_ref().map(pod_of), [Some(pods[0]), None]);
    }
}

/// "What a packet is rewritten to": the inverse of the tuple of the other direction, both families.
#[test]
fn translation_of_both_directions() {
    for ipv4 in flow::FAMILIES {
        let conntrack = Conntrack::new(Settings::kernel(10), [1; 4]);
        let original = tuple(ipv4, 1);
        let (pod, node) = (address(ipv4, 2), address(ipv4, 3));
        let mut tentative = conntrack.open(&udp(original), NOW).unwrap();
        tentative.reply = Tuple {
            source: pod,
            destination: node,
            source_port: 5353,
            destination_port: 30_000,
            protocol: Protocol::UDP,
        };
        tentative.set_service(ServiceTag {
            id: 77,
            generation: Generation(5),
        });
        let reply = tentative.reply;
        let Ok(Confirmed::Inserted(first)) = conntrack.confirm(&tentative, NOW) else {
            panic!("not inserted");
        };
        let found = conntrack.find(&original, NOW).unwrap();
        for found in [first, found] {
            assert_eq!(found.direction(), Direction::Original);
            let sent = found.translation().unwrap();
            assert_eq!((sent.source, sent.source_port), (node, 30_000));
            assert_eq!((sent.destination, sent.destination_port), (pod, 5353));
            assert_eq!(
                found.service(),
                Some(ServiceTag {
                    id: 77,
                    generation: Generation(5)
                })
            );
        }
        let answer = conntrack.find(&reply, NOW).unwrap();
        assert_eq!(answer.direction(), Direction::Reply);
        let sent = answer.translation().unwrap();
        assert_eq!((sent.source, sent.source_port), (original.destination, 53));
        assert_eq!(
            (sent.destination, sent.destination_port),
            (original.source, 40_000)
        );
        conntrack.revalidate(answer.entry(), Generation(6));
        let found = conntrack.find(&original, NOW).unwrap();
        assert_eq!(
            found.service(),
            Some(ServiceTag {
                id: 77,
                generation: Generation(6)
            })
        );
        assert!(conntrack.end(found.entry(), NOW));
        assert!(!conntrack.end(found.entry(), NOW), "only once");
        assert!(conntrack.find(&reply, NOW).is_none());
        assert!(conntrack.is_empty());
    }
}

#[test]
fn accounting() {
    let mut settings = Settings::kernel(10);
    settings.accounting = true;
    let mut flow = Flow::with(settings, true, Protocol::TCP);
    flow.tcp(Client, SYN, 1000, 0);
    flow.tcp(Server, SYN_ACK, 9000, 1001);
    flow.tcp(Client, ACK, 1001, 9001);
    assert!(matches!(
        flow.segment(Client, segment(RST, 5, 0)),
        flow::Class::Invalid(_)
    ));
    let count = |packets| Count {
        packets,
        bytes: 100 * packets,
    };
    let entry = flow.entry().unwrap();
    let counted = Some([count(2), count(1)]);
    assert_eq!(entry.counts, counted, "INVALID ones are not counted");
}

/// A SYN that is sent again renews no timeout, so it is not counted; what is told of a connection's end is its own, also
/// when its entry has another life by then.
#[test]
fn counts_of_a_life() {
    let mut settings = Settings::kernel(10);
    settings.accounting = true;
    let conntrack = Conntrack::new(settings, [1; 4]);
    let listener = conntrack.listen();
    let syn = |client| Headers {
        tuple: Tuple {
            protocol: Protocol::TCP,
            ..tuple(true, client)
        },
        transport: Transport::Tcp(segment(SYN, 1000, 0)),
        length: 60,
    };
    let open = |client| {
        let tentative = conntrack.open(&syn(client), NOW).unwrap();
        let Ok(Confirmed::Inserted(found)) = conntrack.confirm(&tentative, NOW) else {
            panic!("not inserted");
        };
        found
    };
    let first = open(1);
    assert_eq!(conntrack.track(&first, &syn(1), NOW), Tracked::Accepted);
    assert!(conntrack.end(first.entry(), NOW));
    open(2);
    let told: Vec<_> = std::iter::from_fn(|| listener.next())
        .map(|event| (event.entry.original.source, event.entry.counts))
        .collect();
    let sent = Count {
        packets: 1,
        bytes: 60,
    };
    let [one, two] = [1, 2].map(|client| tuple(true, client).source);
    let ended = Some([sent, Count::default()]);
    assert_eq!(told, [(one, None), (one, ended), (two, None)]);
}

/// Two entries that live at one time never have the same identifier, and lives that follow one another neither.
#[test]
fn identifiers_are_of_one_life() {
    for capacity in [16, 300] {
        let conntrack = Conntrack::new(Settings::kernel(capacity), [1; 4]);
        let pod = address(true, 200);
        let ids = || {
            let mut ids = Vec::new();
            conntrack.for_each(NOW, |entry| ids.push(entry.id));
            ids
        };
        let mut seen = HashSet::new();
        // By then the number of a life has reached its second byte.
        for client in 0..256 {
            let _ = confirm(&conntrack, tuple(true, client), pod, NOW).unwrap();
            assert!(seen.insert(ids()[0]), "{client}");
            assert!(remove(&conntrack, &tuple(true, client), NOW));
        }
        for client in 0..10 {
            let _ = confirm(&conntrack, tuple(true, client), pod, NOW).unwrap();
        }
        assert_eq!(ids().into_iter().collect::<HashSet<_>>().len(), 10);
    }
}

/// Clash at confirmation: the loser adopts; a foreign owner of the reply tuple is told.
#[test]
fn clashes() {
    let mut settings = Settings::kernel(10);
    settings.accounting = true;
    let conntrack = Conntrack::new(settings, [1; 4]);
    let pods = [address(true, 101), address(true, 102)];
    assert!(matches!(
        confirm(&conntrack, tuple(true, 1), pods[0], NOW),
        Ok(Confirmed::Inserted(_))
    ));
    let Ok(Confirmed::Adopted(found)) = confirm(&conntrack, tuple(true, 1), pods[1], NOW) else {
        panic!("not adopted");
    };
    assert_eq!(
        found.translation().unwrap().destination,
        pods[0],
        "the winner's endpoint"
    );
    let winner = conntrack.get(&tuple(true, 1), NOW).unwrap();
    let packets = winner.counts.unwrap().map(|count| count.packets);
    assert_eq!(packets, [2, 0], "the loser's packet counts as well");
    let mut other_vip = tuple(true, 1);
    other_vip.destination = address(true, 251);
    assert_eq!(
        confirm(&conntrack, other_vip, pods[0], NOW).unwrap_err(),
        ConfirmError::ReplyTaken
    );
    assert_eq!(conntrack.len(), 1);
    assert_eq!(total(&conntrack).clash_resolve, 1);
    let later = NOW.after(Duration::from_secs(31));
    assert!(
        matches!(
            confirm(&conntrack, other_vip, pods[0], later),
            Ok(Confirmed::Inserted(_))
        ),
        "an expired entry owns nothing"
    );
    assert_eq!(conntrack.len(), 1, "and made room");
}

/// "DNS five seconds": first packets that race become one entry, and all go its way.
#[test]
fn racing_first_packets() {
    const THREADS: usize = 4;
    const ROUNDS: u32 = 2_000;
    let conntrack = Conntrack::new(Settings::kernel(2 * ROUNDS as usize), [1; 4]);
    let barrier = Barrier::new(THREADS);
    let ways: Vec<Vec<(bool, Address)>> = std::thread::scope(|scope| {
        let race = |thread: usize| {
            let (conntrack, barrier) = (&conntrack, &barrier);
            move || -> Vec<(bool, Address)> {
                let run = |round| {
                    barrier.wait();
                    match confirm(
                        conntrack,
                        tuple(true, round),
                        address(true, thread as u8),
                        NOW,
                    ) {
                        Ok(Confirmed::Inserted(found)) => {
                            (true, found.translation().unwrap().destination)
                        }
                        Ok(Confirmed::Adopted(found)) => {
                            (false, found.translation().unwrap().destination)
                        }
                        Err(error) => panic!("{error}"),
                    }
                };
                (0..ROUNDS).map(run).collect()
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(race(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for round in 0..ROUNDS as usize {
        let winners = ways.iter().filter(|way| way[round].0).count();
        assert_eq!(winners, 1, "round {round}");
        assert!(
            ways.iter().all(|way| way[round].1 == ways[0][round].1),
            "round {round}: one way"
        );
    }
    assert_eq!(conntrack.len(), ROUNDS as usize);
}

/// Removal and reuse of entries under readers: what a reader finds is always of the tuple that it asked for.
#[test]
fn reuse_never_shows_another_flow() {
    let conntrack = Conntrack::new(Settings::kernel(8), [1; 4]);
    // The pod's address says whose it is.
    let pod = |client: u32| Address::from_v4((0x0b00_0000 + client).to_be_bytes());
    std::thread::scope(|scope| {
        for writer in 0..2_u32 {
            let conntrack = &conntrack;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(u64::from(writer));
                for _ in 0..30_000 {
                    let client = random.u32(..16);
                    let _ = confirm(conntrack, tuple(true, client), pod(client), NOW);
                    if let Some(found) = conntrack.find(&tuple(true, random.u32(..16)), NOW) {
                        conntrack.end(found.entry(), NOW);
                    }
                }
            });
        }
        for reader in 0..2_u32 {
            let conntrack = &conntrack;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(100 + u64::from(reader));
                for _ in 0..60_000 {
                    let client = random.u32(..16);
                    let asked = tuple(true, client);
                    if let Some(found) = conntrack.find(&asked, NOW) {
                        assert_eq!(found.translation().unwrap().destination, pod(client));
                        let _ = conntrack.track(&found, &udp(asked), NOW);
                    }
                    conntrack.for_each(NOW, |entry| {
                        let client =
                            u32::from_be_bytes(entry.original.source.octets_v4()) - 0x0a00_0000;
                        assert_eq!(entry.reply.source, pod(client));
                    });
                }
            });
        }
    });
    let mut left = Vec::new();
    conntrack.for_each(NOW, |entry| left.push(entry.original));
    assert_eq!(conntrack.len(), left.len());
    for original in left {
        assert!(remove(&conntrack, &original, NOW));
    }
    assert!(conntrack.is_empty(), "no entry leaks");
}

/// "Table full" rows: unassured ones go, assured ones stay, then first packets are dropped and counted.
#[test]
fn early_drop() {
    let capacity = 64;
    let conntrack = Conntrack::new(Settings::kernel(capacity), [1; 4]);
    let pod = address(true, 200);
    for client in 0..10 * capacity as u32 {
        let confirmed = confirm(&conntrack, tuple(true, client), pod, NOW);
        let is_dropped = matches!(confirmed, Err(ConfirmError::TableFull));
        assert!(is_dropped || matches!(confirmed, Ok(Confirmed::Inserted(_))));
        assert!(conntrack.len() <= capacity);
    }
    assert!(
        total(&conntrack).early_drop >= 5 * capacity as u64,
        "{:?}",
        total(&conntrack)
    );

    let conntrack = Conntrack::new(Settings::kernel(capacity), [1; 4]);
    let later = NOW.after(Duration::from_secs(3));
    for client in 0..capacity as u32 {
        let _ = confirm(&conntrack, tuple(true, client), pod, NOW).unwrap();
        let found = conntrack.find(&tuple(true, client), NOW).unwrap();
        let reply = Tuple {
            source: pod,
            ..tuple(true, client).inverse()
        };
        let answer = conntrack.find(&reply, NOW).unwrap();
        assert_eq!(
            conntrack.track(&answer, &udp(reply), NOW),
            Tracked::Accepted
        );
        assert_eq!(
            conntrack.track(&found, &udp(tuple(true, client)), later),
            Tracked::Accepted
        );
    }
    for client in 1000..1030 {
        assert_eq!(
            confirm(&conntrack, tuple(true, client), pod, later).unwrap_err(),
            ConfirmError::TableFull,
            "all are assured"
        );
    }
    let counted = total(&conntrack);
    assert_eq!(
        (counted.drop, counted.insert_failed, counted.early_drop),
        (30, 0, 0),
        "drop only"
    );
    assert_eq!(conntrack.len(), capacity);
}

/// "Closing flows": under pressure assured ones that are closing go with the next round of the sweep, however short its
/// steps are, no more than have to.
#[test]
fn closing_connections_make_room() {
    let conntrack = Conntrack::new(Settings::kernel(4), [1; 4]);
    let tcp = |client: u32, flags, sequence, acknowledgement| {
        let tuple = Tuple {
            protocol: Protocol::TCP,
            ..tuple(true, client)
        };
        Headers {
            tuple,
            transport: Transport::Tcp(segment(flags, sequence, acknowledgement)),
            length: 40,
        }
    };
    let follow = |headers: &Headers| {
        let found = conntrack.find(&headers.tuple, NOW).unwrap();
        assert_eq!(conntrack.track(&found, headers, NOW), Tracked::Accepted);
    };
    for client in 0..4 {
        let syn = tcp(client, SYN, 1000, 0);
        let _ = conntrack
            .confirm(&conntrack.open(&syn, NOW).unwrap(), NOW)
            .unwrap();
        let mut answer = tcp(client, SYN_ACK, 9000, 1001);
        answer.tuple = answer.tuple.inverse();
        follow(&answer);
        follow(&tcp(client, ACK, 1001, 9001));
    }
    follow(&tcp(2, RST, 1001, 0));
    follow(&tcp(3, RST, 1001, 0));
    let another = || conntrack.confirm(&conntrack.open(&tcp(9, SYN, 1, 0), NOW).unwrap(), NOW);
    let round = || (0..4).map(|_| conntrack.expire(NOW, 1)).sum::<usize>();
    assert_eq!(round(), 0, "no pressure yet");
    assert_eq!(another().unwrap_err(), ConfirmError::TableFull);
    assert_eq!(round(), 1, "one of the two in CLOSE");
    assert!(matches!(another(), Ok(Confirmed::Inserted(_))));
    assert_eq!(round(), 0, "the pressure was of one round");
}

/// One source with all it may have does not keep others out, and gets room again when its entries go.
#[test]
fn limit_per_source() {
    let mut settings = Settings::kernel(1000);
    settings.per_source = Some(10);
    let conntrack = Conntrack::new(settings, [1; 4]);
    let port = |client: u32, source_port: u16| Tuple {
        source_port,
        ..tuple(true, client)
    };
    let pod = address(true, 200);
    for source_port in 0..10 {
        let _ = confirm(&conntrack, port(1, source_port), pod, NOW).unwrap();
    }
    assert_eq!(
        confirm(&conntrack, port(1, 10), pod, NOW).unwrap_err(),
        ConfirmError::SourceLimit
    );
    assert!(confirm(&conntrack, port(2, 10), pod, NOW).is_ok());
    assert_eq!(total(&conntrack).source_limit, 1);
    assert!(remove(&conntrack, &port(1, 3), NOW));
    assert!(confirm(&conntrack, port(1, 10), pod, NOW).is_ok());
}

/// A sweep looks at no more than its budget, and comes round.
#[test]
fn bounded_sweep() {
    let conntrack = Conntrack::new(Settings::kernel(100), [1; 4]);
    for client in 0..100 {
        let _ = confirm(&conntrack, tuple(true, client), address(true, 200), NOW).unwrap();
    }
    assert_eq!(
        conntrack.expire(NOW.after(Duration::from_secs(29)), 1000),
        0
    );
    let later = NOW.after(Duration::from_secs(31));
    let mut left = 100;
    while left > 0 {
        let removed = conntrack.expire(later, 7);
        assert!((1..=7).contains(&removed));
        left -= removed;
        assert_eq!(conntrack.len(), left);
    }
}

/// Every answer of the table equals that of a plain map, over random sequences of all operations, both families.
#[test]
fn equals_a_plain_model() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let conntrack = Conntrack::new(Settings::kernel(400), [seed; 4]);
        // Original tuple to (reply tuple, deadline).
        let mut model: HashMap<Tuple, (Tuple, Timestamp)> = HashMap::new();
        let mut now = NOW;
        for step in 0..2000 {
            now = now.after(Duration::from_millis(random.u64(..40)));
            // Whole seconds apart, so that the table's ticks do not matter.
            let original = tuple(random.bool(), random.u32(..60));
            let pod = address(original.source.is_ipv4(), random.u8(..4));
            let reply = Tuple {
                source: pod,
                ..original.inverse()
            };
            model.retain(|_, (_, deadline)| *deadline > now);
            let owner = |tuple: &Tuple| {
                model
                    .iter()
                    .find(|(original, (reply, _))| *original == tuple || reply == tuple)
            };
            let near = model
                .values()
                .any(|(_, deadline)| deadline.since(now) < Duration::from_millis(2));
            if near {
                continue;
            }
            match random.u8(..4) {
                0 | 1 => {
                    let expected = match (owner(&original), owner(&reply)) {
                        (Some((_, (reply, _))), _) => Ok((false, reply.source)),
                        (None, Some(_)) => Err(ConfirmError::ReplyTaken),
                        (None, None) => Ok((true, pod)),
                    };
                    let way = |found: dataplane::conntrack::Found| {
                        found
                            .translation()
                            .map_or(original.destination, |sent| sent.destination)
                    };
                    let got =
                        confirm(&conntrack, original, pod, now).map(|confirmed| match confirmed {
                            Confirmed::Inserted(found) => (true, way(found)),
                            Confirmed::Adopted(found) => (false, way(found)),
                        });
                    assert_eq!(got, expected, "seed {seed}, step {step}");
                    if let Ok((true, _)) = got {
                        model.insert(original, (reply, now.after(Duration::from_secs(30))));
                    }
                }
                2 => {
                    let is_there = model.remove(&original).is_some();
                    assert_eq!(
                        remove(&conntrack, &original, now),
                        is_there,
                        "seed {seed}, step {step}"
                    );
                }
                _ => {
                    conntrack.expire(now, random.usize(..50));
                    assert_eq!(conntrack.is_free(&reply, now), owner(&reply).is_none());
                }
            }
            let mut listed = 0;
            conntrack.for_each(now, |entry| {
                listed += 1;
                assert_eq!(model[&entry.original].0, entry.reply);
            });
            assert_eq!(listed, model.len(), "seed {seed}, step {step}");
        }
        assert_eq!(total(&conntrack).chain_too_long, 0);
    }
}

/// 128 bytes per translated IPv4 flow, with everything that the table reserves for it.
#[test]
fn memory_per_flow() {
    let conntrack = Conntrack::new(Settings::kernel(100_000), [1; 4]);
    let per_flow = conntrack.bytes() as f64 / 100_000.0;
    assert!(per_flow <= 128.0, "{per_flow} bytes");
}

/// Entries are told apart up to a number.
#[test]
fn a_table_that_is_too_large_is_refused() {
    let entries = Settings::MOST_ENTRIES as usize + 1;
    let refused = Conntrack::try_new(Settings::kernel(entries), [1; 4]).unwrap_err();
    assert_eq!(refused, NoTable::TooManyEntries { entries });
    assert_eq!(
        refused.to_string(),
        "2147483648 entries are more than the 2147483647 that a table holds"
    );
}
