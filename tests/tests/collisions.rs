//! One client port to two frontends of one VM: each connection is its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

/// The client's port, for all connections.
const PORT: u16 = 45_000;
const OCTETS: u64 = 4_000_000;

#[test]
fn two_frontends_of_one_vm_from_one_source_port_carry_both_transfers() {
    unless_unable("two_frontends_of_one_vm_from_one_source_port_carry_both_transfers", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        cluster.publish(Service::all_servers("first-too", 31300), &["vm01"])?;
        cluster.publish(Service::all_servers("second-too", 31400), &["vm02"])?;
        cluster.start_agents(&Flags::default())?;
        for family in Family::ALL {
            for pair in [["first", "first-too"], ["second", "second-too"]] {
                both(&cluster, family, pair).with_context(|| format!("{family}, {pair:?}"))?;
            }
        }
        Ok(())
    });
}

/// Uploads to one and downloads from the other at the same time, from the same port.
fn both(cluster: &Cluster, family: Family, services: [&str; 2]) -> Result<()> {
    let expected = cluster.topology.clients[0].addresses.of(family);
    let [bulk, other] = services.map(|service| cluster.frontend(service, servers::BULK, 0, family));
    let [http, http_too] = services.map(|service| cluster.frontend(service, servers::HTTP, 0, family));
    let (bulk, other, http, http_too) = (bulk?, other?, http?, http_too?);
    let client = cluster.client();
    std::thread::scope(|scope| -> Result<()> {
        let upload = scope.spawn(|| client.run(|| requests::upload_over(from_port(bulk)?, OCTETS, 0)));
        let download = scope.spawn(|| client.run(|| requests::download_over(from_port(other)?, OCTETS, 0)));
        for outcome in [upload.join(), download.join().map(|received| received.map(drop))] {
            outcome.map_err(|_| anyhow::anyhow!("a transfer panicked"))??;
        }
        Ok(())
    })?;
    // The VM of this node sees the client's address by both; that of the other node's sees the node's.
    let seen = [http, http_too].map(|server| client.run(|| requests::http_over(from_port(server)?, "/")));
    let [first, second] = seen;
    let (first, second) = (first?, second?);
    ensure!(first.client == second.client, "{} and {}", first.client, second.client);
    ensure!((first.client == expected) == services[0].starts_with("first"), "the VM saw {}", first.client);
    Ok(())
}

/// A connection from [`PORT`], which others may use too.
fn from_port(server: SocketAddr) -> Result<TcpStream> {
    let (family, any): (_, IpAddr) = match server {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&made, sockopt::ReuseAddr, &true)?;
    bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, PORT)))?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(server))
        .with_context(|| format!("connecting to {server}"))?;
    requests::prepared(made.into())
}
