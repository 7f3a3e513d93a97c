//! [`Labels`]: labels, annotations, selectors.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;

/// Names with their values, no name twice, in the order of the names. Most objects have one or two, for which a tree takes
/// ten times the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// The value of the name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.position(name).ok()?;
        Some(&self.0[at].1)
    }

    /// Whether the name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.position(name).is_ok()
    }

    /// Names with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Gives the name this value, in place of one that it had.
    pub fn insert(&mut self, name: String, value: String) {
        match self.position(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(other, _)| other.as_str().cmp(name))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LabelsVisitor)
    }
}

struct LabelsVisitor;

impl<'de> Visitor<'de> for LabelsVisitor {
    type Value = Labels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
        let mut labels = Labels(Vec::with_capacity(map.size_hint().unwrap_or(0)));
        // In order already, where a printer wrote them.
        while let Some((name, value)) = map.next_entry()? {
            labels.insert(name, value);
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_whatever_order_they_came() {
        let text = r#"{"b": "2", "c": "3", "a": "1", "": "0"}"#;
        let mut labels: Labels = serde_json::from_str(text).unwrap();
        for (name, value) in [("", "0"), ("a", "1"), ("b", "2"), ("c", "3")] {
            assert_eq!(labels.get(name), Some(value));
        }
        assert!(!labels.contains("d") && labels.get("aa").is_none());
        labels.insert("b".to_owned(), "4".to_owned());
        labels.insert("d".to_owned(), "5".to_owned());
        let all: Vec<_> = labels.iter().collect();
        assert_eq!(
            all,
            [("", "0"), ("a", "1"), ("b", "4"), ("c", "3"), ("d", "5")]
        );
        assert_eq!(
            labels,
            serde_json::from_str(r#"{"": "0", "d": "5", "c": "3", "b": "4", "a": "1"}"#).unwrap()
        );
    }
}
