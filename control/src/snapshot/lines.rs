//! The line of a field, found by reading its document again. Only for messages.

use super::document;
use crate::problem::Problem;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// Each takes a second reading of its document: what nobody will read to the end keeps its object's line.
const REFINED: usize = 100;

/// Moves each problem from its object's line to its field's, where that can be found.
pub(super) fn refine(problems: &mut [Problem], text: &str) {
    if problems.is_empty() {
        return;
    }
    let chunks = document::split(text);
    for problem in problems
        .iter_mut()
        .take(REFINED)
        .filter(|problem| !problem.field.is_empty())
    {
        let Some(chunk) = chunks.get(problem.location.document - 1) else {
            continue;
        };
        let Ok(tree) = serde_saphyr::from_str_with_options(chunk.text, document::options()) else {
            continue;
        };
        let line = problem.location.line.saturating_sub(chunk.lines_before);
        if let Some(found) = field_line(&tree, line, &problem.field) {
            problem.location.line = chunk.lines_before + found;
        }
    }
}

/// A document with the line of everything in it.
enum Tree {
    Mapping(Vec<(String, Spanned<Self>)>),
    Sequence(Vec<Spanned<Self>>),
    Scalar,
}

fn field_line(tree: &Tree, object_line: usize, path: &str) -> Option<usize> {
    let mut at = match tree.get("items").map(|items| &items.value) {
        Some(Tree::Sequence(items)) => {
            let item = items.iter().find(|item| line(item) == object_line)?;
            (&item.value, line(item))
        }
        _ => (tree, object_line),
    };
    // As far down as the path exists: a missing field is reported where it should be.
    for step in path
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']'))
    {
        let Some(next) = at.0.get(step) else {
            break;
        };
        at = (&next.value, line(next));
    }
    Some(at.1)
}

fn line(tree: &Spanned<Tree>) -> usize {
    tree.referenced.line() as usize
}

impl Tree {
    fn get(&self, step: &str) -> Option<&Spanned<Self>> {
        match self {
            Self::Mapping(fields) => fields
                .iter()
                .find(|field| field.0 == step)
                .map(|field| &field.1),
            Self::Sequence(elements) => elements.get(step.parse::<usize>().ok()?),
            Self::Scalar => None,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

macro_rules! scalars {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Tree, E> {
            Ok(Tree::Scalar)
        })*
    };
}

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Tree::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key()? {
            fields.push((key, map.next_value()?));
        }
        Ok(Tree::Mapping(fields))
    }
}
