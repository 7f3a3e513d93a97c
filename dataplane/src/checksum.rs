//! The Internet checksum (RFC 1071), its incremental update (RFC 1624) and CRC32c for SCTP (RFC 9260, appendix A).
//!
//! A checksum field is in one of two states: *full* (the complement of the sum over everything it covers) or *partial*
//! (CHECKSUM_PARTIAL of Linux: the sum over the pseudo header only, not complemented; whoever sends the packet out
//! completes it). A full field changes with addresses and ports, a partial one with addresses alone.

use crate::tuple::{Address, Protocol};

/// Sum of `bytes` as big-endian 16-bit words in ones' complement, folded; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    let (quads, rest) = bytes.as_chunks::<8>();
    let mut total: u128 = 0;
    for quad in quads {
        total += u128::from(u64::from_be_bytes(*quad));
    }
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    total += u128::from(u64::from_be_bytes(tail));
    fold(total)
}

/// Where in its transport header a protocol has the checksum that may be left to whoever sends a packet out.
#[inline]
pub const fn offset(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::TCP => Some(16),
        Protocol::UDP => Some(6),
        _ => None,
    }
}

/// Adds two folded sums.
#[inline]
pub const fn add(left: u16, right: u16) -> u16 {
    let (total, carry) = left.overflowing_add(right);
    total + carry as u16
}

/// Sum over the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `length` is that of the transport header and its payload in bytes.
pub fn pseudo_header(source: Address, destination: Address, protocol: u8, length: u32) -> u16 {
    let addresses = add(address_sum(source), address_sum(destination));
    add(addresses, fold(u128::from(length) + u128::from(protocol)))
}

/// The mapped form of an IPv4 address begins with zeros and 0xffff, which is zero in ones' complement: to be left out.
#[inline]
const fn address_sum(address: Address) -> u16 {
    if address.is_ipv4() {
        fold_word(address.to_bits() as u32 as u64)
    } else {
        fold(address.to_bits())
    }
}

/// Ones' complement folding: 2^16 is 1, so the words of a number just add up.
#[inline]
const fn fold(total: u128) -> u16 {
    let (sum, carry) = (total as u64).overflowing_add((total >> 64) as u64);
    // A sum that carried is at least one short of the largest.
    fold_word(sum + carry as u64)
}

/// The same of 64 bits. The upper half of a sum of 32 bits and of itself, turned around, is the sum of both halves, with
/// the carry of the lower one.
#[inline(always)]
const fn fold_word(total: u64) -> u16 {
    let (sum, carry) = (total as u32).overflowing_add((total >> 32) as u32);
    let sum = sum + carry as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The full checksum `field` after a word that it covers grew by `amount`, and did not overflow.
#[inline]
pub const fn after_growth(field: u16, amount: u16) -> u16 {
    let (less, borrow) = field.overflowing_sub(amount);
    less - borrow as u16
}

/// How the sum over some words changes when they are replaced: the sum of `~old + new` (RFC 1624, equation 3). Not folded
/// until it is applied: no address adds more than 2^33, and there is room for 2^31 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    /// One 16-bit word replaced.
    #[inline]
    pub const fn word(old: u16, new: u16) -> Self {
        Self(!old as u64 + new as u64)
    }

    /// Two addresses replaced by others of their family, which is IPv4 or is not.
    #[inline(always)]
    pub const fn addresses(is_ipv4: bool, old: [Address; 2], new: [Address; 2]) -> Self {
        if is_ipv4 {
            Self::address_v4(old[0], new[0]).and(Self::address_v4(old[1], new[1]))
        } else {
            Self::address_v6(old[0], new[0]).and(Self::address_v6(old[1], new[1]))
        }
    }

    /// The complement of a word of 32 bits is also that of its two halves.
    #[inline(always)]
    const fn address_v4(old: Address, new: Address) -> Self {
        let (old, new) = (old.to_bits() as u32, new.to_bits() as u32);
        Self(!old as u64 + new as u64)
    }

    #[inline]
    const fn address_v6(old: Address, new: Address) -> Self {
        Self::word(fold(old.to_bits()), fold(new.to_bits()))
    }

    /// Both changes.
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The full checksum `field` after the change.
    #[inline]
    pub const fn apply(self, field: u16) -> u16 {
        !fold_word((!field) as u64 + self.0)
    }

    /// The partial checksum `field` after the change.
    #[inline]
    pub const fn apply_partial(self, field: u16) -> u16 {
        fold_word(field as u64 + self.0)
    }
}

/// CRC32c of `bytes` (Castagnoli, reflected, initial and final complement).
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (crc >> 8) ^ CRC32C_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize]
    })
}

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285, HC' = 0x0000.
        assert_eq!(Change::word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    /// As if the word had been replaced, for every checksum that there is.
    #[test]
    fn growth_is_the_change_of_a_word() {
        let change = Change::word(0x3f00, 0x4000);
        for field in 0..=u16::MAX {
            assert_eq!(
                after_growth(field, 0x0100),
                change.apply(field),
                "{field:04x}"
            );
        }
    }

    proptest! {
        #[test]
        fn sum_equals_the_sum_of_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), naive(&bytes));
        }

        #[test]
        fn a_change_equals_a_full_recomputation(
            mut words in proptest::collection::vec(any::<u16>(), 3..40),
            at in any::<proptest::sample::Index>(),
            new in any::<u16>(),
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            // A constant word keeps the sum from being zero, whose two forms compare unequal.
            words.push(0x0101);
            let at = at.index(words.len() - 1);
            let (full, partial) = (!sum(&bytes(&words)), sum(&bytes(&words)));
            let change = Change::word(words[at], new);
            words[at] = new;
            prop_assert_eq!(change.apply(full), !sum(&bytes(&words)));
            prop_assert_eq!(change.apply_partial(partial), sum(&bytes(&words)));
        }
    }
}
