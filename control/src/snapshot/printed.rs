//! A list in JSON in the indentation of a printer, as `kubectl -o json` prints it, read block by block: all of its text
//! is never in memory.
//!
//! It is cut before it is parsed, between the lines at which its items seem to end and to begin, so that all processors
//! parse it, each what it has just read. When every piece is one whole value, and what stands before and behind them a list
//! with one item in their place, the list is those values, whatever the lines looked like. Else there is nothing (`None`),
//! and the text has to be read in another way, which knows what to say of it.

use super::blocks::{BLOCK, Blocks};
use super::document::Decode;
use super::json::{Piece, kind_of_list, lines};
use crate::parallel::in_turns;
use crate::problem::Location;
use memchr::memmem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What JSON allows between values.
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// No item has so many bytes: what the API server keeps has at most 1.5 MiB (etcd's `--max-request-bytes`).
const LARGEST_ITEM: usize = 8 << 20;

/// The objects of the list that is all there is in `blocks`; it begins below the line of `location`.
pub(super) fn read<D: Decode>(
    blocks: &mut impl Blocks,
    location: &Location,
    decode: &D,
) -> Option<Vec<D::Objects>> {
    let most = blocks.length() / BLOCK + 1;
    let (mut cutter, list) = Cutter::begin(blocks)?;
    let (is_given_up, spare) = (AtomicBool::new(false), Spare::default());
    let turns = std::iter::from_fn(|| {
        let turn = cutter.next(spare.take());
        turn.filter(|_| !is_given_up.load(Relaxed))
    });
    let parts = in_turns(turns.fuse(), most, |turn: Turn| {
        let objects = turn.read(&list, location, decode);
        is_given_up.fetch_or(objects.is_none(), Relaxed);
        spare.put(turn.text);
        objects
    });
    let parts = parts.into_iter().collect::<Option<_>>()?;
    let after = String::from_utf8(cutter.after?).ok()?;
    (kind_of_list(&list.before, &after)? == list.kind).then_some(parts)
}

/// Buffers that can be filled again. When one of their size is given back, glibc puts its whole heap in order: 18 ms for
/// 10,000 Services of ten endpoints.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let buffer = self.0.lock().ok().and_then(|mut buffers| buffers.pop());
        buffer.unwrap_or_else(|| Vec::with_capacity(2 * BLOCK))
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        if let Ok(mut buffers) = self.0.lock() {
            buffers.push(buffer);
        }
    }
}

/// What all items of a list have in common.
struct List {
    /// All that is before them.
    before: String,
    /// What the list, as far as it is before them, says that they are.
    kind: Option<String>,
    /// How the last line of each ends, with the break before it.
    end_of_item: String,
    /// From there to the beginning of the next one.
    seam: memmem::Finder<'static>,
}

impl List {
    /// Of what a text begins with.
    fn of(text: &[u8]) -> Option<Self> {
        const ITEMS: &str = "\"items\": [";
        let at = memmem::find(text, format!("{ITEMS}\n").as_bytes())?;
        let (before, items) = text.split_at(at + ITEMS.len());
        let before = str::from_utf8(before).ok()?;
        let kind = kind_of_list(before, "]}")?;
        let end_of_item = format!("\n{}}}", indentation(&items[1..])?);
        let seam = format!("{end_of_item},{}", end_of_item.replace('}', "{"));
        Some(Self {
            before: before.to_owned(),
            kind,
            end_of_item,
            seam: memmem::Finder::new(&seam).into_owned(),
        })
    }

    /// Where an item ends, for each that another one follows.
    fn ends<'t>(&'t self, text: &'t [u8]) -> impl Iterator<Item = usize> + 't {
        self.seam
            .find_iter(text)
            .map(|at| at + self.end_of_item.len())
    }
}

fn indentation(line: &[u8]) -> Option<&str> {
    let is_other = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let length = line.iter().position(is_other)?;
    str::from_utf8(&line[..length]).ok()
}

