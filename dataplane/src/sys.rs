//! What touches the operating system: the only place for `unsafe`.

#[cfg(feature = "tun")]
mod bpf;
pub mod memory;
#[cfg(feature = "tun")]
pub mod netns;
#[cfg(feature = "tun")]
pub mod node_errors;
#[cfg(feature = "tun")]
mod options;
#[cfg(feature = "tun")]
pub mod queue_choice;
#[cfg(feature = "tun")]
pub mod repair;
#[cfg(feature = "tun")]
pub mod tun;
