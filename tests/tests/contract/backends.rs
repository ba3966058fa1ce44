//! Who gets new connections, and who keeps those there are.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::objects::{Condition, chooses, endpoints, service, wait, weigh};

use Condition::{Ready, Terminating, Unready};

/// What silence is.
const SILENCE: Duration = Duration::from_millis(800);

/// The VMs that answer new connections to the Service on node number `node`, by both families.
fn answering(cluster: &Cluster, name: &str, node: usize) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for family in Family::ALL {
        let frontend = cluster.frontend(name, servers::GREETING, node, family)?;
        for _ in 0..16 {
            names.insert(cluster.client().run(|| requests::greeting(frontend)).context("a new connection")?);
        }
    }
    Ok(names)
}

fn names(vms: &[&str]) -> BTreeSet<String> {
    vms.iter().map(|vm| (*vm).to_owned()).collect()
}

/// Conversations with each of both VMs, by both families and nodes.
fn converse(cluster: &Cluster) -> Result<Vec<(String, Conversation)>> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for (name, node) in [("first", 0), ("first", 1), ("second", 0), ("second", 1)] {
            let frontend = cluster.frontend(name, servers::LINES, node, family)?;
            let mut one = cluster.client().run(|| Conversation::open(frontend))?;
            all.push((one.ask("hello")?, one));
        }
    }
    Ok(all)
}

fn go_on(conversations: &mut [(String, Conversation)]) -> Result<()> {
    for (vm, conversation) in conversations {
        let answered = conversation.ask("still there?").with_context(|| format!("a connection to {vm}"))?;
        ensure!(answered == *vm, "{vm} became {answered}");
    }
    Ok(())
}

#[test]
fn terminating_backends_serve_as_long_as_none_is_ready() {
    unless_unable("terminating_backends_serve_as_long_as_none_is_ready", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut conversations = converse(&cluster)?;
        let all = ["both", "first", "second"];
        let mut publish = |first: Condition, second: Condition, chosen: &[&str]| {
            endpoints(&cluster, "both", &[("vm01", first), ("vm02", second)])?;
            endpoints(&cluster, "first", &[("vm01", first)])?;
            endpoints(&cluster, "second", &[("vm02", second)])?;
            wait(&cluster, "both", |rows| chooses(rows, chosen))?;
            go_on(&mut conversations).with_context(|| format!("{first:?}, {second:?}"))
        };
        publish(Ready, Terminating, &["vm01"])?;
        ensure!(answering(&cluster, "both", 0)? == names(&["vm01"]));
        // Alone in its Service it goes on.
        ensure!(answering(&cluster, "second", 0)? == names(&["vm02"]));
        publish(Unready, Terminating, &["vm02"])?;
        ensure!(answering(&cluster, "both", 1)? == names(&["vm02"]));
        publish(Terminating, Terminating, &["vm01", "vm02"])?;
        ensure!(answering(&cluster, "both", 0)? == names(&["vm01", "vm02"]));
        // Under policy Local each node for itself: a ready one elsewhere is no reason.
        for name in all {
            service(&cluster, name, &json!({"externalTrafficPolicy": "Local"}))?;
        }
        endpoints(&cluster, "both", &[("vm01", Terminating), ("vm02", Ready)])?;
        wait(&cluster, "both", |rows| chooses(rows, &["vm01"]) || chooses(rows, &["vm02"]))?;
        ensure!(answering(&cluster, "both", 0)? == names(&["vm01"]));
        ensure!(answering(&cluster, "both", 1)? == names(&["vm02"]));
        go_on(&mut conversations)
    });
}

#[test]
fn policy_local_keeps_the_source_and_answers_nothing_where_no_backend_is_local() {
    unless_unable("policy_local_keeps_the_source_and_answers_nothing_where_no_backend_is_local", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        service(&cluster, "first", &json!({"externalTrafficPolicy": "Local"}))?;
        let is_local = |row: &serde_json::Value| {
            row["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "local"))
        };
        wait(&cluster, "first", |rows| rows.iter().all(is_local))?;
        for family in Family::ALL {
            let own = cluster.topology.clients[0].addresses.of(family);
            let [http, echo] =
                [servers::HTTP, servers::ECHO].map(|port| cluster.frontend("first", port, 0, family));
            let (http, echo) = (http?, echo?);
            let (answer, datagram) = cluster.client().run(|| {
                Ok::<_, anyhow::Error>((
                    requests::http(http, "/")?,
                    requests::who(&requests::datagrams(echo)?)?,
                ))
            })?;
            ensure!((answer.pod(), answer.client) == ("vm01", own), "{family}: {answer:?}");
            ensure!(datagram == ("vm01".to_owned(), own), "{family}: {datagram:?}");
            let [http, echo] =
                [servers::HTTP, servers::ECHO].map(|port| cluster.frontend("first", port, 1, family));
            let (http, echo) = (http?, echo?);
            ensure!(cluster.client().run(|| is_silent(http))?, "{family}: a connection was answered");
            ensure!(
                cluster.client().run(|| is_silent_to_datagrams(echo))?,
                "{family}: a datagram was answered"
            );
        }
        Ok(())
    });
}

/// Whether nobody says anything to a connection, not even no.
fn is_silent(server: SocketAddr) -> Result<bool> {
    match TcpStream::connect_timeout(&server, SILENCE) {
        Err(error) => Ok(error.kind() == ErrorKind::TimedOut),
        Ok(_) => Ok(false),
    }
}

/// The same for a datagram: an ICMP error would be read as one of the socket's.
fn is_silent_to_datagrams(server: SocketAddr) -> Result<bool> {
    let socket: UdpSocket = requests::datagrams(server)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.send(b"who")?;
    let answer = socket.recv(&mut [0; 64]);
    Ok(answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
}

#[test]
fn a_vm_in_maintenance_keeps_its_connections_and_gets_no_new_ones() {
    unless_unable("a_vm_in_maintenance_keeps_its_connections_and_gets_no_new_ones", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut conversations = converse(&cluster)?;
        weigh(&cluster, "vm01", 0)?;
        wait(&cluster, "both", |rows| chooses(rows, &["vm02"]))?;
        for node in 0..2 {
            ensure!(answering(&cluster, "both", node)? == names(&["vm02"]));
        }
        go_on(&mut conversations)?;
        weigh(&cluster, "vm02", 0)?;
        wait(&cluster, "both", |rows| chooses(rows, &[]))?;
        for family in Family::ALL {
            let frontend = cluster.frontend("both", servers::GREETING, 0, family)?;
            let tried = cluster.client().run(|| requests::greeting(frontend));
            let error = tried.err().context("a connection without a backend")?;
            ensure!(format!("{error:#}").contains("refused"), "{family}: {error:#}");
            let echo = cluster.frontend("both", servers::ECHO, 0, family)?;
            let tried = cluster.client().run(|| requests::who(&requests::datagrams(echo)?));
            let error = tried.err().context("a datagram without a backend")?;
            ensure!(format!("{error:#}").contains("refused"), "{family}: {error:#}");
        }
        go_on(&mut conversations)?;
        weigh(&cluster, "vm01", 50)?;
        wait(&cluster, "both", |rows| chooses(rows, &["vm01"]))?;
        ensure!(answering(&cluster, "both", 1)? == names(&["vm01"]));
        go_on(&mut conversations)
    });
}
