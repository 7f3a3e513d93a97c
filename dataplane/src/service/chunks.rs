//! [`Chunks`]: a list that versions of it share, so that the next one costs what changes.

use std::sync::Arc;

/// How long a chunk should be, and how far from its start an item has a [`Position`].
const CHUNK: usize = 64;

/// Where an item stands: the number of its chunk and how far in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position(u32);

impl Position {
    const fn new(chunk: usize, offset: usize) -> Self {
        Self((chunk * CHUNK + offset) as u32)
    }

    /// As a number: that of the item in the list where every chunk is full.
    pub(super) const fn to_u32(self) -> u32 {
        self.0
    }

    pub(super) const fn from_u32(number: u32) -> Self {
        Self(number)
    }

    const fn chunk(self) -> usize {
        self.0 as usize / CHUNK
    }

    const fn offset(self) -> usize {
        self.0 as usize % CHUNK
    }
}

/// A list in chunks. A clone shares all of them until one of its items is changed.
///
/// Invariants: no chunk is empty; each but the last is as long as a chunk should be, or longer where items must stay
/// together.
#[derive(Clone, Debug)]
pub(super) struct Chunks<T> {
    chunks: Vec<Arc<[T]>>,
}

impl<T: Clone> Chunks<T> {
    /// A list that is cut only between items of which `parts` is true.
    pub(super) fn cut(items: Vec<T>, parts: impl Fn(&T, &T) -> bool) -> Self {
        let mut chunks = Vec::with_capacity(items.len().div_ceil(CHUNK));
        let mut chunk: Vec<T> = Vec::with_capacity(CHUNK);
        for item in items {
            let is_full = chunk.len() >= CHUNK;
            if is_full && chunk.last().is_some_and(|last| parts(last, &item)) {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK));
                chunks.push(Arc::from(full));
            }
            chunk.push(item);
        }
        if !chunk.is_empty() {
            chunks.push(Arc::from(chunk));
        }
        Self { chunks }
    }

    /// A list that may be cut anywhere: the position of an item is its number.
    pub(super) fn even(items: Vec<T>) -> Self {
        Self::cut(items, |_, _| true)
    }

    /// The items from `position` to the end of its chunk, to be changed. Others that share it keep what they have.
    pub(super) fn change_from(&mut self, position: Position) -> &mut [T] {
        &mut Arc::make_mut(&mut self.chunks[position.chunk()])[position.offset()..]
    }

    /// All items, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let chunks = self.chunks.iter_mut();
        chunks.flat_map(|chunk| Arc::make_mut(chunk).iter_mut())
    }
}

impl<T> Chunks<T> {
    /// The item at `position`.
    pub(super) fn at(&self, position: Position) -> &T {
        &self.chunks[position.chunk()][position.offset()]
    }

    /// The items from `position` to the end of its chunk: all that must stay together with it.
    pub(super) fn from(&self, position: Position) -> &[T] {
        &self.chunks[position.chunk()][position.offset()..]
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Each item that has a position, with it. An item without one stays together with an earlier one that has.
    pub(super) fn positions(&self) -> impl Iterator<Item = (Position, &T)> {
        self.chunks.iter().enumerate().flat_map(|(number, chunk)| {
            let numbered = chunk.iter().take(CHUNK).enumerate();
            numbered.map(move |(offset, item)| (Position::new(number, offset), item))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of equal numbers stay together: 10 ones, 100 twos, 200 threes, a four.
    fn runs() -> Chunks<u32> {
        let runs = [(1, 10), (2, 100), (3, 200), (4, 1)];
        let items = runs.iter().flat_map(|(item, count)| vec![*item; *count]);
        Chunks::cut(items.collect(), |a, b| a != b)
    }

    #[test]
    fn what_stays_together_is_found_from_its_first_item() {
        let chunks = runs();
        assert_eq!(chunks.len(), 311);
        assert_eq!(chunks.iter().count(), 311);
        for (item, count) in [(1, 10), (2, 100), (3, 200), (4, 1)] {
            let mut positions = chunks.positions();
            let (first, _) = positions.find(|(_, found)| **found == item).unwrap();
            let first = Position::from_u32(first.to_u32());
            let run = chunks
                .from(first)
                .iter()
                .take_while(|found| **found == item);
            assert_eq!(run.count(), count);
            assert_eq!(*chunks.at(first), item);
        }
    }

    #[test]
    fn where_nothing_stays_together_a_position_is_a_number() {
        let chunks = Chunks::even((0..200).collect());
        for number in 0..200 {
            assert_eq!(*chunks.at(Position::from_u32(number)), number);
        }
        assert!(chunks.iter().copied().eq(0..200));
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let before = runs();
        let mut after = before.clone();
        let (place, _) = before.positions().find(|(_, item)| **item == 4).unwrap();
        after.change_from(place)[0] = 9;
        after.change_from(place)[0] += 1;
        assert_eq!((*before.at(place), *after.at(place)), (4, 10));
        let shared = before.chunks.iter().zip(&after.chunks);
        let copied = shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }
}
