//! What the node's stack carries stays with it: before a frontend opens, the connections that conntrack has on it are
//! written down in the maps `inherited_*`, and the datapath leaves them alone until they end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_netfilter::conntrack::Status;
use vmlb_common::abi::{Inherited, PortRange, WireKey, names};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use crate::bpf::PinnedMap;
use crate::conntrack::{self, Connection, Events, Tuple};
use crate::pins::PinRoot;
use crate::settings::{self, SettingsMap};
use crate::tables::pinned::PinnedTables;
use crate::tables::{Capacity, Change, InFlows, Record, Tables};

/// What a client addresses: address, port, IANA protocol number.
type Frontend = (IpAddr, u16, u8);

/// A tuple with its IANA protocol number.
type Entry = (u8, Tuple);

/// The connections that are left to the stack.
#[derive(Debug)]
pub struct Inheritance {
    v4: PinnedMap<WireKey<Address4>, Inherited>,
    v6: PinnedMap<WireKey<Address6>, Inherited>,
    snat_ports: Vec<PortRange>,
    /// What conntrack did not have any more at the last review.
    missed: BTreeSet<Entry>,
    /// Whether the log says already that conntrack does not answer.
    told: bool,
}

impl Inheritance {
    /// Opens the maps under `root`. Answers to masqueraded connections matter where they come to one of `snat_ports`.
    ///
    /// # Errors
    /// When a map is missing or of another layout.
    pub fn open(root: &PinRoot, snat_ports: &[PortRange]) -> anyhow::Result<Self> {
        Ok(Self {
            v4: PinnedMap::open(root, names::INHERITED[0])?,
            v6: PinnedMap::open(root, names::INHERITED[1])?,
            snat_ports: snat_ports.to_vec(),
            missed: BTreeSet::new(),
            told: false,
        })
    }

    /// `tables` that write down what the stack carries to a frontend before they open it.
    pub fn over<'a>(
        &'a mut self,
        tables: &'a mut PinnedTables,
        settings: &'a mut SettingsMap,
    ) -> Opening<'a> {
        Opening { inheritance: self, tables, settings }
    }

    /// Forgets what conntrack has forgotten. Once nothing is left the datapath is told to ask no more.
    ///
    /// # Errors
    /// When the maps cannot be read or written, or conntrack does not answer.
    pub fn review(&mut self, settings: &mut SettingsMap) -> anyhow::Result<()> {
        if settings.current().is_none_or(|settings| settings.inherited == 0) {
            return Ok(());
        }
        let mut left = self.entries()?;
        if !left.is_empty() {
            let carried: BTreeSet<Entry> =
                conntrack::translated()?.iter().flat_map(|one| tuples(one, &self.snat_ports, None)).collect();
            // A list that is read while the kernel's table grows may lack one: it has to be missed twice.
            let missed: BTreeSet<Entry> = left.difference(&carried).copied().collect();
            for entry in missed.intersection(&self.missed) {
                self.remove(entry)?;
                left.remove(entry);
            }
            self.missed = missed.intersection(&left).copied().collect();
        }
        if left.is_empty() {
            tracing::info!("the last connection that was left to the stack has ended");
            settings.set_inherited(0)?;
        }
        Ok(())
    }

    /// Writes down what of `connections` is to be left alone; how many tuples. One too many for the maps costs only itself.
    fn note(
        &self,
        connections: &[Connection],
        opened: &BTreeSet<Frontend>,
        jiffies: u32,
    ) -> anyhow::Result<usize> {
        let (mut count, mut failed) = (0, None);
        let seen = Inherited { seen: jiffies };
        for (protocol, tuple) in
            connections.iter().flat_map(|one| tuples(one, &self.snat_ports, Some(opened)))
        {
            let done = match key(protocol, tuple) {
                Some(Key::V4(key)) => self.v4.put(&key, &seen),
                Some(Key::V6(key)) => self.v6.put(&key, &seen),
                None => continue,
            };
            match done {
                Ok(()) => count += 1,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(count), |error| if count == 0 { Err(error) } else { Ok(count) })
    }

    fn remove(&self, (protocol, tuple): &Entry) -> anyhow::Result<bool> {
        match key(*protocol, *tuple) {
            Some(Key::V4(key)) => self.v4.remove(&key),
            Some(Key::V6(key)) => self.v6.remove(&key),
            None => Ok(false),
        }
    }

    fn entries(&self) -> anyhow::Result<BTreeSet<Entry>> {
        let v4 = self
            .v4
            .all()?
            .into_iter()
            .map(|(key, _)| entry(key.source.octets.into(), key.destination.octets.into(), &key));
        let v6 = self
            .v6
            .all()?
            .into_iter()
            .map(|(key, _)| entry(key.source.octets.into(), key.destination.octets.into(), &key));
        Ok(v4.chain(v6).collect())
    }
}