/// Hands out the items of a list in turns, some at a time.
struct Cutter<'b, B> {
    blocks: &'b mut B,
    /// What was read, from behind the comma in front of an item on.
    rest: Vec<u8>,
    /// Lines before `rest`.
    lines_before: usize,
    seam: memmem::FinderRev<'static>,
    /// Bytes of a seam that are of the item before it.
    end_of_item: usize,
    end_of_list: String,
    /// What stands behind all items, once all were handed out.
    after: Option<Vec<u8>>,
}

impl<'b, B: Blocks> Cutter<'b, B> {
    /// The head of a list is in the first block.
    fn begin(blocks: &'b mut B) -> Option<(Self, List)> {
        let mut rest = Vec::with_capacity(2 * BLOCK);
        blocks.add_next(&mut rest).ok()?;
        let list = List::of(&rest)?;
        let last_line = list.before.rsplit_once('\n')?.1;
        let end_of_list = format!("\n{}]", indentation(last_line.as_bytes())?);
        let seam = list.seam.needle();
        let cutter = Self {
            rest: rest.split_off(list.before.len()),
            lines_before: lines(list.before.as_bytes()),
            seam: memmem::FinderRev::new(seam).into_owned(),
            end_of_item: list.end_of_item.len(),
            end_of_list,
            after: None,
            blocks,
        };
        Some((cutter, list))
    }

    /// The next turn; none when there are no more, or when it cannot be read. What follows it goes to `rest`, which is empty.
    fn next(&mut self, mut rest: Vec<u8>) -> Option<Turn> {
        if self.after.is_some() {
            return None;
        }
        let (end, following, is_last) = match self.read_on()? {
            Cut::BeforeNext { end } => (end, end + ",".len(), false),
            Cut::AtEnd { end } => (end, end, true),
        };
        rest.extend_from_slice(&self.rest[following..]);
        let mut text = std::mem::replace(&mut self.rest, rest);
        text.truncate(end);
        if is_last {
            self.after = Some(std::mem::take(&mut self.rest));
        }
        let lines_before = self.lines_before;
        self.lines_before += lines(&text);
        Some(Turn { text, lines_before })
    }

    /// Reads on until `rest` can be cut.
    fn read_on(&mut self) -> Option<Cut> {
        let mut searched = 0;
        while self.rest.len() < LARGEST_ITEM {
            if self.blocks.add_next(&mut self.rest).ok()? == 0 {
                let end = memmem::rfind(&self.rest, self.end_of_list.as_bytes())?;
                return Some(Cut::AtEnd { end });
            }
            if let Some(at) = self.seam.rfind(&self.rest[searched..]) {
                let end = searched + at + self.end_of_item;
                return Some(Cut::BeforeNext { end });
            }
            let longest_start = self.seam.needle().len() - 1;
            searched = self.rest.len().saturating_sub(longest_start);
        }
        None
    }
}

/// Where a list can be cut.
enum Cut {
    /// Behind the last item that another one follows, in front of the comma.
    BeforeNext {
        /// Bytes before the cut.
        end: usize,
    },
    /// Behind the last item of all.
    AtEnd {
        /// Bytes before the cut.
        end: usize,
    },
}

/// Items of a list, one after another, with what is between them.
struct Turn {
    text: Vec<u8>,
    /// Lines of the whole text before it.
    lines_before: usize,
}

impl Turn {
    fn read<D: Decode>(&self, list: &List, location: &Location, decode: &D) -> Option<D::Objects> {
        let text = str::from_utf8(&self.text).ok()?;
        let mut objects = D::Objects::default();
        let (mut from, mut lines_before) = (0, self.lines_before);
        for end in list.ends(&self.text).chain([text.len()]) {
            let item = &text[from..end];
            let object = item.trim_start_matches(WHITESPACE);
            let lead = &item[..item.len() - object.len()];
            let piece = Piece {
                text: object,
                lines_before: lines_before + lines(lead.as_bytes()),
                list_kind: list.kind.clone(),
            };
            objects.extend([piece.read(location, decode).ok()?]);
            lines_before += lines(item.as_bytes());
            from = end + ",".len();
        }
        Some(objects)
    }
}
