//! JSON to untyped objects with their places: lists, and documents one after another.
//!
//! A name that stands twice in one object is refused, as in YAML. Read [`super::printed`] next, for the lists that `kubectl`
//! prints.

use super::document::{Decode, Parts, RawObject, in_parts, list_kind};
use crate::problem::{Location, Problem};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// An object that is not parsed yet.
pub(super) struct Piece<'t> {
    pub(super) text: &'t str,
    /// Lines of the whole text before it.
    pub(super) lines_before: usize,
    pub(super) list_kind: Option<String>,
}

/// Adds the objects in `text`, which begins below the line of `location`, when all can be read.
pub(super) fn read<D: Decode>(
    text: &str,
    location: &Location,
    decode: &D,
    parts: &mut Parts<D>,
) -> Result<(), Problem> {
    let unreadable = |(lines_before, error)| unreadable(location, lines_before, &error);
    let parse = |piece: &Piece<'_>| piece.read(location, decode);
    let pieces = cut(text).map_err(|error| unreadable((0, error)))?;
    match &pieces[..] {
        [piece] => parts.add(std::iter::once(parse(piece).map_err(unreadable)?)),
        pieces => parts.add_whole(in_parts::<_, D, _>(pieces, parse).map_err(unreadable)?),
    }
    Ok(())
}

impl Piece<'_> {
    /// The object in it; the text that it is of begins below the line of `location`. An error comes with the lines before
    /// it.
    pub(super) fn read<D: Decode>(
        &self,
        location: &Location,
        decode: &D,
    ) -> Result<D::Object, (usize, serde_json::Error)> {
        let location = below(location, self.lines_before + 1);
        if let Some(object) = decode.decode_json(self.text, &location) {
            return Ok(object);
        }
        let parsed = serde_json::from_str(self.text);
        let Unique(value) = parsed.map_err(|error| (self.lines_before, error))?;
        Ok(decode.decode(RawObject {
            location,
            value,
            list_kind: self.list_kind.clone(),
        }))
    }
}

fn unreadable(location: &Location, lines_before: usize, error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    Problem {
        location: below(location, lines_before + error.line().max(1)),
        object: None,
        field: String::new(),
        message: format!("this is not readable as JSON: {message}"),
    }
}

fn below(location: &Location, lines: usize) -> Location {
    Location {
        line: location.line + lines,
        ..location.clone()
    }
}

/// The objects of one document after another, parsed as far as it takes to know where each ends.
pub(super) fn cut(text: &str) -> serde_json::Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let (mut from, mut counted, mut lines_before) = (0, 0, 0);
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<Document<'_>>();
    while let Some(document) = documents.next() {
        let document = document?;
        let whole = text[from..documents.byte_offset()].trim_start();
        from = documents.byte_offset();
        let list_kind = list_kind(document.kind.as_ref());
        let items = document.items;
        let objects = items.map(|items| items.into_iter().map(RawValue::get).collect());
        for object in objects.unwrap_or_else(|| vec![whole]) {
            let at = offset(text, object);
            lines_before += lines(&text.as_bytes()[counted..at]);
            counted = at;
            pieces.push(Piece {
                text: object,
                lines_before,
                list_kind: list_kind.clone(),
            });
        }
    }
    Ok(pieces)
}

/// Line breaks in a text.
pub(super) fn lines(text: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', text).count()
}

/// Where in `text` this piece of it begins.
fn offset(text: &str, piece: &str) -> usize {
    piece.as_ptr().addr() - text.as_ptr().addr()
}

/// The kind that a list gives to its items, of which it has so much before and after them; `None` if that is no list.
#[expect(
    clippy::option_option,
    reason = "a list need not give its items a kind"
)]
pub(super) fn kind_of_list(before: &str, after: &str) -> Option<Option<String>> {
    let of_one_item = format!("{before}0{after}");
    let document: Document<'_> = serde_json::from_str(&of_one_item).ok()?;
    // It must be the list's own, and not that of something in it.
    let [item] = document.items?[..] else {
        return None;
    };
    let is_its = offset(&of_one_item, item.get()) == before.len();
    is_its.then(|| list_kind(document.kind.as_ref()))
}

/// An object whose fields are not looked at yet, or a list of them.
struct Document<'t> {
    kind: Option<Value>,
    items: Option<Vec<&'t RawValue>>,
}

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (with apiVersion and kind)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document<'de>, A::Error> {
        let mut document = Document {
            kind: None,
            items: None,
        };
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "kind" => document.kind = Some(map.next_value()?),
                "items" => {
                    let items: Option<_> = map.next_value()?;
                    document.items = Some(items.unwrap_or_default());
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if let Some(twice) = names.replace(name) {
                return Err(is_twice(&twice));
            }
        }
        Ok(document)
    }
}

fn is_twice<E: serde::de::Error>(name: &str) -> E {
    E::custom(format!("`{name}` stands twice in one object; remove one"))
}

/// A value in whose objects no name stands twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Unique(value) = map.next_value()?;
            match fields.entry(name) {
                Entry::Vacant(place) => drop(place.insert(value)),
                Entry::Occupied(place) => return Err(is_twice(place.key())),
            }
        }
        Ok(Value::Object(fields))
    }
}

/// Lines from the beginning of an object to the field at `path`, or to what should hold it.
pub(super) fn lines_to_field(object: &str, path: &str) -> usize {
    let mut at = object;
    let steps = path
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']'));
    for step in steps {
        let next = match at.as_bytes().first() {
            Some(b'{') => {
                let fields: Option<HashMap<String, &RawValue>> = serde_json::from_str(at).ok();
                fields.and_then(|fields| fields.get(step).copied())
            }
            Some(b'[') => {
                let elements: Option<Vec<&RawValue>> = serde_json::from_str(at).ok();
                let number = step.parse::<usize>().ok();
                elements.and_then(|elements| elements.get(number?).copied())
            }
            _ => None,
        };
        let Some(next) = next else {
            break;
        };
        at = next.get();
    }
    lines(&object.as_bytes()[..offset(object, at)])
}

#[cfg(test)]
mod tests;
