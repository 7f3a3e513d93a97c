//! The packet path of Penstock: bytes in, verdict and bytes out.
//!
//! What kube-proxy programs into the kernel, as one readable pass per packet. The library has no clock,
//! no randomness and no input or output of its own: time and random numbers are arguments, and without
//! the feature `tun` it builds without any operating system.
//!
//! Read first: [`path`]; then [`mod@tuple`] (the words), [`service`] (what a Service is once compiled for a node),
//! [`conntrack`] (the connections), [`nat`] (the one rule of translation).
#![deny(unsafe_code)]

pub mod checksum;
pub mod coalesce;
pub mod conntrack;
pub mod fragments;
pub mod frame;
pub mod nat;
pub mod notices;
pub mod packet;
pub mod path;
pub mod ports;
pub mod reject;
pub mod select;
pub mod service;
pub mod sys;
pub mod tuple;
pub mod verdict;
pub mod worker;
