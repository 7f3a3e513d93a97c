//! Text to untyped objects with their places: streams of YAML or JSON documents, and lists of objects.
//!
//! A stream is cut at its `---` lines before it is parsed (no value of YAML or JSON can contain such a line), so that
//! each document has its line, one broken document does not hide the others, and large files are parsed on all
//! processors. What begins with a brace and a name in quotes is JSON, as `kubectl` has it; YAML in flow style has no quotes.

use super::blocks::Blocks;
use super::{json, list, printed};
use crate::parallel::on_all_processors;
use crate::problem::{Location, Problem};
use crate::yaml;
use memchr::memmem;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::fmt;
use std::sync::Arc;

/// An object as it was read.
#[derive(Debug)]
pub(super) struct RawObject {
    pub(super) location: Location,
    pub(super) value: Value,
    /// Kind that the list around it gives to items that do not say theirs (`ServiceList`).
    pub(super) list_kind: Option<String>,
}

/// What becomes of an object once it is read.
pub(super) trait Decode: Sync {
    /// What it becomes.
    type Object;
    /// What many of them are kept in.
    type Objects: Default + Extend<Self::Object> + Send;

    /// Decodes any object, and says what is wrong with one.
    fn decode(&self, object: RawObject) -> Self::Object;

    /// Decodes the text of one in JSON without that detour, to what [`Decode::decode`] would make of it; `None` where
    /// it takes the detour to know.
    fn decode_json(&self, _text: &str, _location: &Location) -> Option<Self::Object> {
        None
    }
}

impl<T: Send, F: Fn(RawObject) -> T + Sync> Decode for F {
    type Object = T;
    type Objects = Vec<T>;

    fn decode(&self, object: RawObject) -> T {
        self(object)
    }
}

/// Objects that a processor reads before it asks for more.
pub(super) const TURN: usize = 64;

/// What `decode` makes of all objects in `text`, lists taken apart, in parts that follow one another, and what could not
/// be read. Each object is decoded where it was parsed: all of a large file as untyped trees would take twenty times its
/// size.
pub(super) fn read<D: Decode>(
    file: &str,
    text: &str,
    decode: D,
) -> (Vec<D::Objects>, Vec<Problem>) {
    let file: Arc<str> = Arc::from(file);
    if let Some(parts) = whole_list(&file, text, &decode) {
        return (parts, Vec::new());
    }
    let chunks = split(text);
    let turns: Vec<&[Chunk<'_>]> = chunks.chunks(TURN).collect();
    let read = |turn: &&[Chunk<'_>]| {
        let mut parts = Parts::<D>::default();
        let problems = turn
            .iter()
            .filter_map(|chunk| chunk.read(&file, &decode, &mut parts).err());
        let problems: Vec<Problem> = problems.collect();
        (parts.finish(), problems)
    };
    let (mut parts, mut problems) = (Vec::new(), Vec::new());
    for (more, wrong) in on_all_processors(&turns, 1, read) {
        parts.extend(more);
        problems.extend(wrong);
    }
    (parts, problems)
}

/// Those in `text` if that is one list in JSON, as `kubectl` prints it: no marker can be in it, so none is looked for.
fn whole_list<D: Decode>(file: &Arc<str>, text: &str, decode: &D) -> Option<Vec<D::Objects>> {
    let mut chunks = Vec::new();
    push(&mut chunks, without_mark(text), 0);
    let [chunk] = &chunks[..] else {
        return None;
    };
    let (text, lines) = chunk.json()?;
    printed::read(&mut text.as_bytes(), &chunk.location(file, lines), decode)
}

/// Those in `blocks` if that is nothing but such a list, which need not be in memory as a whole.
pub(super) fn read_list<D: Decode>(
    file: &str,
    blocks: &mut impl Blocks,
    decode: D,
) -> Option<Vec<D::Objects>> {
    let location = Location {
        file: Arc::from(file),
        document: 1,
        line: 0,
    };
    printed::read(blocks, &location, &decode)
}

/// Objects in parts that follow one another: single ones are added to the last, large ones come whole.
pub(super) struct Parts<D: Decode> {
    whole: Vec<D::Objects>,
    last: D::Objects,
}

impl<D: Decode> Default for Parts<D> {
    fn default() -> Self {
        Self {
            whole: Vec::new(),
            last: D::Objects::default(),
        }
    }
}

impl<D: Decode> Parts<D> {
    pub(super) fn add(&mut self, objects: impl Iterator<Item = D::Object>) {
        self.last.extend(objects);
    }

    pub(super) fn add_whole(&mut self, parts: Vec<D::Objects>) {
        self.whole.push(std::mem::take(&mut self.last));
        self.whole.extend(parts);
    }

    fn finish(mut self) -> Vec<D::Objects> {
        self.add_whole(Vec::new());
        self.whole
    }
}

/// What `read` makes of each of many items, a part for each turn that a processor takes; the first failure when there is one.
pub(super) fn in_parts<I: Sync, D: Decode, E: Send>(
    items: &[I],
    read: impl Fn(&I) -> Result<D::Object, E> + Sync,
) -> Result<Vec<D::Objects>, E> {
    let turns: Vec<&[I]> = items.chunks(TURN).collect();
    let part = |turn: &&[I]| {
        let mut objects = D::Objects::default();
        for item in *turn {
            objects.extend([read(item)?]);
        }
        Ok(objects)
    };
    on_all_processors(&turns, 1, part).into_iter().collect()
}

/// One document of a stream.
pub(super) struct Chunk<'t> {
    pub(super) text: &'t str,
    /// Number of the document, from 1: its place in the stream.
    number: usize,
    /// Lines of the file before the chunk.
    pub(super) lines_before: usize,
    /// Lines of the chunk before its first that says something.
    lead: usize,
}

