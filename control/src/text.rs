//! Files of text.

use crate::parallel::beside;
use dataplane::sys::memory::zeros;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of a file that is worth a thread.
const LARGE: usize = 1 << 20;

/// The text of a file, as [`std::fs::read_to_string`] reads it, with an error that says what to do where it is in some
/// other encoding.
pub fn read(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len() as usize;
    let mut bytes = Vec::new();
    if length >= LARGE {
        bytes = zeros(length);
        match fill(&mut bytes, &file) {
            Ok(()) => drop(file.seek(SeekFrom::Start(length as u64))?),
            // It has become shorter meanwhile.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => bytes.clear(),
            Err(error) => return Err(error),
        }
    }
    // All of it, or what has been added meanwhile.
    file.read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        let what = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "is text in UTF-16, which PowerShell's `>` writes; write it in UTF-8 (`| Out-File -Encoding utf8`)"
            }
            _ => "is not text in UTF-8",
        };
        io::Error::new(ErrorKind::InvalidData, what)
    })
}

/// Half by half on two processors: it takes time to copy it, and as much to get memory for it.
fn fill(bytes: &mut [u8], file: &File) -> io::Result<()> {
    let (first, second) = bytes.split_at_mut(bytes.len() / 2);
    let middle = first.len() as u64;
    let read_second = || file.read_exact_at(second, middle);
    let (second, first) = beside(read_second, || file.read_exact_at(first, 0));
    first.and(second)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_large_file_is_read_whole() {
        let file = std::env::temp_dir().join(format!("penstock-large-{}", std::process::id()));
        let lines = (0..200_000).map(|number| format!("line {number}\n"));
        let text: String = lines.collect();
        assert!(text.len() > 2 * super::LARGE);
        std::fs::write(&file, &text).unwrap();
        assert!(super::read(&file).unwrap() == text);
        std::fs::remove_file(&file).unwrap();
    }

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
