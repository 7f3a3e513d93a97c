//! What touches the operating system. Besides `conntrack/slots.rs` the only place for `unsafe`.

pub mod netns;
pub mod node_errors;
pub mod tun;
