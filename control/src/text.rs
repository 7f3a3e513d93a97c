//! Files of text.

use std::io::{self, ErrorKind};
use std::path::Path;

/// The text of a file, as [`std::fs::read_to_string`] reads it, with an error that says what to do where it is in some
/// other encoding.
pub fn read(file: &Path) -> io::Result<String> {
    let bytes = std::fs::read(file)?;
    String::from_utf8(bytes).map_err(|error| {
        let what = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "is text in UTF-16, which PowerShell's `>` writes; write it in UTF-8 (`| Out-File -Encoding utf8`)".to_owned()
            }
            bytes => {
                let before = &bytes[..error.utf8_error().valid_up_to()];
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                format!("line {line} is not text in UTF-8")
            }
        };
        io::Error::new(ErrorKind::InvalidData, what)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_encoding_is_named() {
        let file = std::env::temp_dir().join(format!("penstock-text-{}", std::process::id()));
        for (bytes, expected) in [
            (&b"\xff\xfea\0"[..], "is text in UTF-16"),
            (b"a\n\nb\xffc\n", "line 3 is not text in UTF-8"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let error = super::read(&file).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        std::fs::write(&file, "a: 1\n").unwrap();
        assert_eq!(super::read(&file).unwrap(), "a: 1\n");
        std::fs::remove_file(&file).unwrap();
    }
}
