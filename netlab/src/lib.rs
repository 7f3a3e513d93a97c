//! Labs: clusters made of network namespaces on one machine.
//!
//! Kubernetes objects become hosts: nodes, pods, and a client outside, each a network namespace, with the links,
//! routes and servers that a cluster of theirs would have. Nothing is ever put into the machine's own namespace.
//!
//! Read first: [`plan`] (objects to hosts, pure), [`network`] (hosts to namespaces), [`lab`] (up, apply, down);
//! [`state`] says what survives a crash.

pub mod bench;
pub mod check;
pub mod cli;
pub mod dataplane;
pub mod diff;
pub mod everywhere;
pub mod lab;
pub mod lab_file;
pub mod names;
pub mod namespace;
pub mod network;
pub mod plan;
mod privilege;
pub mod process;
mod screens;
pub mod serve;
pub mod servers;
pub mod state;
