//! The binary `penstock-lab`, which the script `lab` calls.

use std::process::ExitCode;

fn main() -> ExitCode {
    netlab::cli::main()
}