/// Cuts at document markers; documents of comments alone are left out. JSON without markers is one.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let text = without_mark(text);
    let mut chunks: Vec<Chunk<'_>> = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut number, mut counted) = (0, 0);
    for at in likely_markers(text) {
        number += memchr::memchr_iter(b'\n', &text.as_bytes()[counted..at]).count();
        counted = at;
        let line = &text[at..];
        if is_marker(line, "---") {
            push(&mut chunks, &text[start..at], start_line);
            (start, start_line) = (at, number);
        } else if is_marker(line, "...") {
            push(&mut chunks, &text[start..at], start_line);
            let length = line.find('\n').map_or(line.len(), |end| end + 1);
            (start, start_line) = (at + length, number + 1);
        }
    }
    push(&mut chunks, &text[start..], start_line);
    chunks
}

/// Without the byte order mark that some editors begin a text with.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Where lines begin as markers do, ascending. Few do, and a text may have millions of lines.
fn likely_markers(text: &str) -> Vec<usize> {
    let mut lines = vec![0];
    for start in ["\n---", "\n..."] {
        let found = memmem::find_iter(text.as_bytes(), start);
        lines.extend(found.map(|at| at + 1));
    }
    lines.sort_unstable();
    lines
}

fn push<'t>(chunks: &mut Vec<Chunk<'t>>, text: &'t str, lines_before: usize) {
    let says_something = |line: &str| {
        let line = line.trim();
        !(line.is_empty() || line == "---" || line.starts_with('#') || line.starts_with('%'))
    };
    if let Some(lead) = text.lines().position(says_something) {
        let number = chunks.len() + 1;
        chunks.push(Chunk {
            text,
            number,
            lines_before,
            lead,
        });
    }
}

/// Whether a line begins and ends with `marker`, comments apart; what follows the line does not matter.
fn is_marker(text: &str, marker: &str) -> bool {
    text.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl<'t> Chunk<'t> {
    fn read<D: Decode>(
        &self,
        file: &Arc<str>,
        decode: &D,
        parts: &mut Parts<D>,
    ) -> Result<(), Problem> {
        let location = |line| self.location(file, self.lines_before + line);
        if let Some((text, _)) = self.json() {
            return json::read(text, &location(self.lead), decode, parts);
        }
        if let Some(list) = list::read(self, &location(0), decode) {
            parts.add_whole(list);
            return Ok(());
        }
        let document: Document = serde_saphyr::from_str_with_options(self.text, yaml::options())
            .map_err(|error| self.unreadable(file, &error))?;
        let objects = document.into_objects(location(self.lead + 1), |span| {
            location(span.line() as usize)
        });
        parts.add(objects.into_iter().map(|object| decode.decode(object)));
        Ok(())
    }

    /// From the first line on that says something, when that begins as JSON does: with a brace, and a name in quotes. And
    /// the lines of the file before it.
    pub(super) fn json(&self) -> Option<(&'t str, usize)> {
        let mut text = self.text;
        for _ in 0..self.lead {
            text = text.split_once('\n')?.1;
        }
        let name = text.trim_start().strip_prefix('{')?.trim_start();
        let is_json = name.is_empty() || name.starts_with(['"', '}']);
        is_json.then_some((text, self.lines_before + self.lead))
    }

    fn location(&self, file: &Arc<str>, line: usize) -> Location {
        Location {
            file: Arc::clone(file),
            document: self.number,
            line,
        }
    }

    fn unreadable(&self, file: &Arc<str>, error: &serde_saphyr::Error) -> Problem {
        let line = error
            .location()
            .map_or(self.lead + 1, |at| at.line() as usize);
        let is = match serde_saphyr::from_str_with_options(self.text, yaml::options()) {
            Ok(Value::Array(_)) => {
                Some("a list without a head; put it below `kind: List` as its `items`")
            }
            Ok(Value::String(_) | Value::Number(_) | Value::Bool(_)) => Some("a single value"),
            _ => None,
        };
        let message = match is {
            Some(what) => format!("this is {what}; a Kubernetes object has apiVersion and kind"),
            None => format!("this is not readable as YAML: {}", yaml::reason(error)),
        };
        Problem {
            location: self.location(file, self.lines_before + line),
            object: None,
            field: String::new(),
            message,
        }
    }
}

/// A document: an object, or a list of them whose items keep their places.
pub(super) struct Document {
    fields: Map<String, Value>,
    items: Option<Vec<Spanned<Value>>>,
}

impl Document {
    pub(super) fn list_kind(&self) -> Option<String> {
        list_kind(self.fields.get("kind"))
    }

    fn into_objects(
        self,
        location: Location,
        locate: impl Fn(serde_saphyr::Location) -> Location,
    ) -> Vec<RawObject> {
        let list_kind = self.list_kind();
        let Some(items) = self.items else {
            return vec![RawObject {
                location,
                value: Value::Object(self.fields),
                list_kind: None,
            }];
        };
        let object = |item: Spanned<Value>| RawObject {
            location: locate(item.referenced),
            value: item.value,
            list_kind: list_kind.clone(),
        };
        items.into_iter().map(object).collect()
    }
}

/// `ServiceList` says what its items are; `List` does not.
pub(super) fn list_kind(kind: Option<&Value>) -> Option<String> {
    let kind = kind?.as_str()?.strip_suffix("List")?;
    (!kind.is_empty()).then(|| kind.to_owned())
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (a mapping with apiVersion and kind)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document {
            fields: Map::new(),
            items: None,
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                document.items = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
            } else {
                document.fields.insert(key, map.next_value()?);
            }
        }
        Ok(document)
    }
}
