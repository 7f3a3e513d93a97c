//! What is made of the command line itself: completions and manual pages.

use super::{Arguments, Failure};
use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;

/// `penstock completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

/// `penstock manual`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pages {
    /// A folder that is there: `man -l FOLDER/penstock.1` shows what is written to it
    folder: PathBuf,
}

impl Completions {
    /// Prints the script.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut Arguments::command(),
            "penstock",
            &mut script,
        );
        super::print(&String::from_utf8_lossy(&script))
    }
}

impl Pages {
    /// Writes them.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        clap_mangen::generate_to(Arguments::command(), &self.folder)
            .with_context(|| self.folder.display().to_string())?;
        Ok(())
    }
}
