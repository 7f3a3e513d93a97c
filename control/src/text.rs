//! Files of text.

use dataplane::sys::memory::room;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The text of a file, as [`std::fs::read_to_string`] reads it, with an error that says what to do where it is in some
/// other encoding.
pub fn read(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    // One byte more than there is says that there is no more.
    let mut bytes = room(file.metadata()?.len() as usize + 1);
    file.read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        let what = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "is text in UTF-16, which PowerShell's `>` writes; write it in UTF-8 (`| Out-File -Encoding utf8`)"
            }
            _ => "is not text in UTF-8",
        };
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_encoding_is_named() {
        let file = std::env::temp_dir().join(format!("penstock-text-{}", std::process::id()));
        for (bytes, expected) in [
            (&b"\xff\xfea\0"[..], "is text in UTF-16"),
            (b"a\xffb", "is not text in UTF-8"),
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
