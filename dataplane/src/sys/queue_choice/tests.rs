//! What the program ends with for packets made by hand, run by the kernel (`BPF_PROG_TEST_RUN`). Needs root.

use super::*;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const VIP: &str = "203.0.113.10";
const VIP_V6: &str = "2001:db8:203::10";

/// The program for so many workers; none where the kernel does not let this process load any.
fn loaded(workers: usize) -> Option<QueueChoice> {
    let mut rng = Rng::with_seed(7);
    let keys = Keys::from_numbers(|| rng.u64(..));
    match QueueChoice::load(workers, &keys) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: eBPF is not permitted here: {error}");
            None
        }
        choice => Some(choice.expect("the verifier takes it")),
    }
}

impl QueueChoice {
    fn of(&self, packet: &[u8]) -> i32 {
        self.program.run(packet).expect("it is loaded") as i32
    }
}

fn queues_of(class: Class, workers: usize) -> Range<i32> {
    let grid = Grid::for_workers(workers);
    let first = grid.first(class);
    first..first + (1 << (grid.bits + grid.column_bits(class)))
}

fn tcp(flags: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut header = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    header.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(6, from.0, to.0, &header)
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut header = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    header.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    ip(17, from.0, to.0, &header)
}

fn ip(protocol: u8, from: IpAddr, to: IpAddr, rest: &[u8]) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![
                0x45,
                0,
                0,
                20 + rest.len() as u8,
                0,
                1,
                0,
                0,
                64,
                protocol,
                0,
                0,
            ];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, rest.len() as u8, protocol, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("two families"),
    };
    packet.extend(rest);
    packet
}

/// A stranger of the family of `other`.
fn stranger(rng: &mut Rng, other: IpAddr) -> (IpAddr, u16) {
    let address = match other {
        IpAddr::V4(_) => IpAddr::V4(rng.u32(..).into()),
        IpAddr::V6(_) => IpAddr::V6(rng.u128(..).into()),
    };
    (address, rng.u16(..))
}

fn vips() -> [IpAddr; 2] {
    [VIP, VIP_V6].map(|vip| vip.parse().expect("an address"))
}

#[test]
fn root_syns_of_many_sources_to_one_service_fill_one_column() {
    let Some(choice) = loaded(1) else { return };
    let mut rng = Rng::with_seed(1);
    for vip in vips() {
        let flood: BTreeSet<i32> = (0..1000)
            .map(|_| choice.of(&tcp(SYN, stranger(&mut rng, vip), (vip, 80))))
            .collect();
        let all = queues_of(Class::Opening, 1);
        assert_eq!((flood.len(), all.len()), (4, 32), "{vip}");
        assert!(flood.iter().all(|queue| all.contains(queue)), "{flood:?}");
        let columns: BTreeSet<i32> = flood.iter().map(|queue| queue % 8).collect();
        assert_eq!(columns.len(), 1, "{vip}: {flood:?}");

        let others: BTreeSet<i32> = (81..1000)
            .map(|port| choice.of(&tcp(SYN, stranger(&mut rng, vip), (vip, port))))
            .collect();
        assert_eq!(others.len(), 32, "{vip}: other Services have other columns");
    }
}

#[test]
fn root_what_opens_nothing_waits_elsewhere() {
    let Some(choice) = loaded(1) else { return };
    let mut rng = Rng::with_seed(2);
    for vip in vips() {
        for _ in 0..100 {
            let from = stranger(&mut rng, vip);
            // All flags but SYN alone, with ECN's and URG and PSH beside them.
            for flags in [ACK, SYN | ACK, 0x04, ACK | 0x01, ACK | 0x08, 0xe0 | ACK] {
                let queue = choice.of(&tcp(flags, from, (vip, 80)));
                assert!(queues_of(Class::Established, 1).contains(&queue), "{flags}");
            }
            for flags in [SYN, SYN | 0xc0] {
                let queue = choice.of(&tcp(flags, from, (vip, 80)));
                assert!(queues_of(Class::Opening, 1).contains(&queue), "{flags}");
            }
            let queue = choice.of(&udp(from, (vip, 80)));
            assert!(queues_of(Class::Other, 1).contains(&queue));
            let queue = choice.of(&ip(1, vips()[0], vips()[0], &[8; 40]));
            assert!(queues_of(Class::Other, 1).contains(&queue));
        }
    }
}

