//! The binary `penstock`.

fn main() {}
