//! Test hosts for vmlb, made of network namespaces and veth pairs, and what the end-to-end tests and the demo need to
//! ask them questions.
//!
//! [`topology`] builds clients, a router, nodes and pods; [`servers`] run in every pod and [`requests`] asks them;
//! [`service`] describes Services once, from which [`manifests`] writes what the agent reads and [`kube_proxy`] the
//! nftables rules that kube-proxy would write; [`agent`] runs `vmlb agent` on a node; [`cluster`] puts all that
//! together. [`capture`], [`counters`] and [`maps`] look at packets, the kernel and the pinned maps from outside, [`load`]
//! and [`talk`] keep clients asking meanwhile, [`lab`] has VMs that migrate between launcher pods, [`overlay`] lays
//! a CNI's network between the nodes, [`feature`] asks what the kernel lacks. Everything made carries a prefix and goes with it ([`leftovers`]). [`packets`] are for the datapath
//! alone, on the host and in the kernel.

use std::path::PathBuf;

use anyhow::{Context, Result};

pub mod address;
pub mod agent;
pub mod api_server;
pub mod bench;
pub mod bpffs;
pub mod capture;
pub mod cluster;
pub mod counters;
pub mod deploy;
pub mod feature;
pub mod kube_proxy;
pub mod lab;
pub mod layer2;
pub mod leftovers;
pub mod load;
pub mod manifests;
pub mod maps;
pub mod namespace;
pub mod overlay;
pub mod pace;
pub mod packets;
pub mod pass;
pub mod pieces;
pub mod pod;
pub mod podman;
pub mod probe;
pub mod requests;
pub use vmlb_guest::servers;
pub mod service;
pub mod skip;
pub mod talk;
pub mod topology;

/// The binary `demo`, which cargo builds beside the tests: `demo serve NAME` is what runs in pods.
pub fn server_binary() -> Result<PathBuf> {
    program("demo")
}

/// A program of this package, which cargo builds beside the tests.
pub fn program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("asking for this program's path")?;
    // Tests live one folder deeper than binaries.
    let mut candidates = this.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    candidates.find(|path| path.is_file()).with_context(|| format!("no `{name}` beside {}", this.display()))
}
