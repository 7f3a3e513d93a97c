//! Text in blocks, so that all of it need not be in memory at a time; and what tells the contents of files apart.

use ahash::{AHasher, RandomState};
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of every block but the last: so many objects as are worth a turn on another processor.
pub(super) const BLOCK: usize = 1 << 16;

/// What comes in blocks.
pub(super) trait Blocks: Send {
    /// All of it, in bytes, as far as that is known.
    fn length(&self) -> usize;

    /// Adds the next block to `text`; nothing at the end. Says how many bytes that is.
    ///
    /// # Errors
    /// It cannot be read.
    fn add_next(&mut self, text: &mut Vec<u8>) -> io::Result<usize>;
}

/// What is in memory already, and was not read yet.
impl Blocks for &[u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn add_next(&mut self, text: &mut Vec<u8>) -> io::Result<usize> {
        let (block, rest) = self.split_at(BLOCK.min(self.len()));
        text.extend_from_slice(block);
        *self = rest;
        Ok(block.len())
    }
}

/// A file, and the digest of what was read of it.
pub(super) struct FileBlocks {
    file: File,
    length: usize,
    hasher: AHasher,
}

impl FileBlocks {
    /// # Errors
    /// It cannot be opened.
    pub(super) fn open(path: &Path, digests: &RandomState) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            length: file.metadata()?.len() as usize,
            file,
            hasher: digests.build_hasher(),
        })
    }

    /// Of the blocks that were read: the same for the same text, by the same `digests`.
    pub(super) fn digest(&self) -> u64 {
        self.hasher.finish()
    }
}

impl Blocks for FileBlocks {
    fn length(&self) -> usize {
        self.length
    }

    fn add_next(&mut self, text: &mut Vec<u8>) -> io::Result<usize> {
        let before = text.len();
        let length = (&self.file).take(BLOCK as u64).read_to_end(text)?;
        // To add nothing changes a hash, and `digest` adds none.
        if length > 0 {
            self.hasher.write(&text[before..]);
        }
        Ok(length)
    }
}

/// The digest of a file that holds `text`.
pub(super) fn digest(text: &str, digests: &RandomState) -> u64 {
    let mut hasher = digests.build_hasher();
    text.as_bytes()
        .chunks(BLOCK)
        .for_each(|block| hasher.write(block));
    hasher.finish()
}

/// The digest of a file.
///
/// # Errors
/// It cannot be read.
pub(super) fn digest_of_file(path: &Path, digests: &RandomState) -> io::Result<u64> {
    let mut blocks = FileBlocks::open(path, digests)?;
    let mut block = Vec::with_capacity(BLOCK);
    while blocks.add_next(&mut block)? > 0 {
        block.clear();
    }
    Ok(blocks.digest())
}
