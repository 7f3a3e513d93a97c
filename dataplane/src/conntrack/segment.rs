//! What connection tracking reads of a transport header: parsed once, here.
//!
//! Measure: RFC 9293 (TCP), RFC 7323 (window scale), RFC 2018 (SACK), RFC 9260 (SCTP), and which of it the kernel
//! takes for INVALID (`tcp_error`, `do_basic_checks`).

use super::Invalid;
use super::tcp::Peer;
use super::window::after;

/// The flags of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both sets of flags.
    #[inline]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// PSH, ECE and CWR aside, the combinations that occur in real connections (`tcp_valid_flags`).
    const fn are_valid(self) -> bool {
        const SYN: u8 = TcpFlags::SYN.0;
        const SYN_URG: u8 = TcpFlags::SYN.0 | TcpFlags::URG.0;
        const SYN_ACK: u8 = TcpFlags::SYN.0 | TcpFlags::ACK.0;
        const RST: u8 = TcpFlags::RST.0;
        const RST_ACK: u8 = TcpFlags::RST.0 | TcpFlags::ACK.0;
        const FIN_ACK: u8 = TcpFlags::FIN.0 | TcpFlags::ACK.0;
        const FIN_ACK_URG: u8 = FIN_ACK | TcpFlags::URG.0;
        const ACK: u8 = TcpFlags::ACK.0;
        const ACK_URG: u8 = TcpFlags::ACK.0 | TcpFlags::URG.0;
        matches!(
            self.0 & !(Self::PSH.0 | Self::ECE.0 | Self::CWR.0),
            SYN | SYN_URG | SYN_ACK | RST | RST_ACK | FIN_ACK | FIN_ACK_URG | ACK | ACK_URG
        )
    }
}

/// The TCP options that tracking needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Whether the header has options at all: a SYN without any changes nothing of what is known of its side.
    pub present: bool,
    /// Window scale, at most 14 (RFC 7323, 2.3).
    pub window_scale: Option<u8>,
    /// SACK permitted.
    pub sack_permitted: bool,
    /// Highest right edge of the SACK blocks, when above the acknowledgement.
    pub highest_sack: Option<u32>,
}

impl TcpOptions {
    /// Reads options until their end or the first malformed one. Most segments have none, or timestamps alone.
    #[inline(always)]
    fn parse(bytes: &[u8], acknowledgement: u32) -> Self {
        match bytes {
            [] => Self::default(),
            [1, 1, 8, 10, _, _, _, _, _, _, _, _] => Self {
                present: true,
                ..Self::default()
            },
            _ => Self::parse_each(bytes, acknowledgement),
        }
    }

    fn parse_each(mut bytes: &[u8], acknowledgement: u32) -> Self {
        let mut options = Self {
            present: !bytes.is_empty(),
            ..Self::default()
        };
        let mut has_sack = false;
        loop {
            let (kind, length) = match *bytes {
                [] | [0, ..] | [_] => return options,
                [1, ref rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, length, ..] => (kind, usize::from(length)),
            };
            if length < 2 || length > bytes.len() {
                return options;
            }
            let (option, rest) = bytes.split_at(length);
            match (kind, &option[2..]) {
                (3, &[scale]) => options.window_scale = Some(scale.min(14)),
                (4, []) => options.sack_permitted = true,
                // Only the first one counts (`tcp_sack`).
                (5, blocks) if !blocks.is_empty() && blocks.len() % 8 == 0 && !has_sack => {
                    has_sack = true;
                    options.highest_sack = highest_edge(blocks, acknowledgement);
                }
                _ => {}
            }
            bytes = rest;
        }
    }

    pub(super) const fn peer_flags(&self) -> u8 {
        let mut flags = 0;
        if self.window_scale.is_some() {
            flags |= Peer::WINDOW_SCALE;
        }
        if self.sack_permitted {
            flags |= Peer::SACK_PERMITTED;
        }
        flags
    }
}

