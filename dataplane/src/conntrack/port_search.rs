//! The table's part in the choice of a port ([`crate::ports`]).

use super::pools::{Bitmap, PortSearch};
use super::{Conntrack, Counter};
use crate::tuple::{Timestamp, Tuple};

impl Conntrack {
    /// A free port for a reply tuple from the destination's bitmap. `None`: it has none yet. `Some(None)`: all ports
    /// are taken.
    pub(crate) fn find_port(
        &self,
        search: &PortSearch<'_>,
        reserved: Option<&Bitmap>,
        now: Timestamp,
    ) -> Option<Option<u16>> {
        let is_free = |tuple: &Tuple| self.find(tuple, now).is_none();
        let pools = self.slots.pools();
        let found = pools.find(search, reserved, now, &is_free)?;
        self.statistics
            .add(Counter::Found, u64::from(found.is_none()));
        Some(found)
    }

    /// As [`Self::find_port`], with a bitmap that is made for it when there is none. One thread makes one at a time;
    /// another that needs one meanwhile looks at the ports one by one.
    pub(crate) fn open_pool(
        &self,
        search: &PortSearch<'_>,
        reserved: Option<&Bitmap>,
        now: Timestamp,
    ) -> Option<u16> {
        let is_free = |tuple: &Tuple| self.find(tuple, now).is_none();
        if self.slots.pools().open(search.reply, now)
            && let Some(found) = self.find_port(search, reserved, now)
        {
            return found;
        }
        let mut candidate = *search.reply;
        let ports = (search.start..=*search.range.end()).chain(*search.range.start()..search.start);
        ports
            .filter(|&port| !reserved.is_some_and(|reserved| reserved.contains(port)))
            .find(|&port| {
                *candidate.leased_port_mut() = port;
                is_free(&candidate)
            })
    }
}
