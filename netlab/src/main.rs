//! The binary `penstock-lab`, which the script `lab` calls.

fn main() {}