/// A key of either map.
enum Key {
    V4(WireKey<Address4>),
    V6(WireKey<Address6>),
}

fn key(protocol: u8, tuple: Tuple) -> Option<Key> {
    let Tuple { source, destination, source_port, destination_port } = tuple;
    let (pad, pad2) = (0, 0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let source = Address4 { octets: source.octets() };
            let destination = Address4 { octets: destination.octets() };
            Some(Key::V4(WireKey { source, destination, source_port, destination_port, protocol, pad, pad2 }))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let source = Address6 { octets: source.octets() };
            let destination = Address6 { octets: destination.octets() };
            Some(Key::V6(WireKey { source, destination, source_port, destination_port, protocol, pad, pad2 }))
        }
        _ => None,
    }
}

fn entry<A>(source: IpAddr, destination: IpAddr, key: &WireKey<A>) -> Entry {
    let (source_port, destination_port) = (key.source_port, key.destination_port);
    (key.protocol, Tuple { source, destination, source_port, destination_port })
}

/// The tuples of a connection that vmlb must not take for its own when they come in by an uplink: requests of UDP to what
/// is about to open (`None`: to anything; TCP in mid-flow is left to the stack anyway), and answers to what the stack
/// masqueraded, by whichever of its Services: no flow of ours may get such a tuple.
fn tuples(
    connection: &Connection,
    snat_ports: &[PortRange],
    opened: Option<&BTreeSet<Frontend>>,
) -> impl Iterator<Item = Entry> + use<> {
    let Connection { protocol, original, reply, status } = *connection;
    let udp = protocol == Protocol::UDP.number();
    let translated = status.contains(Status::DstNat) && (udp || protocol == Protocol::TCP.number());
    let frontend = (original.destination, original.destination_port, protocol);
    let request = translated && udp && opened.is_none_or(|opened| opened.contains(&frontend));
    let port = reply.destination_port;
    let is_ours = snat_ports.iter().any(|range| (range.first..=range.last).contains(&port));
    let answer = translated && status.contains(Status::SrcNat) && is_ours;
    let request = request.then_some((protocol, original));
    request.into_iter().chain(answer.then_some((protocol, reply)))
}

/// The pinned maps for the length of one sync, see [`Inheritance::over`].
#[derive(Debug)]
pub struct Opening<'a> {
    inheritance: &'a mut Inheritance,
    tables: &'a mut PinnedTables,
    settings: &'a mut SettingsMap,
}

impl Opening<'_> {
    /// The frontends among `changes` that are closed as yet, and where the first of them is.
    fn opened(&self, changes: &[Change]) -> anyhow::Result<Option<(usize, BTreeSet<Frontend>)>> {
        let (mut first, mut opened) = (None, BTreeSet::new());
        for (place, change) in changes.iter().enumerate() {
            let Change::Put(record) = change else { continue };
            let frontend: Frontend = match record {
                Record::Frontend4(key, _) => (key.address.octets.into(), key.port, key.protocol),
                Record::Frontend6(key, _) => (key.address.octets.into(), key.port, key.protocol),
                _ => continue,
            };
            // What tunnels bring never was the stack's.
            if !frontend.0.is_unspecified() && !self.tables.is_open(record)? {
                first.get_or_insert(place);
                opened.insert(frontend);
            }
        }
        Ok(first.map(|first| (first, opened)))
    }

    /// Writes down `connections`, and has the datapath look there.
    fn leave(&mut self, connections: anyhow::Result<Vec<Connection>>, opened: &BTreeSet<Frontend>) {
        let hz = self.settings.current().map_or(1, |settings| settings.hz);
        let done = connections.and_then(|connections| {
            let count = self.inheritance.note(&connections, opened, settings::jiffies(hz)?)?;
            if count > 0 && self.settings.current().is_some_and(|settings| settings.inherited == 0) {
                self.settings.set_inherited(1)?;
            }
            Ok(count)
        });
        match done {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!("{count} connections that the stack carries are left to it until they end")
            }
            Err(error) if !self.inheritance.told => {
                self.inheritance.told = true;
                tracing::warn!("UDP flows that the stack carries may move to vmlb: {error:#}");
            }
            Err(error) => tracing::debug!("conntrack: {error:#}"),
        }
    }
}

