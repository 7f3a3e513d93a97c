//! The control plane of Penstock: Kubernetes objects in, a service table for one node out.
//!
//! Read first: [`model`], the Services as kube-proxy sees them.

pub mod model;
pub mod netlink;
