//! The states of a connection and the table of their changes.

use crate::conntrack::segment::TcpFlags;
use crate::tuple::Direction;
use std::fmt;

/// State of a connection, as `conntrack -L` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum State {
    /// Nothing seen yet.
    #[default]
    None,
    /// A SYN was seen.
    SynSent,
    /// A SYN+ACK was seen.
    SynReceived,
    /// The handshake is over, or the connection was picked up in its middle.
    Established,
    /// One side sent FIN.
    FinWait,
    /// The FIN was acknowledged.
    CloseWait,
    /// A FIN after a FIN.
    LastAck,
    /// The last FIN was acknowledged.
    TimeWait,
    /// Ended by RST.
    Close,
    /// A SYN from the reply side too: simultaneous open.
    SynSent2,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// Whether the connection is on its way out: may be dropped early although assured
    /// (`tcp_can_early_drop`), and its sequence numbers are no longer checked against RSTs.
    pub const fn is_closing(self) -> bool {
        matches!(
            self,
            Self::FinWait | Self::CloseWait | Self::LastAck | Self::TimeWait | Self::Close
        )
    }

    /// Name in `conntrack -L`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the state table knows a segment by: RST, else SYN or SYN+ACK, else FIN, else ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(in crate::conntrack) enum Kind {
    Syn,
    SynAck,
    Fin,
    Ack,
    Reset,
    #[default]
    None,
}

impl Kind {
    pub(in crate::conntrack) const ALL: [Self; 6] = [
        Self::Syn,
        Self::SynAck,
        Self::Fin,
        Self::Ack,
        Self::Reset,
        Self::None,
    ];

    pub(super) fn of(flags: TcpFlags) -> Self {
        if flags.has(TcpFlags::RST) {
            Self::Reset
        } else if flags.has(TcpFlags::SYN) {
            if flags.has(TcpFlags::ACK) {
                Self::SynAck
            } else {
                Self::Syn
            }
        } else if flags.has(TcpFlags::FIN) {
            Self::Fin
        } else if flags.has(TcpFlags::ACK) {
            Self::Ack
        } else {
            Self::None
        }
    }
}

/// A cell of the state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conntrack) enum Next {
    /// Accept and go to this state.
    To(State),
    /// Accept, keep the translation, change nothing.
    Ignore,
    /// Not of this connection.
    Invalid,
}

/// The state table: row of the packet, column of the state (reference section 2, "All 200 cells").
pub(in crate::conntrack) fn next_state(direction: Direction, kind: Kind, state: State) -> Next {
    use Next::{Ignore, Invalid, To};
    use State::{
        Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, None as NO,
        SynReceived as SR, SynSent as SS, SynSent2 as S2, TimeWait as TW,
    };
    match (direction, kind, state) {
        (_, Kind::None, _) => Invalid,

        (Direction::Original, Kind::Syn, NO | SS | TW | CL) => To(SS),
        (Direction::Original, Kind::Syn, S2) => To(S2),
        (Direction::Original, Kind::Syn, _) => Ignore,
        (Direction::Original, Kind::SynAck, SR | S2) => To(SR),
        (Direction::Original, Kind::SynAck, _) => Invalid,
        (Direction::Original, Kind::Ack, NO) => To(ES),

        (Direction::Reply, _, NO) => Invalid,
        (Direction::Reply, Kind::Syn, SS | S2) => To(S2),
        (Direction::Reply, Kind::Syn, TW) => To(SS),
        (Direction::Reply, Kind::Syn, _) => Invalid,
        (Direction::Reply, Kind::SynAck, SS | S2) => To(SR),
        (Direction::Reply, Kind::SynAck, _) => Ignore,
        (Direction::Reply, Kind::Ack, SS | S2) => Ignore,
        (Direction::Reply, Kind::Ack, SR) => To(SR),

        (_, Kind::Fin | Kind::Ack, NO | SS | S2) => Invalid,
        (_, Kind::Fin, SR | ES) => To(FW),
        (_, Kind::Fin, FW | CW | LA) => To(LA),
        (_, Kind::Ack, SR | ES) => To(ES),
        (_, Kind::Ack, FW | CW) => To(CW),
        (_, Kind::Ack, LA) => To(TW),
        (_, Kind::Fin | Kind::Ack, TW) => To(TW),
        (_, Kind::Fin | Kind::Ack, CL) => To(CL),

        (_, Kind::Reset, NO) => Invalid,
        (_, Kind::Reset, _) => To(CL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measured table, word for word: columns NO SS SR ES FW CW LA TW CL S2.
    const MEASURED: &str = "
        orig SYN     | SS | SS | ig | ig | ig | ig | ig | SS | SS | S2
        orig SYN+ACK | -- | -- | SR | -- | -- | -- | -- | -- | -- | SR
        orig FIN     | -- | -- | FW | FW | LA | LA | LA | TW | CL | --
        orig ACK     | ES | -- | ES | ES | CW | CW | TW | TW | CL | --
        orig RST     | -- | CL | CL | CL | CL | CL | CL | CL | CL | CL
        orig NONE    | -- | -- | -- | -- | -- | -- | -- | -- | -- | --
        reply SYN     | -- | S2 | -- | -- | -- | -- | -- | SS | -- | S2
        reply SYN+ACK | -- | SR | ig | ig | ig | ig | ig | ig | ig | SR
        reply FIN     | -- | -- | FW | FW | LA | LA | LA | TW | CL | --
        reply ACK     | -- | ig | SR | ES | CW | CW | TW | TW | CL | ig
        reply RST     | -- | CL | CL | CL | CL | CL | CL | CL | CL | CL
        reply NONE    | -- | -- | -- | -- | -- | -- | -- | -- | -- | --";

    const COLUMNS: [&str; 10] = ["NO", "SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2"];

    fn kind(name: &str) -> Kind {
        match name {
            "SYN" => Kind::Syn,
            "SYN+ACK" => Kind::SynAck,
            "FIN" => Kind::Fin,
            "ACK" => Kind::Ack,
            "RST" => Kind::Reset,
            _ => Kind::None,
        }
    }

    fn next(cell: &str) -> Next {
        match cell {
            "ig" => Next::Ignore,
            "--" => Next::Invalid,
            state => Next::To(State::ALL[COLUMNS.iter().position(|&name| name == state).unwrap()]),
        }
    }

    #[test]
    fn state_table_is_the_measured_one() {
        let mut cells = 0;
        for row in MEASURED.trim().lines() {
            let mut parts = row.split('|').map(str::trim);
            let (direction, name) = parts.next().unwrap().split_once(' ').unwrap();
            let direction = if direction == "orig" {
                Direction::Original
            } else {
                Direction::Reply
            };
            for (cell, state) in parts.zip(State::ALL) {
                assert_eq!(
                    next_state(direction, kind(name.trim()), state),
                    next(cell),
                    "{row}, {state}"
                );
                cells += 1;
            }
        }
        assert_eq!(
            cells, 120,
            "with its variants of flags the reference counts 200"
        );
    }
}
