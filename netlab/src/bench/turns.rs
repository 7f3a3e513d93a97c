//! A B A B: all that is measured takes a turn in every round, so that what the machine does besides harms all alike.

use super::Run;
use super::load::Figures;
use super::report::{Key, Row, Series};
use crate::lab::Error;

/// Lets `all` take turns. `once` measures one of them and is told the round.
pub(super) fn take<T>(
    run: Run<'_>,
    mut all: Vec<(Key, T)>,
    mut once: impl FnMut(&mut T, u32) -> Result<Figures, Error>,
) -> Result<Vec<Row>, Error> {
    let mut series: Vec<Series> = all.iter().map(|_| Series::default()).collect();
    for round in 0..run.arguments.rounds() {
        for ((_, subject), series) in all.iter_mut().zip(&mut series) {
            if (run.interrupted)() {
                return Err(Error::Interrupted);
            }
            series.add(once(subject, round)?);
        }
    }
    let keys = all.iter().map(|(key, _)| *key);
    Ok(keys
        .zip(&series)
        .flat_map(|(key, series)| series.rows(key))
        .collect())
}
