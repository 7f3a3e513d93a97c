//! Benchmarks of the packet path in memory: no device, no system call, one process.
//!
//! [`fastpath`] is what `penstock bench fastpath` prints. Benchmarks through labs are the lab's own.

pub mod fastpath;
