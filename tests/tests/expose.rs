//! `vmlb expose` and `vmlb unexpose`, run as programs with a kubeconfig, against the API server by script. No root, no BPF.

#[path = "expose/cluster.rs"]
mod cluster;

#[path = "expose/conflicts.rs"]
mod conflicts;

#[path = "expose/group.rs"]
mod group;

#[path = "expose/output.rs"]
mod output;

#[path = "expose/rights.rs"]
mod rights;
