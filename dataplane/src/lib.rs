//! The packet path of Penstock: bytes in, verdict and bytes out.
//!
//! What kube-proxy programs into the kernel, as one readable pass per packet. The library has no clock,
//! no randomness and no input or output of its own: time and random numbers are arguments, and without
//! the feature `tun` it builds without any operating system.
//!
//! Read first: [`tuple`] (the words), [`service`] (what a Service is once compiled for a node), then the path.
#![deny(unsafe_code)]

pub mod conntrack;
pub mod ports;
pub mod service;
#[cfg(feature = "tun")]
pub mod sys;
pub mod tuple;
