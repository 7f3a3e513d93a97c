//! Which queue of a TUN device a packet waits in, so that who floods the device fills queues of his own.
//!
//! The kernel's way to a TUN device ends in a queue of 500 packets, and who sends does not pay for reading them. With one
//! queue a flood takes others' room. Here each worker has many, and a program in the kernel chooses:
//!
//! - packets that open TCP connections wait apart from those of connections that are there already, and both apart from
//!   what is no TCP, or cannot be told, like fragments;
//! - each of these classes is a grid: a row by the source address, a column by the destination address (and port, of TCP:
//!   a Service). One source fills one row at most, many sources that are after one Service one column.
//!
//! Invariants: packets of one flow and class are in one queue, so they keep their order; between the classes there is
//! none to keep, since nothing follows a SYN before it is answered. (A SYN-ACK, which data may follow, opens nothing.) Of
//! what is no TCP only addresses choose among a worker's queues: datagrams are fragmented, and fragments have no ports. Which
//! of several workers gets a datagram its ports say, too: there a flow of which some datagrams are fragmented keeps its
//! order among the whole ones and among the others.
//!
//! Hashes are keyed, as the flow table's are: sums of words, each multiplied by a random number of 64 bits, of which the
//! upper bits count (vector multiply-shift: Dietzfelbinger et al., "A reliable randomized algorithm for the closest-pair
//! problem", 1997; Thorup, "High speed hashing for integers and strings", 2015, section 3.5).
//!
//! Source: Linux `drivers/net/tun.c`, `tun_select_queue`: the program sees the packet from its IP header on, and the queue
//! is what it ends with.

use super::bpf::Condition::{AnyBitOf, Equal};
use super::bpf::Operation::{Add, And, Multiply, Set, ShiftLeft, ShiftRight};
use super::bpf::Register::{self, R0, R1, R7, R8, R9};
use super::bpf::Width::{Byte, Halfword, Word};
use super::bpf::{Loaded, Program};
use super::tun::Queue;
use std::io;

/// Queues that one device can have (`MAX_TAP_QUEUES`).
const MOST_QUEUES: usize = 256;

/// Random numbers, by which words are multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// For the four words of a source address; one of IPv4 has one.
    source: [u64; 4],
    /// For those of a destination address.
    destination: [u64; 4],
    /// For TCP's destination port.
    service: u64,
    /// For both ports, which count where there are several workers.
    flow: u64,
}

impl Keys {
    /// Keys of one number after the other.
    pub fn from_numbers(mut next: impl FnMut() -> u64) -> Self {
        Self {
            source: std::array::from_fn(|_| next()),
            destination: std::array::from_fn(|_| next()),
            service: next(),
            flow: next(),
        }
    }
}

/// The choice, ready to be given to devices.
#[derive(Debug)]
pub struct QueueChoice {
    queues_per_worker: usize,
    program: Loaded,
}

impl QueueChoice {
    /// Loads the program for so many workers.
    ///
    /// # Errors
    /// When the kernel has no eBPF, or this process may not use it.
    pub fn load(workers: usize, keys: &Keys) -> io::Result<Self> {
        let grid = Grid::for_workers(workers);
        let program = program(workers, grid, keys).load()?;
        Ok(Self {
            queues_per_worker: grid.queues(),
            program,
        })
    }

    /// Queues that each worker has of every device: those of worker `i` are the `i`th so many of a device's.
    pub const fn queues_per_worker(&self) -> usize {
        self.queues_per_worker
    }

    /// Lets it choose for the device of `queue` from now on.
    ///
    /// # Errors
    /// When the kernel's TUN devices cannot (before 4.16).
    pub fn attach_to(&self, queue: &Queue) -> io::Result<()> {
        queue.choose_by(&self.program)
    }
}

/// How large the classes' grids are: 2 to the power of `bits` rows and as many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid {
    bits: u32,
}

/// Classes of packets, in the order of their queues. What the program cannot read at all is in the first queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// No TCP, fragments, and what has headers between those of IPv6 and TCP.
    Other,
    /// Segments of connections that are there already.
    Established,
    /// First segments of new connections: SYN without ACK. Twice as many columns as elsewhere: floods of them from
    /// addresses without end go to one Service each.
    Opening,
}

impl Grid {
    const fn for_workers(workers: usize) -> Self {
        const MOST_BITS: u32 = 2;
        let mut grid = Self { bits: MOST_BITS };
        while grid.bits > 0 && workers * grid.queues() > MOST_QUEUES {
            grid.bits -= 1;
        }
        grid
    }

    /// Of all classes together.
    const fn queues(self) -> usize {
        4 << (2 * self.bits)
    }

    /// The first queue of a class.
    const fn first(self, class: Class) -> i32 {
        (class as i32) << (2 * self.bits)
    }

    const fn column_bits(self, class: Class) -> u32 {
        match class {
            Class::Opening => self.bits + 1,
            Class::Other | Class::Established => self.bits,
        }
    }
}

/// Where what the program adds up is kept.
const SOURCE: Register = R7;
const DESTINATION: Register = R8;
/// The offset of TCP's or UDP's header, then what the ports add to the choice of a worker.
const TRANSPORT: Register = R9;

