//! Typed objects right from JSON, without an untyped tree in between: most of what there is to read.
//!
//! Invariant: what comes out is what the tree would have led to. Whatever may be wrong or is unusual is left to that way
//! (`None`): it knows what to say of it. So nothing is missed here: names that stand twice are looked for in fields that
//! nobody reads, too; a null where a value should be, or a list where an object should be, is given up.

use super::objects::{EndpointSlice, Node, Object, Service};
use super::typed::{Typed, expected_version, placed};
use crate::problem::Location;
use memchr::memmem;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;
use std::cell::Cell;
use std::fmt;
use std::sync::LazyLock;

/// The kinds that are many.
const KINDS: [&str; 3] = [Service::KIND, EndpointSlice::KIND, Node::KIND];

/// The object that `text` holds.
pub(super) fn typed(text: &str, location: &Location) -> Option<Typed> {
    match kind(text)? {
        "Service" => decode(text, location).map(Typed::Service),
        "EndpointSlice" => decode(text, location).map(Typed::EndpointSlice),
        "Node" => decode(text, location).map(Typed::Node),
        _ => None,
    }
}

/// What is probably its kind: the first that is read here of those that have the place that a printer gives it. What stands
/// before the first name of all stands before this one, too.
fn kind(text: &str) -> Option<&str> {
    const NAME: &str = "\"kind\":";
    // It takes as long to make as to look through an object.
    static NAMES: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(NAME));
    let (before, _) = text.strip_prefix('{')?.split_once('"')?;
    let mut kinds = NAMES.find_iter(text.as_bytes()).filter_map(|at| {
        let (head, value) = (&text[..at], &text[at + NAME.len()..]);
        let value = value.trim_start().strip_prefix('"')?;
        head.ends_with(before)
            .then(|| Some(value.split_once('"')?.0))?
    });
    kinds.find(|kind| KINDS.contains(kind))
}

fn decode<T: Object + DeserializeOwned>(text: &str, location: &Location) -> Option<T> {
    let head = Head::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let object = T::deserialize(Direct {
        deserializer: &mut json,
        head: Some(&head),
    });
    let object = object.ok()?;
    json.end().ok()?;
    let is_of_kind = head.kind.get() == Some(T::KIND)
        && head.api_version.get() == expected_version(T::KIND)
        && object.broken().is_empty();
    is_of_kind.then(|| placed(object, location.clone()))
}

/// What an object says of itself, which its type does not keep.
#[derive(Default)]
struct Head<'de> {
    api_version: Cell<Option<&'de str>>,
    kind: Cell<Option<&'de str>>,
}

impl<'de> Head<'de> {
    fn field(&self, name: &str) -> Option<&Cell<Option<&'de str>>> {
        match name {
            "apiVersion" => Some(&self.api_version),
            "kind" => Some(&self.kind),
            _ => None,
        }
    }
}

/// A deserializer of JSON, or what of it is handed on, that takes nothing unusual.
struct Direct<'h, 'de, D> {
    deserializer: D,
    /// At the top of an object.
    head: Option<&'h Head<'de>>,
}

impl<D> Direct<'_, '_, D> {
    const fn below(deserializer: D) -> Self {
        Self {
            deserializer,
            head: None,
        }
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Direct<'_, 'de, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let head = self.head;
        self.deserializer.deserialize_any(Watched { visitor, head })
    }

    /// No list stands for an object.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let head = self.head;
        self.deserializer.deserialize_map(Watched { visitor, head })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let head = self.head;
        self.deserializer
            .deserialize_option(Watched { visitor, head })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let head = self.head;
        self.deserializer
            .deserialize_enum(name, variants, Watched { visitor, head })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// Hands on what is read, objects and lists watched in turn.
struct Watched<'h, 'de, V> {
    visitor: V,
    head: Option<&'h Head<'de>>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, 'de, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.visitor.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.visitor.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.visitor.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        self.visitor.visit_f64(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.visitor.visit_str(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.visitor.visit_borrowed_str(value)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Direct::below(deserializer))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(access)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Elements(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Fields {
            map,
            head: self.head,
            names: [""; MOST_FIELDS],
            count: 0,
        })
    }
}

/// The elements of a list.
struct Elements<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Below(seed))
    }

    /// Most lists here have one element, and else room would be made for four.
    fn size_hint(&self) -> Option<usize> {
        Some(1)
    }
}

/// An object of more fields is unusual.
const MOST_FIELDS: usize = 24;

/// The fields of an object, no name twice.
struct Fields<'h, 'de, A> {
    map: A,
    head: Option<&'h Head<'de>>,
    names: [&'de str; MOST_FIELDS],
    count: usize,
}

impl<'de, A: MapAccess<'de>> Fields<'_, 'de, A> {
    /// The next name, which must have no escapes.
    fn next_name(&mut self) -> Result<Option<&'de str>, A::Error> {
        let Some(name) = self.map.next_key::<&'de str>()? else {
            return Ok(None);
        };
        let is_new = !self.names[..self.count].contains(&name);
        match self.names.get_mut(self.count) {
            Some(place) if is_new => *place = name,
            _ => return Err(A::Error::custom("a name stands twice, or they are many")),
        }
        self.count += 1;
        Ok(Some(name))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        while let Some(name) = self.next_name()? {
            match self.head.and_then(|head| head.field(name)) {
                Some(field) => field.set(Some(self.map.next_value()?)),
                None => {
                    return seed
                        .deserialize(BorrowedStrDeserializer::new(name))
                        .map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(Below(seed))
    }

    /// As that of lists.
    fn size_hint(&self) -> Option<usize> {
        Some(1)
    }
}

/// What is below the top.
struct Below<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Below<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Direct::below(deserializer))
    }
}

#[cfg(test)]
mod tests;
