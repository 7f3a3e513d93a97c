//! In which order a worker asks its device and sends to it.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{at, shared, udp};
use dataplane::conntrack::Settings;
use dataplane::frame::Frame;
use dataplane::service::ServiceTable;
use dataplane::tuple::{Origin, Timestamp};
use dataplane::verdict::Counters;
use dataplane::worker::{BATCH, Device, Worker};
use fastrand::Rng;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Writes down what is asked of it: `r` for a frame received, `-` for none, `s` for one sent, `t` for a train.
struct Diary {
    frames: usize,
    /// Where the checksum begins that the frames owe, as those of a sender on the same machine do.
    owed_from: Option<u16>,
    written: String,
}

impl Device for Diary {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        if self.frames == 0 {
            self.written.push('-');
            return Ok(false);
        }
        self.frames -= 1;
        self.written.push('r');
        let (client, server) = (at("10.0.0.1", 1000), at("10.0.0.2", 2000));
        let mut packet = udp(b"question").from(&client).to(&server).bytes();
        // The identification counts up.
        packet[4..6].copy_from_slice(&(!self.frames as u16).to_be_bytes());
        frame.set_packet(&packet);
        if let Some(start) = self.owed_from {
            frame.set_partial_checksum(start, 6);
        }
        Ok(true)
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.written
            .push(if frame.is_segmented() { 't' } else { 's' });
        Ok(())
    }
}

/// What becomes of so many frames when the worker is told at these times, in microseconds, that there are some.
fn diary_of(frames: usize, owes: bool, times: &[u64]) -> String {
    diary_among(1, frames, owes.then_some(20), times)
}

/// The same where so many devices have their turns.
fn diary_among(
    devices_ready: usize,
    frames: usize,
    owed_from: Option<u16>,
    times: &[u64],
) -> String {
    let shared = shared(Settings::kernel(64), ServiceTable::empty());
    let written = String::new();
    let diary = Diary {
        frames,
        owed_from,
        written,
    };
    let devices = vec![(Origin::Pod, diary)];
    let counters = Arc::new(Counters::default());
    let mut worker = Worker::new(&shared, devices, counters, Rng::with_seed(1));
    for &microseconds in times {
        let now = Timestamp::from_seconds(1).after(Duration::from_micros(microseconds));
        worker
            .drain_one(0, devices_ready, || now)
            .expect("a device without errors");
        worker.devices_mut()[0].1.written.push(' ');
    }
    let (_, device) = &worker.devices()[0];
    device.written.trim_end().to_owned()
}

#[test]
fn a_lone_packet_leaves_before_the_device_is_asked_again() {
    assert_eq!(diary_of(0, true, &[0]), "-");
    assert_eq!(diary_of(1, true, &[0, 1]), "rs -");
}

#[test]
fn after_a_rest_the_device_is_asked_for_one_packet() {
    assert_eq!(diary_of(3, true, &[0, 100, 200]), "rs rs rs");
    assert_eq!(diary_of(3, true, &[0, 100, 102]), "rs rs rs-");
}

#[test]
fn batches_double_while_more_come() {
    assert_eq!(diary_of(5, false, &[0, 1]), "rs rsrrssr-s");
}

#[test]
fn packets_of_one_flow_in_one_batch_leave_as_one() {
    assert_eq!(diary_of(10, true, &[0, 1]), "rs rsrrtrrrrtrr-t");
}

/// As packets of a tunnel do: the kernel would cut inside them.
#[test]
fn packets_that_owe_the_checksum_of_one_inside_leave_alone() {
    assert_eq!(diary_among(1, 5, Some(28), &[0, 1]), "rs rsrrssr-s");
}

#[test]
fn a_flood_leaves_the_others_their_turn() {
    let written = diary_of(100_000, false, &[0, 1]);
    let received = written.chars().filter(|&call| call == 'r').count();
    assert!((64..1000).contains(&received), "{received}");
    assert!(!written.contains('-'), "it was not empty");
}

#[test]
fn a_device_that_had_its_share_goes_on_with_whole_batches() {
    let written = diary_of(230, true, &[0, 1, 2, 3]);
    let turns: Vec<&str> = written.split(' ').collect();
    assert_eq!(turns[2], format!("{}t", "r".repeat(BATCH)));
    // Empty in the end, so that the first frame of the next turn goes first again.
    assert!(turns[3].contains('-'), "{}", turns[3]);
}

#[test]
fn the_more_devices_have_something_the_shorter_are_their_turns() {
    for (devices, share) in [(1, 64), (4, 16), (8, 8), (192, 8)] {
        let written = diary_among(devices, 1000, Some(20), &[0, 1, 2, 3]);
        let turns: Vec<&str> = written.split(' ').collect();
        assert_eq!(turns[3], format!("{}t", "r".repeat(share)), "{devices}");
    }
}
