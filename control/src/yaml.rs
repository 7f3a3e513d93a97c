//! How YAML is read, and why it could not be.

use serde_saphyr::{Error, Options, UserMessageFormatter};

/// The default budget is far below what a cluster has; the limits on aliases and on depth stay.
pub(crate) fn options() -> Options {
    serde_saphyr::options! { budget: None, with_snippet: false }
}

/// What is wrong, in words for the text's writer. Without its place, which is that within the document and not within
/// the file; [`Error::location`] has it.
pub fn reason(error: &Error) -> String {
    if let Error::DuplicateMappingKey {
        key: Some(name), ..
    } = error.without_snippet()
    {
        return format!("`{name}` stands twice in one object; remove one");
    }
    let text = error
        .without_snippet()
        .render_with_formatter(&UserMessageFormatter);
    let line = text.lines().next().unwrap_or_default();
    let place = error
        .location()
        .map(|at| format!(" at line {}, column {}", at.line(), at.column()));
    let without = place.and_then(|place| line.strip_suffix(place.as_str()));
    without.unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn why(text: &str) -> String {
        let error = serde_saphyr::from_str_with_options::<Value>(text, options());
        reason(&error.unwrap_err())
    }

    #[test]
    fn reasons_name_no_place_and_nothing_of_the_library() {
        assert_eq!(
            why("a: 1\nb: 2\na: 3\n"),
            "`a` stands twice in one object; remove one"
        );
        for text in ["a: [\n", "a: 'x\n", "a: *b\n", "a: b: c\n", "a: \"\\q\"\n"] {
            let reason = why(text);
            assert!(!reason.is_empty(), "{text}");
            assert!(
                !reason.contains("at line") && !reason.contains("Options"),
                "{reason}"
            );
        }
    }
}
