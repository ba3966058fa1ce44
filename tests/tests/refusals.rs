//! What nobody serves is refused at once, by XDP and not by the node's stack, and no faster than allowed.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::counters::StackCounters;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::service::{Policy, Port, Protocol, Service};
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

/// A refusal is a matter of microseconds, silence of seconds.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A cluster in which Service `empty` has no backend.
fn with_an_empty_service(flags: &Flags) -> Result<Cluster> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    cluster.publish(Service::all_servers("empty", 31300), &[])?;
    cluster.start_agents(flags)?;
    Ok(cluster)
}

#[test]
fn a_service_without_backends_refuses_connections_and_datagrams_at_once() {
    unless_unable("a_service_without_backends_refuses_connections_and_datagrams_at_once", || {
        let cluster = with_an_empty_service(&Flags::default())?;
        let node = &cluster.topology.nodes[0].namespace;
        let before = StackCounters::read(node)?;
        for family in Family::ALL {
            let lines = cluster.frontend("empty", servers::LINES, 0, family)?;
            let echo = cluster.frontend("empty", servers::ECHO, 0, family)?;
            cluster.client().run(|| {
                ensure!(
                    is_refused(TcpStream::connect_timeout(&lines, AT_ONCE))?,
                    "{lines} took a connection"
                );
                ensure!(datagram_is_refused(echo)?, "{echo} said nothing");
                Ok(())
            })?;
        }
        let since = StackCounters::read(node)?.since(before);
        ensure!(since.received_v4 == 0 && since.received_v6 == 0, "the node's stack saw {since:?}");
        Ok(())
    });
}

#[test]
fn no_more_is_refused_than_the_rate_allows() {
    unless_unable("no_more_is_refused_than_the_rate_allows", || {
        const RATE: usize = 5;
        let cluster = with_an_empty_service(&Flags::with(&["--reject-rate", "5"]))?;
        let echo = cluster.frontend("empty", servers::ECHO, 0, Family::V4)?;
        // All on one CPU, so that one bucket counts.
        let refused = cluster.client().run(|| -> Result<usize> {
            let this = nix::unistd::Pid::from_raw(0);
            let mut one = nix::sched::CpuSet::new();
            one.set(0)?;
            nix::sched::sched_setaffinity(this, &one)?;
            let patience = Duration::from_millis(20);
            let begun = std::time::Instant::now();
            let mut refused = 0;
            for _ in 0..40 {
                let socket = requests::datagrams(echo)?;
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"anybody?")?;
                refused += usize::from(is_refused(socket.recv(&mut [0; 8]))?);
            }
            // What a bucket holds at first, and what comes in meanwhile.
            let most = RATE + RATE * (begun.elapsed().as_millis() as usize).div_ceil(1000);
            ensure!(refused <= most, "{refused} refusals, {most} are allowed");
            Ok(refused)
        })?;
        ensure!(refused >= RATE, "{refused} refusals");
        let drops = drops(&cluster)?;
        ensure!(drops.contains("reject_limit"), "{drops}");
        Ok(())
    });
}

/// What node 1 says of packets that it dropped.
fn drops(cluster: &Cluster) -> Result<String> {
    let node = &cluster.topology.nodes[0];
    let (binary, root) = (agent::binary()?, node.pin_root.display().to_string());
    node.namespace.output(&binary.display().to_string(), &["drops", "--pin-root", &root])
}

#[test]
fn a_connection_whose_vm_is_gone_is_reset() {
    unless_unable("a_connection_whose_vm_is_gone_is_reset", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut open = Vec::new();
        for family in Family::ALL {
            for service in ["first", "second"] {
                let frontend = cluster.frontend(service, servers::LINES, 0, family)?;
                let mut conversation = cluster.client().run(|| Conversation::open(frontend))?;
                conversation.ask("before")?;
                open.push((service, conversation));
            }
        }
        for (service, pod) in [("first", "vm01"), ("second", "vm02"), ("both", "")] {
            let ports = match service {
                "first" => 31100,
                "second" => 31200,
                _ => 31000,
            };
            cluster.publish(Service::all_servers(service, ports), &[])?;
            if !pod.is_empty() {
                cluster.manifests.remove_pod(pod)?;
            }
        }
        for (service, conversation) in &mut open {
            let error = (0..100).find_map(|_| {
                std::thread::sleep(Duration::from_millis(50));
                conversation.ask("after").err()
            });
            let error = error.context("the connection goes on")?;
            let is_reset = error.chain().any(|cause| {
                let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                kind == Some(ErrorKind::ConnectionReset)
            });
            ensure!(is_reset, "{service}: {error:#}");
        }
        Ok(())
    });
}

#[test]
fn a_closed_port_of_a_vm_is_known_to_who_sends_datagrams_there() {
    unless_unable("a_closed_port_of_a_vm_is_known_to_who_sends_datagrams_there", || {
        /// Port "discard", where nobody listens.
        const CLOSED: u16 = 9;
        let mut cluster = Cluster::build(Attachment::Routed)?;
        for (name, node_port, vm) in [("here", 31400, "vm01"), ("there", 31401, "vm02")] {
            let port = Port { name: "main", protocol: Protocol::Udp, node_port, target: CLOSED };
            let service = Service {
                name: name.to_owned(),
                ports: vec![port],
                policy: Policy::Cluster,
                forwarding: None,
            };
            cluster.publish(service, &[vm])?;
        }
        cluster.start_agents(&Flags::default())?;
        for family in Family::ALL {
            for service in ["here", "there"] {
                let server = cluster.frontend(service, CLOSED, 0, family)?;
                let refused = cluster.client().run(|| datagram_is_refused(server))?;
                ensure!(refused, "{service}: {server} said nothing");
            }
        }
        Ok(())
    });
}

fn datagram_is_refused(server: SocketAddr) -> Result<bool> {
    let socket = requests::datagrams(server)?;
    socket.set_read_timeout(Some(AT_ONCE))?;
    socket.send(b"anybody?")?;
    is_refused(socket.recv(&mut [0; 8]))
}

/// Whether the peer has refused; `false`: it was silent.
fn is_refused<T>(result: std::io::Result<T>) -> Result<bool> {
    match result {
        Ok(_) => bail!("somebody answered"),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Ok(true),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(false),
            _ => Err(error.into()),
        },
    }
}