#[test]
fn root_a_scan_from_one_source_fills_one_row() {
    let Some(choice) = loaded(1) else { return };
    let mut rng = Rng::with_seed(3);
    for vip in vips() {
        let from = stranger(&mut rng, vip);
        let datagrams: BTreeSet<i32> = (0..1000)
            .map(|port| choice.of(&udp((from.0, rng.u16(..)), (vip, port))))
            .collect();
        assert_eq!(datagrams.len(), 1, "all ports of one address");
        let datagrams: BTreeSet<i32> = (0..1000)
            .map(|_| choice.of(&udp(from, stranger(&mut rng, vip))))
            .collect();
        assert_eq!(datagrams.len(), 4, "all addresses: {datagrams:?}");
        let syns: BTreeSet<i32> = (0..1000)
            .map(|port| choice.of(&tcp(SYN, from, (vip, port))))
            .collect();
        let rows: BTreeSet<i32> = syns.iter().map(|queue| queue / 8).collect();
        assert_eq!((syns.len(), rows.len()), (8, 1), "{syns:?}");
        let sources: BTreeSet<i32> = (0..1000)
            .map(|_| choice.of(&udp(stranger(&mut rng, vip), (vip, 53))))
            .collect();
        assert_eq!(sources.len(), 4, "others have other rows");
    }
}

#[test]
fn root_fragments_stay_with_the_datagrams_of_their_flow() {
    let Some(choice) = loaded(1) else { return };
    let mut rng = Rng::with_seed(4);
    let vip = vips()[0];
    for _ in 0..200 {
        let from = stranger(&mut rng, vip);
        let whole = udp(from, (vip, 53));
        for offset in [[0x20, 0], [0x20, 7], [0, 9]] {
            let mut fragment = whole.clone();
            fragment[6..8].copy_from_slice(&offset);
            rng.fill(&mut fragment[20..]);
            assert_eq!(choice.of(&fragment), choice.of(&whole));
            // What stands there are no flags.
            fragment[9] = 6;
            assert_eq!(choice.of(&fragment), choice.of(&whole));
        }
        let mut may_not = whole.clone();
        may_not[6] = 0x40;
        assert_eq!(choice.of(&may_not), choice.of(&whole));
    }
}

#[test]
fn root_options_do_not_hide_the_ports() {
    let Some(choice) = loaded(1) else { return };
    let mut rng = Rng::with_seed(5);
    let vip = vips()[0];
    for _ in 0..100 {
        let plain = tcp(SYN, stranger(&mut rng, vip), (vip, rng.u16(..)));
        let mut with_options = plain.clone();
        with_options[0] = 0x47;
        with_options.splice(20..20, [0xaa; 8]);
        assert_eq!(choice.of(&with_options), choice.of(&plain));
    }
}

#[test]
fn root_what_is_cut_short_or_random_has_a_queue() {
    let Some(choice) = loaded(4) else { return };
    let mut rng = Rng::with_seed(6);
    for vip in vips() {
        let mut packet = tcp(SYN, stranger(&mut rng, vip), (vip, 80));
        packet.truncate(packet.len() - 10);
        assert_eq!(choice.of(&packet), 0, "the first of the others'");
        for _ in 0..1000 {
            let version = packet[0] & 0xf0;
            rng.fill(&mut packet);
            packet[0] = version | packet[0] & 0x0f;
            assert!((0..256).contains(&choice.of(&packet)));
        }
    }
}

#[test]
fn root_each_worker_has_its_queues_and_its_share_of_one_clients_flows() {
    for workers in [1, 2, 3, 4, 5, 16, 17, 64] {
        let Some(choice) = loaded(workers) else {
            return;
        };
        let each = choice.queues_per_worker();
        assert!(workers * each <= MOST_QUEUES, "{workers} times {each}");
        let vip = vips()[1];
        let client = stranger(&mut Rng::with_seed(8), vip).0;
        let mut flows = vec![0; workers];
        for port in 0..1000 {
            let (from, to) = ((client, port), (vip, 443));
            let worker = choice.of(&tcp(ACK, from, to)) as usize / each;
            flows[worker] += 1;
            let opening = choice.of(&tcp(SYN, from, to)) as usize / each;
            assert_eq!(opening, worker, "one flow has one worker");
        }
        let fair = 1000 / workers;
        assert!(
            flows
                .iter()
                .all(|&flows| (fair / 3..=fair * 3).contains(&flows)),
            "{workers}: {flows:?}"
        );
    }
}
