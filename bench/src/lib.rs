//! Benchmarks of the packet path in memory: no device, no system call, one process.
//!
//! [`fastpath`] is what `penstock bench fastpath` prints, [`attack`] what `penstock bench attack` does, [`instructions`] what
//! `penstock bench instructions` counts. Benchmarks through labs are the lab's own.

pub mod attack;
pub mod fastpath;
pub mod instructions;
