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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = std::env::temp_dir().join(format!("penstock-manual-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pages = Pages {
            folder: folder.clone(),
        };
        let written = pages.write().is_ok();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let commands = ["node", "explain", "render", "conntrack", "bench"];
        let found =
            commands.map(|name| read(&format!("penstock-{name}.1")).contains(".SH OPTIONS"));
        let of_all = read("penstock.1");
        std::fs::remove_dir_all(folder).unwrap();
        assert!(written && of_all.contains("penstock"));
        assert_eq!(found, [true; 5]);
    }
}