const TCP: i32 = 6;
const UDP: i32 = 17;

fn program(workers: usize, grid: Grid, keys: &Keys) -> Program {
    let mut code = Program::new();
    code.with_number(Set, SOURCE, 0);
    code.with_number(Set, DESTINATION, 0);
    code.read(Byte, 0);
    code.with_number(ShiftRight, R0, 4);
    let is_v6 = code.jump_if(R0, Equal, 6);

    add_words(&mut code, SOURCE, 12, &keys.source[..1]);
    add_words(&mut code, DESTINATION, 16, &keys.destination[..1]);
    const MORE_FRAGMENTS_OR_OFFSET: i32 = 0x3fff;
    code.read(Halfword, 6);
    let is_fragment = code.jump_if(R0, AnyBitOf, MORE_FRAGMENTS_OR_OFFSET);
    code.read(Byte, 0);
    code.with_number(And, R0, 0xf);
    code.with_number(ShiftLeft, R0, 2);
    code.with(Set, TRANSPORT, R0);
    code.read(Byte, 9);
    let protocol_is_known = code.jump();

    code.land(is_v6);
    add_words(&mut code, SOURCE, 8, &keys.source);
    add_words(&mut code, DESTINATION, 24, &keys.destination);
    code.with_number(Set, TRANSPORT, 40);
    code.read(Byte, 6);

    code.land(protocol_is_known);
    let is_tcp = code.jump_if(R0, Equal, TCP);
    let is_udp = code.jump_if(R0, Equal, UDP);
    code.land(is_fragment);
    code.with_number(Set, TRANSPORT, 0);
    let is_without_ports = code.jump();

    code.land(is_udp);
    code.read_behind(Word, TRANSPORT, 0);
    keep_ports(&mut code, keys.flow);
    code.land(is_without_ports);
    end(&mut code, workers, grid, Class::Other);

    const FLAGS: i32 = 13;
    const SYN: i32 = 0x02;
    const SYN_OR_ACK: i32 = 0x12;
    code.land(is_tcp);
    code.read_behind(Byte, TRANSPORT, FLAGS);
    code.with_number(And, R0, SYN_OR_ACK);
    let opens = code.jump_if(R0, Equal, SYN);
    end_of_tcp(&mut code, workers, grid, Class::Established, keys);
    code.land(opens);
    end_of_tcp(&mut code, workers, grid, Class::Opening, keys);
    code
}

/// Adds words of the packet to a sum, each times its key.
fn add_words(code: &mut Program, sum: Register, offset: i32, keys: &[u64]) {
    for (offset, key) in (offset..).step_by(4).zip(keys) {
        code.read(Word, offset);
        code.set(R1, *key);
        code.with(Multiply, R0, R1);
        code.with(Add, sum, R0);
    }
}

fn end_of_tcp(code: &mut Program, workers: usize, grid: Grid, class: Class, keys: &Keys) {
    code.read_behind(Word, TRANSPORT, 0);
    code.with(Set, TRANSPORT, R0);
    code.with_number(And, TRANSPORT, 0xffff);
    code.set(R1, keys.service);
    code.with(Multiply, TRANSPORT, R1);
    code.with(Add, DESTINATION, TRANSPORT);
    keep_ports(code, keys.flow);
    end(code, workers, grid, class);
}

/// The ports in R0, times their key, in place of where they stand.
fn keep_ports(code: &mut Program, key: u64) {
    code.set(TRANSPORT, key);
    code.with(Multiply, TRANSPORT, R0);
}

/// Ends with the class's first queue, and the row and column of the packet, of the queues of its worker.
fn end(code: &mut Program, workers: usize, grid: Grid, class: Class) {
    code.with_number(Set, R0, grid.first(class));
    let (row_bits, column_bits) = (grid.bits, grid.column_bits(class));
    if row_bits > 0 {
        upper_bits(code, SOURCE, row_bits);
        code.with_number(ShiftLeft, R1, column_bits as i32);
        code.with(Add, R0, R1);
    }
    if column_bits > 0 {
        upper_bits(code, DESTINATION, column_bits);
        code.with(Add, R0, R1);
    }
    if workers > 1 {
        // Of 32 bits of all that tells flows apart, times the number of workers, the upper ones.
        code.with(Add, TRANSPORT, SOURCE);
        code.with(Add, TRANSPORT, DESTINATION);
        code.with_number(ShiftRight, TRANSPORT, 32);
        code.with_number(Multiply, TRANSPORT, workers as i32);
        code.with_number(ShiftRight, TRANSPORT, 32);
        code.with_number(Multiply, TRANSPORT, grid.queues() as i32);
        code.with(Add, R0, TRANSPORT);
    }
    code.exit();
}

/// R1 becomes so many of the uppermost bits, of 64.
fn upper_bits(code: &mut Program, of: Register, bits: u32) {
    code.with(Set, R1, of);
    code.with_number(ShiftRight, R1, (u64::BITS - bits) as i32);
}

#[cfg(test)]
mod tests;
