//! A frame of a TUN device: the virtio-net header and one IP packet.
//!
//! Source: virtio 1.2, section 5.1.6; Linux `include/uapi/linux/virtio_net.h`. The header is in host byte order.

/// Bytes of the virtio-net header in front of each packet.
pub const VIRTIO_HEADER_LENGTH: usize = 10;

/// The longest packet: a TSO or USO packet of 64 KiB.
pub const MAXIMUM_PACKET_LENGTH: usize = 65_535 + 40;

/// The checksum field holds the pseudo header's sum; the rest is owed (VIRTIO_NET_HDR_F_NEEDS_CSUM).
const NEEDS_CHECKSUM: u8 = 1;
/// The checksum has been verified already (VIRTIO_NET_HDR_F_DATA_VALID).
const DATA_VALID: u8 = 2;

/// A reusable buffer that holds one frame.
#[derive(Debug)]
pub struct Frame {
    buffer: Box<[u8]>,
    length: usize,
}

/// What a frame's header says about its packet's transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// Complete and not looked at yet.
    Unverified,
    /// Complete, and found right by the device.
    Verified,
    /// Partial: whoever sends the packet out completes it.
    Partial,
}

/// How the kernel is to cut a train of packets (`VIRTIO_NET_HDR_GSO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// TCP over IPv4.
    TcpV4 = 1,
    /// TCP over IPv6.
    TcpV6 = 4,
    /// UDP over either.
    Udp = 5,
}

impl Frame {
    /// An empty frame with room for the longest packet.
    pub fn new() -> Self {
        Self::with_room(MAXIMUM_PACKET_LENGTH)
    }

    /// A frame that holds `packet` with a complete checksum.
    pub fn from_packet(packet: &[u8]) -> Self {
        let mut frame = Self::with_room(packet.len());
        frame.set_packet(packet);
        frame
    }

    fn with_room(packet_length: usize) -> Self {
        let room = VIRTIO_HEADER_LENGTH + packet_length;
        Self {
            buffer: vec![0; room].into_boxed_slice(),
            length: VIRTIO_HEADER_LENGTH,
        }
    }

    /// Replaces the content by `packet` with a complete checksum; longer packets than there is room for are cut.
    pub fn set_packet(&mut self, packet: &[u8]) {
        let length = packet.len().min(self.buffer.len() - VIRTIO_HEADER_LENGTH);
        self.buffer[..VIRTIO_HEADER_LENGTH].fill(0);
        self.buffer[VIRTIO_HEADER_LENGTH..][..length].copy_from_slice(&packet[..length]);
        self.length = VIRTIO_HEADER_LENGTH + length;
    }

    /// A copy in a buffer of just its size.
    pub fn duplicate(&self) -> Self {
        Self {
            buffer: self.bytes().into(),
            length: self.length,
        }
    }

    /// The room for a frame to be received into.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Says how many bytes of [`Frame::room`] were received.
    pub fn set_length(&mut self, length: usize) {
        self.length = length.clamp(VIRTIO_HEADER_LENGTH, self.buffer.len());
    }

    /// Header and packet.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// The packet.
    #[inline]
    pub fn packet(&self) -> &[u8] {
        &self.buffer[VIRTIO_HEADER_LENGTH..self.length]
    }

    /// The packet.
    #[inline]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[VIRTIO_HEADER_LENGTH..self.length]
    }

    /// The state of the transport checksum.
    #[inline]
    pub fn checksum_state(&self) -> ChecksumState {
        match self.buffer[0] {
            flags if flags & NEEDS_CHECKSUM != 0 => ChecksumState::Partial,
            flags if flags & DATA_VALID != 0 => ChecksumState::Verified,
            _ => ChecksumState::Unverified,
        }
    }

    /// Whether the checksum that is owed is that of the transport header at `transport`, at `offset` in it. Of a packet
    /// of a tunnel it may be that of the packet inside (local checksum offload): the outer one is complete then.
    #[inline]
    pub fn owes_checksum(&self, transport: usize, offset: usize) -> bool {
        let header = &self.buffer[..VIRTIO_HEADER_LENGTH];
        let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        header[0] & NEEDS_CHECKSUM != 0 && (word(6), word(8)) == (transport, offset)
    }

    /// Whether the packet is a train of several, which the kernel has not cut yet (`gso_type`).
    #[inline]
    pub fn is_segmented(&self) -> bool {
        self.buffer[1] != 0
    }

    /// Declares the packet a train of several: `headers` bytes stand in front of each, `size` bytes of data in each but
    /// the last.
    pub fn set_segmentation(&mut self, segmentation: Segmentation, headers: u16, size: u16) {
        self.buffer[1] = segmentation as u8;
        self.buffer[2..4].copy_from_slice(&headers.to_ne_bytes());
        self.buffer[4..6].copy_from_slice(&size.to_ne_bytes());
    }

    /// Replaces header and packet by those of another frame; more than there is room for is cut.
    pub fn copy_from(&mut self, other: &Self) {
        let length = other.length.min(self.buffer.len());
        self.buffer[..length].copy_from_slice(&other.buffer[..length]);
        self.length = length;
    }

    /// Puts `data` behind the packet; more than there is room for is cut.
    pub fn extend(&mut self, data: &[u8]) {
        let length = data.len().min(self.buffer.len() - self.length);
        self.buffer[self.length..][..length].copy_from_slice(&data[..length]);
        self.length += length;
    }

    /// Declares the transport checksum partial: `start` is the offset of the transport header in the packet,
    /// `offset` that of the field in the transport header.
    pub fn set_partial_checksum(&mut self, start: u16, offset: u16) {
        self.buffer[0] |= NEEDS_CHECKSUM;
        self.buffer[6..8].copy_from_slice(&start.to_ne_bytes());
        self.buffer[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}
