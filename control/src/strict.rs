//! A value read as the API server reads it: in an object null is as good as absent, and no list stands for an object.
//!
//! What `serde` derives for a struct takes a list of its fields' values, too, and so would read `spec: []`.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Such a value.
#[derive(Clone, Copy)]
pub(crate) struct Strict<'de>(pub(crate) &'de Value);

/// What is wrong with one, without the names that this language has for numbers.
pub(crate) fn reason(error: &Error) -> String {
    let whole = [
        ("i64", ""),
        ("i32", ""),
        ("u64", " from 0 on"),
        ("u32", " from 0 on"),
    ];
    let words = |message: String, (name, range): (&str, &str)| {
        message.replace(
            &format!("expected {name}"),
            &format!("expected a whole number{range}"),
        )
    };
    whole.into_iter().fold(error.to_string(), words)
}

impl<'de> IntoDeserializer<'de, Error> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(fields) => {
                let given = fields.iter().filter(|(_, value)| !value.is_null());
                let given = given.map(|(name, value)| (name.as_str(), Self(value)));
                visitor.visit_map(MapDeserializer::new(given))
            }
            Value::Array(elements) => {
                visitor.visit_seq(SeqDeserializer::new(elements.iter().map(Self)))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}
