//! Text to untyped objects with their places: streams of YAML or JSON documents, and lists of objects.
//!
//! A stream of YAML is cut at its `---` lines before it is parsed (no YAML value can contain such a line), so that
//! each document has its line, one broken document does not hide the others, and large files are parsed on all
//! processors.

use super::list;
use crate::parallel::on_all_processors;
use crate::problem::{Location, Problem};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
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

/// Objects that a processor reads before it asks for more.
pub(super) const TURN: usize = 64;

/// What `decode` makes of all objects in `text`, lists taken apart, and what could not be read. Each object is
/// decoded where it was parsed: all of a large file as untyped trees would take twenty times its size.
pub(super) fn read<T: Send>(
    file: &str,
    text: &str,
    decode: impl Fn(RawObject) -> T + Sync,
) -> (Vec<T>, Vec<Problem>) {
    let file: Arc<str> = Arc::from(file);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(objects) = read_json(&file, text, &decode)
    {
        return (objects, Vec::new());
    }
    read_yaml(&file, text, decode)
}

fn read_yaml<T: Send>(
    file: &Arc<str>,
    text: &str,
    decode: impl Fn(RawObject) -> T + Sync,
) -> (Vec<T>, Vec<Problem>) {
    let chunks = split(text);
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for result in on_all_processors(&chunks, TURN, |chunk| chunk.read(file, &decode)) {
        match result {
            Ok(found) => objects.extend(found),
            Err(problem) => problems.push(problem),
        }
    }
    (objects, problems)
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

/// Cuts at document markers; documents of comments alone are left out. A stream of JSON is one.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks: Vec<Chunk<'_>> = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") || is_marker(line, "...") {
            push(&mut chunks, &text[start..offset], start_line);
            let skip = if line.starts_with("...") {
                line.len()
            } else {
                0
            };
            (start, start_line) = (offset + skip, number + usize::from(skip > 0));
        }
        offset += line.len();
    }
    push(&mut chunks, &text[start..], start_line);
    chunks
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

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Chunk<'_> {
    fn read<T: Send>(
        &self,
        file: &Arc<str>,
        decode: &(impl Fn(RawObject) -> T + Sync),
    ) -> Result<Vec<T>, Problem> {
        let location = |line| Location {
            file: Arc::clone(file),
            document: self.number,
            line: self.lines_before + line,
        };
        if let Some(objects) = list::read(self, &location(0), decode) {
            return Ok(objects);
        }
        let document: Document = serde_saphyr::from_str_with_options(self.text, options())
            .map_err(|error| self.unreadable(file, &error))?;
        let objects = document.into_objects(location(self.lead + 1), |span| {
            location(span.line() as usize)
        });
        Ok(objects.into_iter().map(decode).collect())
    }

    fn unreadable(&self, file: &Arc<str>, error: &serde_saphyr::Error) -> Problem {
        let line = error
            .location()
            .map_or(self.lead + 1, |at| at.line() as usize);
        Problem {
            location: Location {
                file: Arc::clone(file),
                document: self.number,
                line: self.lines_before + line,
            },
            object: None,
            field: String::new(),
            message: format!("this is not readable as YAML: {}", first_line(error)),
        }
    }
}

fn first_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// The default budget is far below what a cluster has; the limits on aliases stay.
pub(crate) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { budget: None, with_snippet: false }
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
fn list_kind(kind: Option<&Value>) -> Option<String> {
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

/// A JSON list's head; the items keep their text, which says where they stand.
#[derive(serde::Deserialize)]
struct JsonDocument<'t> {
    kind: Option<Value>,
    #[serde(borrow)]
    items: Option<Vec<&'t RawValue>>,
}

/// An object in JSON that is not read yet.
struct JsonObject<'t> {
    location: Location,
    text: &'t str,
    list_kind: Option<String>,
}

fn read_json<T: Send>(
    file: &Arc<str>,
    text: &str,
    decode: &(impl Fn(RawObject) -> T + Sync),
) -> Result<Vec<T>, serde_json::Error> {
    let objects = cut_json(file, text)?;
    let read = |object: &JsonObject<'_>| {
        Ok(decode(RawObject {
            location: object.location.clone(),
            value: serde_json::from_str(object.text)?,
            list_kind: object.list_kind.clone(),
        }))
    };
    let objects = on_all_processors(&objects, TURN, read);
    objects.into_iter().collect()
}

fn cut_json<'t>(file: &Arc<str>, text: &'t str) -> Result<Vec<JsonObject<'t>>, serde_json::Error> {
    let mut objects = Vec::new();
    let mut lines = LineCounter::new(text);
    let stream = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    for (index, document) in stream.enumerate() {
        let document = document?;
        let head: JsonDocument<'_> = serde_json::from_str(document.get())?;
        let list_kind = list_kind(head.kind.as_ref());
        for item in head.items.unwrap_or_else(|| vec![document]) {
            objects.push(JsonObject {
                location: Location {
                    file: Arc::clone(file),
                    document: index + 1,
                    line: lines.line_of(item.get()),
                },
                text: item.get(),
                list_kind: list_kind.clone(),
            });
        }
    }
    Ok(objects)
}

/// Lines of ascending places in a text.
struct LineCounter<'t> {
    text: &'t str,
    offset: usize,
    line: usize,
}

impl<'t> LineCounter<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            offset: 0,
            line: 1,
        }
    }

    /// Line of `part`, which is a piece of the text at or after the last one asked for.
    fn line_of(&mut self, part: &str) -> usize {
        let offset = part.as_ptr().addr() - self.text.as_ptr().addr();
        let between = &self.text.as_bytes()[self.offset..offset];
        self.line += between.iter().filter(|byte| **byte == b'\n').count();
        self.offset = offset;
        self.line
    }
}
