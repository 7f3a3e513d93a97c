//! Labs: clusters made of network namespaces on one machine.
