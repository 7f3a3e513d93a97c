//! What ICMP errors quote, as far as each side may quote it otherwise. Whatever is changed in a quote, the checksum of the
//! error follows.

use super::canonical::begins_as;
use super::ports;
use super::wire::{self, ICMP, Ip, SCTP};

/// What the node quotes of a packet that was sent to it has the ports of each side's own.
pub(super) fn forget_ports(bytes: &mut [u8], sent: &[Vec<u8>]) {
    let Some((ip, at, quoted)) = quote(bytes) else {
        return;
    };
    // NAT on its way may have mended it, or have left it as it was before.
    let checksum = match quoted.protocol {
        SCTP => quoted.transport + 8..quoted.transport + 12,
        _ => 0..0,
    };
    let is_quoted = |sent: &Vec<u8>| begins_as(&bytes[at..], sent, &checksum);
    if sent.iter().any(is_quoted) {
        change(bytes, &ip, |quote| {
            if let Some(rest) = quote.get_mut(quoted.transport..) {
                rest.fill(0);
            }
        });
    }
}

/// Whether the checksum in a quote of SCTP is there, and that of what is quoted, as NAT makes it.
pub(super) fn has_sctp_checksum(bytes: &[u8]) -> bool {
    quote(bytes).is_some_and(|(_, at, quoted)| wire::sctp_is_right(&bytes[at..], &quoted))
}

/// After ports were replaced: makes it that of what is quoted if it was so before. It covers a port that each side may have
/// drawn for itself, so where it was not it says nothing.
pub(super) fn renew_sctp_checksum(bytes: &mut [u8], was_right: bool) {
    let Some((ip, _, quoted)) = quote(bytes).filter(|(.., quoted)| quoted.protocol == SCTP) else {
        return;
    };
    change(bytes, &ip, |quote| {
        let field = quote.get_mut(quoted.transport + 8..quoted.transport + 12);
        if was_right {
            wire::mend_sctp(quote, &quoted);
        } else if let Some(checksum) = field {
            checksum.fill(0);
        }
    });
}

/// What is quoted may be a packet of a socket, which chose the identification.
pub(super) fn forget_identification(bytes: &mut [u8]) {
    let Some((ip, at, _)) = quote(bytes).filter(|(ip, ..)| ip.protocol == ICMP) else {
        return;
    };
    if bytes.len() < at + 20 {
        return;
    }
    change(bytes, &ip, |quote| {
        let identification = wire::word(quote, 4).unwrap_or_default();
        quote[4..6].fill(0);
        ports::mend(quote, 10, identification, 0);
    });
}

/// Of an ICMP error: its header, where its quote begins, and the header that is quoted.
pub(super) fn quote(bytes: &[u8]) -> Option<(Ip, usize, Ip)> {
    let ip = Ip::parse(bytes).filter(|ip| ip.is_error(bytes))?;
    let at = ip.transport + 8;
    Some((ip, at, Ip::parse(bytes.get(at..)?)?))
}

/// Changes what an ICMP error quotes, and its checksum by as much.
pub(super) fn change(bytes: &mut [u8], ip: &Ip, change: impl FnOnce(&mut [u8])) {
    let at = ip.transport + 8;
    let Some(quote) = bytes.get_mut(at..) else {
        return;
    };
    let before = wire::sum(quote);
    change(quote);
    let after = wire::sum(quote);
    let (before, after) = (wire::fold(before), wire::fold(after));
    ports::mend(bytes, ip.transport + 2, before, after);
}