impl Tables for Opening<'_> {
    fn capacity(&self) -> Capacity {
        self.tables.capacity()
    }

    fn read(&self) -> anyhow::Result<Vec<Record>> {
        self.tables.read()
    }

    fn write(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let Some((first, opened)) = self.opened(changes)? else { return self.tables.write(changes) };
        let mut events = match Events::subscribe() {
            Ok(events) => events,
            Err(error) => {
                self.leave(Err(error), &opened);
                return self.tables.write(changes);
            }
        };
        self.leave(conntrack::translated(), &opened);
        let (before, opening) = changes.split_at(first);
        self.tables.write(before)?;
        self.leave(events.take(), &opened);
        let written = self.tables.write(opening);
        // What has begun while the frontends were opened.
        self.leave(events.take(), &opened);
        written
    }

    fn turn(&self, id: u32) -> anyhow::Result<vmlb_common::abi::Turn> {
        self.tables.turn(id)
    }

    fn in_flows(&self) -> anyhow::Result<InFlows> {
        self.tables.in_flows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16) -> Tuple {
        Tuple { source: source.into(), destination: destination.into(), source_port, destination_port }
    }

    fn through_a_node_port(protocol: u8, status: Status) -> Connection {
        Connection {
            protocol,
            original: tuple([192, 0, 2, 7], 4000, [192, 0, 2, 1], 31_923),
            reply: tuple([10, 244, 1, 10], 80, [192, 0, 2, 1], 29_000),
            status,
        }
    }

    const SNAT_PORTS: [PortRange; 1] = [PortRange { first: 1024, last: 29_999 }];

    fn left(connection: &Connection, opened: Option<Frontend>) -> Vec<Tuple> {
        let opened = opened.map(|frontend| BTreeSet::from([frontend]));
        tuples(connection, &SNAT_PORTS, opened.as_ref()).map(|(_, tuple)| tuple).collect()
    }

    #[test]
    fn udp_requests_that_the_stack_translates_stay_with_it() {
        let connection = through_a_node_port(17, Status::DstNat);
        let frontend = ([192, 0, 2, 1].into(), 31_923, 17);
        assert_eq!(left(&connection, Some(frontend)), [connection.original]);
        assert_eq!(left(&connection, None), [connection.original]);
        let another = ([192, 0, 2, 1].into(), 31_924, 17);
        assert!(left(&connection, Some(another)).is_empty());
    }

    #[test]
    fn answers_to_masqueraded_connections_stay_with_the_stack() {
        let udp = through_a_node_port(17, Status::DstNat | Status::SrcNat);
        assert_eq!(left(&udp, None), [udp.original, udp.reply]);
        let tcp = through_a_node_port(6, Status::DstNat | Status::SrcNat);
        assert_eq!(left(&tcp, None), [tcp.reply]);
        let elsewhere = Connection { reply: tuple([10, 244, 1, 10], 80, [192, 0, 2, 1], 40_000), ..tcp };
        assert!(left(&elsewhere, None).is_empty());
    }

    #[test]
    fn connections_of_the_nodes_own_sockets_are_not_written_down() {
        for protocol in [1, 6, 17, 132] {
            assert!(left(&through_a_node_port(protocol, Status::SeenReply), None).is_empty());
        }
        assert!(left(&through_a_node_port(132, Status::NatMask), None).is_empty());
    }

    #[test]
    fn every_tuple_is_found_again_by_its_key() {
        let v6 = Tuple {
            source: "2001:db8::7".parse().unwrap_or(IpAddr::from([0; 16])),
            ..tuple([0; 4], 1, [0; 4], 2)
        };
        let v6 = Tuple { destination: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]), ..v6 };
        for tuple in [tuple([192, 0, 2, 7], 4000, [192, 0, 2, 1], 31_923), v6] {
            let found = match key(17, tuple) {
                Some(Key::V4(key)) => entry(key.source.octets.into(), key.destination.octets.into(), &key),
                Some(Key::V6(key)) => entry(key.source.octets.into(), key.destination.octets.into(), &key),
                None => (0, tuple),
            };
            assert_eq!(found, (17, tuple));
        }
    }
}
