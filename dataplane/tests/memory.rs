//! What a million translated flows cost in memory, as the operating system counts it. Alone in its process.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod flow;

use dataplane::conntrack::{Confirmed, Conntrack, Headers, Settings, Transport};
use dataplane::tuple::{Address, Protocol, Timestamp, Tuple};
use flow::{SYN, segment};

const FLOWS: u32 = 1_000_000;
const NOW: Timestamp = Timestamp::from_seconds(1000);

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

/// TCP from many clients to a VIP, DNAT to a pod and masqueraded: both directions, state and windows.
#[test]
fn a_million_translated_flows() {
    let before = resident();
    let conntrack = Conntrack::new(Settings::kube_proxy(FLOWS as usize), [1, 2, 3, 4]);
    for number in 0..FLOWS {
        let original = Tuple {
            source: Address::from_v4((0x0a00_0000 + number / 4).to_be_bytes()),
            destination: Address::from_v4([203, 0, 113, 1]),
            source_port: 40_000 + (number % 4) as u16,
            destination_port: 80,
            protocol: Protocol::TCP,
        };
        let transport = Transport::Tcp(segment(SYN, number, 0));
        let headers = Headers {
            tuple: original,
            transport,
            length: 60,
        };
        let mut tentative = conntrack.open(&headers, NOW).unwrap();
        tentative.reply = Tuple {
            source: Address::from_v4([10, 244, (number >> 16) as u8, 10]),
            destination: Address::from_v4([172, 18, 0, 2]),
            source_port: 8080,
            destination_port: number as u16,
            protocol: Protocol::TCP,
        };
        let confirmed = conntrack.confirm(&tentative, NOW);
        assert!(matches!(confirmed, Ok(Confirmed::Inserted(_))), "{number}");
    }
    let per_flow = (resident() - before) as f64 / f64::from(FLOWS);
    println!("{per_flow:.1} bytes per flow");
    // A few places of the index are full before the last entry is used.
    assert!(conntrack.len() > FLOWS as usize / 10_000 * 9_999);
    // The system counts whole pages, some of which are others'.
    assert!(per_flow <= 129.0, "{per_flow} bytes per flow");
}
