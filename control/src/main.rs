//! The binary `penstock`: one subcommand per module of [`cli`].

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, cli::Failure::Nothing) {
                eprintln!("penstock: {failure}");
            }
            failure.exit_code()
        }
    }
}