fn highest_edge(blocks: &[u8], acknowledgement: u32) -> Option<u32> {
    let edges = blocks
        .chunks_exact(8)
        .map(|block| u32::from_be_bytes([block[4], block[5], block[6], block[7]]));
    edges.fold(None, |highest, edge| {
        if after(edge, highest.unwrap_or(acknowledgement)) {
            Some(edge)
        } else {
            highest
        }
    })
}

/// A TCP header and the length of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flags.
    pub flags: TcpFlags,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// Bytes of data. Of a TSO packet all of them.
    pub data_length: u32,
    /// Options.
    pub options: TcpOptions,
}

impl TcpSegment {
    /// Parses a header with its options. `header` begins at the source port and may be longer than the header;
    /// `data_length` is the length of the data that follows it, in bytes.
    ///
    /// # Errors
    /// A header that is not whole, and combinations of flags that no connection uses.
    #[inline(always)]
    pub fn parse(header: &[u8], data_length: u32) -> Result<Self, Invalid> {
        let Some((fixed, _)) = header.split_first_chunk::<20>() else {
            return Err(Invalid::Truncated);
        };
        let header_length = usize::from(fixed[12] >> 4) * 4;
        let options = header.get(20..header_length).ok_or(Invalid::Truncated)?;
        let word = |at: usize| {
            u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let flags = TcpFlags(fixed[13]);
        if !flags.are_valid() {
            return Err(Invalid::TcpFlags(flags));
        }
        let acknowledgement = word(8);
        Ok(Self {
            flags,
            sequence: word(4),
            acknowledgement,
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            data_length,
            options: TcpOptions::parse(options, acknowledgement),
        })
    }

    /// Sequence number behind the segment; SYN and FIN count as one byte each.
    #[inline]
    pub const fn end(&self) -> u32 {
        let syn = self.flags.has(TcpFlags::SYN) as u32;
        let fin = self.flags.has(TcpFlags::FIN) as u32;
        self.sequence
            .wrapping_add(self.data_length)
            .wrapping_add(syn)
            .wrapping_add(fin)
    }
}

/// A type of SCTP chunk that tracking reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SctpChunkKind {
    /// 1.
    Init,
    /// 2.
    InitAck,
    /// 6.
    Abort,
    /// 7.
    Shutdown,
    /// 8.
    ShutdownAck,
    /// 9.
    Error,
    /// 10.
    CookieEcho,
    /// 11.
    CookieAck,
    /// 14.
    ShutdownComplete,
    /// 4.
    Heartbeat,
    /// 5.
    HeartbeatAck,
    /// DATA, SACK and all others.
    Other,
}

impl SctpChunkKind {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Init,
            2 => Self::InitAck,
            4 => Self::Heartbeat,
            5 => Self::HeartbeatAck,
            6 => Self::Abort,
            7 => Self::Shutdown,
            8 => Self::ShutdownAck,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete,
            _ => Self::Other,
        }
    }
}

/// One SCTP chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpChunk {
    /// Type.
    pub kind: SctpChunkKind,
    /// The T bit of ABORT and SHUTDOWN COMPLETE: the tag is that of the peer (RFC 9260, 8.5.1).
    pub tag_reflected: bool,
}

/// Chunks that tracking looks at in one packet; a packet has rarely more than two that are not DATA.
///
/// DIFFERS: the kernel looks at all. What stands behind so many that each mean something is not seen here.
const CHUNKS: usize = 8;

/// An SCTP packet: its tag and chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpPacket {
    /// Verification tag.
    pub verification_tag: u32,
    /// Initiate tag of INIT and INIT ACK, zero otherwise.
    pub initiate_tag: u32,
    /// Whether any chunk is DATA.
    pub has_data: bool,
    chunks: [SctpChunk; CHUNKS],
    count: u8,
}

