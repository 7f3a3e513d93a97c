//! A large list in YAML, as `kubectl get -o yaml` prints it, cut into its items before it is parsed.
//!
//! Within a block sequence every line of an item is indented deeper than its dash, so the lines that begin with a
//! dash in the first item's column are where items begin. What does not look like that is not cut, and what was
//! cut and cannot be read (an item may use an anchor of another) is for the caller to read whole.

use super::document::{Chunk, Decode, Document, RawObject, in_parts};
use crate::problem::Location;
use crate::yaml;
use serde_json::Value;
use serde_saphyr::Spanned;

/// Below this many bytes a list is read whole; threads would cost more than they bring.
const LARGE: usize = 1 << 16;

/// A list in pieces.
struct List<'t> {
    /// All but the items.
    head: String,
    items: Vec<Item<'t>>,
}

/// One item, its dash included.
struct Item<'t> {
    text: &'t str,
    /// Lines of the chunk before it.
    lines_before: usize,
}

/// The objects of a large list, read on all processors; `None` where `chunk` is none or cannot be read in pieces.
pub(super) fn read<D: Decode>(
    chunk: &Chunk<'_>,
    location: &Location,
    decode: &D,
) -> Option<Vec<D::Objects>> {
    if chunk.text.len() < LARGE {
        return None;
    }
    let list = cut(chunk.text)?;
    let head: Document = serde_saphyr::from_str_with_options(&list.head, yaml::options()).ok()?;
    let list_kind = head.list_kind();
    let read = |item: &Item<'_>| {
        let (value, line) = item.read().ok_or(())?;
        Ok(decode.decode(RawObject {
            location: Location {
                line: chunk.lines_before + line,
                ..location.clone()
            },
            value,
            list_kind: list_kind.clone(),
        }))
    };
    in_parts::<_, D, ()>(&list.items, read).ok()
}

fn cut(text: &str) -> Option<List<'_>> {
    let (before, rest) = text.split_once("\nitems:\n")?;
    let column = rest.len() - rest.trim_start_matches(' ').len();
    let mut list = List {
        head: format!("{before}\n"),
        items: Vec::new(),
    };
    let first_line = before.lines().count() + 1;
    let mut starts = Vec::new();
    let (mut offset, mut end) = (0, rest.len());
    for (number, line) in rest.split_inclusive('\n').enumerate() {
        match place(line, column) {
            Place::Start => starts.push((offset, first_line + number)),
            Place::Within if !starts.is_empty() => {}
            Place::After => {
                end = offset;
                break;
            }
            _ => return None,
        }
        offset += line.len();
    }
    list.head.push_str(&rest[end..]);
    let ends = starts.iter().skip(1).map(|start| start.0).chain([end]);
    list.items = starts
        .iter()
        .zip(ends)
        .map(|((start, lines_before), end)| Item {
            text: &rest[*start..end],
            lines_before: *lines_before,
        })
        .collect();
    Some(list)
}

/// What a line is to a sequence whose dashes stand in `column`.
enum Place {
    /// The first line of an item.
    Start,
    /// A further line of an item.
    Within,
    /// The list is over.
    After,
    /// Nothing that a list should hold.
    Odd,
}

fn place(line: &str, column: usize) -> Place {
    let said = line.trim_start_matches(' ');
    let indent = line.len() - said.len();
    let is_dash = said.starts_with("- ") || said.trim_end() == "-";
    match said.bytes().next() {
        None | Some(b'\n' | b'\r' | b'#') => Place::Within,
        Some(b'\t') => Place::Odd,
        _ if indent > column => Place::Within,
        _ if indent == column && is_dash => Place::Start,
        _ if indent == 0 && !is_dash => Place::After,
        _ => Place::Odd,
    }
}

impl Item<'_> {
    /// The object and its line in the chunk.
    fn read(&self) -> Option<(Value, usize)> {
        let items: Vec<Spanned<Value>> =
            serde_saphyr::from_str_with_options(self.text, yaml::options()).ok()?;
        let [item] = <[_; 1]>::try_from(items).ok()?;
        let line = self.lines_before + item.referenced.line() as usize;
        Some((item.value, line))
    }
}
