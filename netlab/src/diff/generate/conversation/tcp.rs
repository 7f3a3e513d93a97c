//! Conversations of TCP.

use super::super::cluster::pick;
use super::Talk;
use crate::diff::case::{Body, Segment};

impl Talk<'_> {
    /// Handshake, data both ways, and one of several ends.
    pub(super) fn tcp_in_order(&mut self) {
        let scale = (self.rng.bool()).then(|| self.rng.u8(..15));
        let segment = |flags: &str, sequence, acknowledgement, data| Segment {
            flags: flags.to_owned(),
            sequence,
            acknowledgement,
            window: 64_240,
            data,
            scale: None,
            sack: None,
        };
        let with_scale = |segment: Segment| Body::Tcp(Segment { scale, ..segment });
        self.client(with_scale(segment("S", 0, 0, 0)));
        self.server(with_scale(segment("SA", 0, 1, 0)));
        self.client(Body::Tcp(segment("A", 1, 1, 0)));
        let (mut sent, mut answered) = (1, 1);
        for _ in 0..self.rng.usize(..6) {
            let data = self.length();
            let is_client = self.rng.bool();
            let retransmitted = self.rng.u8(..5) == 0;
            for _ in 0..1 + usize::from(retransmitted) {
                if is_client {
                    self.client(Body::Tcp(segment("PA", sent, answered, data)));
                } else {
                    self.server(Body::Tcp(segment("PA", answered, sent, data)));
                }
            }
            if is_client {
                sent += i64::from(data);
                self.server(Body::Tcp(segment("A", answered, sent, 0)));
            } else {
                answered += i64::from(data);
                self.client(Body::Tcp(segment("A", sent, answered, 0)));
            }
            self.perhaps_an_error();
        }
        match self.rng.u8(..5) {
            0 => self.client(Body::Tcp(segment("RA", sent, answered, 0))),
            1 => self.server(Body::Tcp(segment("R", answered, 0, 0))),
            2 => {
                // Half-closed: the server goes on.
                self.client(Body::Tcp(segment("FA", sent, answered, 0)));
                self.server(Body::Tcp(segment("PA", answered, sent + 1, 100)));
                self.client(Body::Tcp(segment("A", sent + 1, answered + 100, 0)));
            }
            _ => {
                self.client(Body::Tcp(segment("FA", sent, answered, 0)));
                self.server(Body::Tcp(segment("FA", answered, sent + 1, 0)));
                self.client(Body::Tcp(segment("A", sent + 1, answered + 1, 0)));
                if self.rng.u8(..4) == 0 {
                    self.client(Body::Tcp(segment("RA", sent + 1, answered + 1, 0)));
                }
            }
        }
        if self.rng.u8(..3) == 0 {
            // The same port again.
            self.client(with_scale(segment("S", 500_000, 0, 0)));
            self.server(with_scale(segment("SA", 700_000, 500_001, 0)));
            self.client(Body::Tcp(segment("A", 500_001, 700_001, 0)));
        }
    }

    /// Segments that may or may not fit together.
    pub(super) fn tcp_anyhow(&mut self) {
        const FLAGS: [&str; 14] = [
            "S", "S", "SA", "SA", "A", "A", "A", "PA", "FA", "FA", "R", "RA", "SAF", "",
        ];
        // Flags that a socket of the node can send.
        const BY_SOCKET: [&str; 8] = ["S", "S", "A", "A", "PA", "PA", "FA", "RA"];
        const OFFSETS: [i64; 12] = [
            0, 0, 1, 1, 1, 2, 101, 60_000, 65_000, 130_000, -5_000, -100_000,
        ];
        if self.rng.bool() {
            self.client(plain("S", 0, 0));
            if self.rng.bool() {
                self.server(plain("SA", 0, 1));
                if self.rng.bool() {
                    self.client(plain("A", 1, 1));
                }
            }
        }
        for _ in 0..self.rng.usize(1..10) {
            let data = if self.rng.u8(..4) == 0 {
                self.length()
            } else {
                0
            };
            let sack = (self.rng.u8(..12) == 0).then_some((50, 101));
            let flags: &[&str] = if self.by_socket { &BY_SOCKET } else { &FLAGS };
            let segment = Segment {
                flags: (*pick(self.rng, flags)).to_owned(),
                sequence: *pick(self.rng, &OFFSETS),
                acknowledgement: *pick(self.rng, &OFFSETS),
                window: *pick(self.rng, &[64_240, 64_240, 64_240, 1000, 0]),
                data,
                scale: (self.rng.u8(..4) == 0).then_some(7),
                sack,
            };
            self.either(Body::Tcp(segment));
        }
    }
}

fn plain(flags: &str, sequence: i64, acknowledgement: i64) -> Body {
    Body::Tcp(Segment {
        flags: flags.to_owned(),
        sequence,
        acknowledgement,
        window: 64_240,
        data: 0,
        scale: None,
        sack: None,
    })
}
