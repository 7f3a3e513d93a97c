//! The control plane of Penstock: Kubernetes objects in, a service table for one node out.
//!
//! Read first: [`snapshot`] (the objects), [`model`] (the Services as kube-proxy sees them, made by [`resolve`]),
//! [`compile`] (what they mean on one node).

pub mod agent;
pub mod compile;
pub mod config;
pub mod conntrack;
mod deadline;
pub mod endpoints;
pub mod explain;
pub mod health;
pub mod http;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod node_network;
mod parallel;
pub mod problem;
pub mod render;
pub mod resolve;
pub mod snapshot;
mod strict;
pub mod text;
pub mod yaml;
