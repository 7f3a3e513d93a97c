//! The line of a field, found by reading its document again. Only for messages.

use super::document::{self, Chunk};
use super::json::{self, Piece};
use crate::problem::Problem;
use crate::yaml;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// What nobody will read to the end keeps its objects' lines.
const REFINED: usize = 100;

/// Moves each problem from its object's line to its field's, where that can be found.
pub(super) fn refine(problems: &mut [Problem], text: &str) {
    if problems.is_empty() {
        return;
    }
    let chunks = document::split(text);
    let mut read: Option<(usize, Fields<'_>)> = None;
    for problem in problems
        .iter_mut()
        .take(REFINED)
        .filter(|problem| !problem.field.is_empty())
    {
        let number = problem.location.document;
        // Problems come in the order of their documents, each of which is read once.
        if read.as_ref().is_none_or(|read| read.0 != number) {
            let chunk = chunks.get(number - 1);
            read = chunk.map(|chunk| (number, Fields::of(chunk)));
        }
        if let Some((_, fields)) = &read
            && let Some(line) = fields.line(problem.location.line, &problem.field)
        {
            problem.location.line = line;
        }
    }
}

/// A document in a form that tells the lines of its fields.
enum Fields<'t> {
    /// Its objects, and the lines of the file before it.
    Json(Vec<Piece<'t>>, usize),
    /// All of it, and the lines of the file before it.
    Yaml(Tree, usize),
    /// It cannot be read again.
    Unknown,
}

impl<'t> Fields<'t> {
    fn of(chunk: &Chunk<'t>) -> Self {
        if let Some((text, lines_before)) = chunk.json()
            && let Ok(pieces) = json::cut(text)
        {
            return Self::Json(pieces, lines_before);
        }
        match serde_saphyr::from_str_with_options(chunk.text, yaml::options()) {
            Ok(tree) => Self::Yaml(tree, chunk.lines_before),
            Err(_) => Self::Unknown,
        }
    }

    /// Line in the file of a field of the object that begins in line `object`.
    fn line(&self, object: usize, path: &str) -> Option<usize> {
        match self {
            Self::Json(pieces, lines_before) => {
                let line = |piece: &Piece<'_>| lines_before + piece.lines_before + 1;
                let mut begun = pieces.iter().filter(|piece| line(piece) == object);
                // Of several in a line nobody knows which one is meant.
                let (piece, None) = (begun.next()?, begun.next()) else {
                    return None;
                };
                Some(object + json::lines_to_field(piece.text, path))
            }
            Self::Yaml(tree, lines_before) => {
                let line = field_line(tree, object.saturating_sub(*lines_before), path)?;
                Some(lines_before + line)
            }
            Self::Unknown => None,
        }
    }
}

/// A document with the line of everything in it.
enum Tree {
    Mapping(Vec<(String, Spanned<Self>)>),
    Sequence(Vec<Spanned<Self>>),
    Scalar,
}

/// Line in its document of a field of the object that begins in line `object`.
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