impl SctpPacket {
    /// Parses the packet from its source port to its end.
    ///
    /// # Errors
    /// A header or chunk that is not whole, no chunk at all, and chunks that must stand alone or first but do not.
    pub fn parse(packet: &[u8]) -> Result<Self, Invalid> {
        let Some((header, mut rest)) = packet.split_first_chunk::<12>() else {
            return Err(Invalid::Truncated);
        };
        let mut parsed = Self {
            verification_tag: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            initiate_tag: 0,
            has_data: false,
            chunks: [SctpChunk {
                kind: SctpChunkKind::Other,
                tag_reflected: false,
            }; CHUNKS],
            count: 0,
        };
        let mut position = 0;
        let mut must_be_alone = false;
        while let [number, flags, high, low, body @ ..] = rest {
            let kind = SctpChunkKind::of(*number);
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            must_be_alone |= matches!(
                kind,
                SctpChunkKind::Init | SctpChunkKind::InitAck | SctpChunkKind::ShutdownComplete
            );
            let must_be_first =
                matches!(kind, SctpChunkKind::CookieAck | SctpChunkKind::CookieEcho);
            if length == 0 || (position > 0 && (must_be_alone || must_be_first)) {
                return Err(Invalid::SctpChunks);
            }
            if matches!(kind, SctpChunkKind::Init | SctpChunkKind::InitAck) {
                // The whole fixed part of INIT: tag, window, two counts of streams, first TSN.
                let Some((tag, _)) = body
                    .get(..16)
                    .and_then(|init| init.split_first_chunk::<4>())
                else {
                    return Err(Invalid::Truncated);
                };
                parsed.initiate_tag = u32::from_be_bytes(*tag);
            }
            parsed.has_data |= *number == 0;
            parsed.push(SctpChunk {
                kind,
                tag_reflected: flags & 1 != 0,
            });
            position += 1;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if position == 0 {
            Err(Invalid::SctpChunks)
        } else {
            Ok(parsed)
        }
    }

    /// Keeps one of the chunks without meaning, one ERROR, for a second one changes nothing, and up to [`CHUNKS`] in all.
    fn push(&mut self, chunk: SctpChunk) {
        let is_enough_once = matches!(chunk.kind, SctpChunkKind::Other | SctpChunkKind::Error);
        let known = is_enough_once && self.chunks().contains(&chunk);
        if !known && usize::from(self.count) < CHUNKS {
            self.chunks[usize::from(self.count)] = chunk;
            self.count += 1;
        }
    }

    /// The chunks in their order.
    pub fn chunks(&self) -> &[SctpChunk] {
        &self.chunks[..usize::from(self.count)]
    }

    pub(super) fn has(&self, kind: SctpChunkKind) -> bool {
        self.chunks().iter().any(|chunk| chunk.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn the_first_selective_acknowledgement_counts() {
        let block = |edge: u32| [&[5, 10, 0, 0, 0, 0], &edge.to_be_bytes()[..]].concat();
        let highest = |bytes: &[u8]| TcpOptions::parse(bytes, 1000).highest_sack;
        assert_eq!(highest(&block(2000)), Some(2000));
        assert_eq!(highest(&[block(2000), block(3000)].concat()), Some(2000));
        assert_eq!(
            highest(&[block(900), block(3000)].concat()),
            None,
            "below the acknowledgement"
        );
    }

    #[test]
    fn chunks_behind_many_errors_are_seen() {
        let chunk = |number| [number, 0, 0, 4];
        let mut packet = vec![0; 12];
        packet.extend(std::iter::repeat_n(chunk(9), 20).flatten());
        packet.extend(chunk(6));
        let parsed = SctpPacket::parse(&packet).unwrap();
        let kinds: Vec<_> = parsed.chunks().iter().map(|chunk| chunk.kind).collect();
        assert_eq!(kinds, [SctpChunkKind::Error, SctpChunkKind::Abort]);
    }

    /// The short ways are those of the long one; and what is not quite timestamps alone does not take them.
    #[test]
    fn options_are_read_alike_at_once_and_one_by_one() {
        let mut random = Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes = vec![1, 1, 8, 10];
            bytes.extend((0..8).map(|_| random.u8(..12)));
            match random.u8(..4) {
                0 => bytes[random.usize(..4)] = random.u8(..12),
                1 => bytes.extend([3, 3, 7, 0]),
                2 => bytes.clear(),
                _ => {}
            }
            assert_eq!(
                TcpOptions::parse(&bytes, 7),
                TcpOptions::parse_each(&bytes, 7),
                "{bytes:?}"
            );
        }
    }
}
