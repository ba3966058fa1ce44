//! The rows of the table: which packets, of how many flows, in which order, and what they are held to.

use std::fmt;

use anyhow::{Result, ensure};

use super::flows::{self, Kind, Order, Packets, Phase};
use super::frame::{self, Ends};
use super::harness::{PASS, Run, TRANSMIT};
use super::measure::Effort;
use super::site::Counts;
use crate::address::{self, Family};
use crate::service::Protocol;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The packets.
    pub packets: Packets,
    /// How many flows they belong to, a power of two.
    pub flows: u64,
    /// In which order flows have theirs.
    pub order: Order,
}

/// Flows of new rows: never one twice.
const ENDLESS: u64 = 1 << 30;
/// Flows of foreign rows, to vary what the gate looks up.
const FOREIGN: u64 = 4096;
/// Flows of the established rows.
const SIZES: [u64; 3] = [1, 1 << 12, 1 << 18];

/// All rows of one protocol and family, in the order in which tables fill.
pub fn all(family: Family, protocol: Protocol) -> Vec<Row> {
    let row = |kind, flows, order| Row { packets: Packets { kind, family, protocol }, flows, order };
    let mut rows = Vec::new();
    if protocol == Protocol::Tcp {
        rows.extend([Kind::ForeignAddress, Kind::ForeignPort].map(|kind| row(kind, FOREIGN, Order::Opened)));
    }
    rows.push(row(Kind::New, ENDLESS, Order::Opened));
    for flows in SIZES {
        rows.push(row(Kind::Request, flows, Order::Opened));
        rows.push(row(Kind::Reply, flows, Order::Opened));
    }
    rows.push(row(Kind::Request, SIZES[2], Order::Scattered));
    rows.push(row(Kind::Reply, SIZES[2], Order::Scattered));
    rows.extend([SIZES[0], SIZES[1]].map(|flows| row(Kind::Local, flows, Order::Opened)));
    rows
}

/// What the issue holds a row to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// So many yardsticks.
    Yardsticks(f64),
    /// So many nanoseconds on a machine whose yardstick is 28 ns.
    Nanoseconds(f64),
}

/// The yardstick of the machine on which the figures to beat were measured, ns.
const REFERENCE: f64 = 28.0;

impl Limit {
    /// The most yardsticks that are allowed.
    pub fn yardsticks(self) -> Option<f64> {
        match self {
            Self::None => None,
            Self::Yardsticks(count) => Some(count),
            Self::Nanoseconds(nanoseconds) => Some(nanoseconds / REFERENCE),
        }
    }
}

impl Row {
    /// The limit for this row alone; beside it IPv6 is compared with IPv4.
    pub fn limit(&self) -> Limit {
        let Packets { kind, family, protocol } = self.packets;
        if self.is_foreign() {
            return Limit::Yardsticks(1.1);
        }
        // The figures to beat were taken in the order in which flows had been opened.
        if kind != Kind::Request || self.order == Order::Scattered {
            return Limit::None;
        }
        // Katran's figures.
        match (self.flows, family, protocol) {
            (1, Family::V4, Protocol::Tcp) => Limit::Yardsticks(4.1),
            (4096, Family::V4, Protocol::Tcp) => Limit::Nanoseconds(158.0),
            (4096, Family::V6, Protocol::Tcp) => Limit::Nanoseconds(135.0),
            (262_144, Family::V4, Protocol::Tcp) => Limit::Nanoseconds(277.0),
            (262_144, Family::V6, Protocol::Tcp) => Limit::Nanoseconds(293.0),
            (1, Family::V4, Protocol::Udp) => Limit::Nanoseconds(142.0),
            (4096, Family::V4, Protocol::Udp) => Limit::Nanoseconds(159.0),
            (4096, Family::V6, Protocol::Udp) => Limit::Nanoseconds(174.0),
            (262_144, Family::V4, Protocol::Udp) => Limit::Nanoseconds(341.0),
            (262_144, Family::V6, Protocol::Udp) => Limit::Nanoseconds(329.0),
            _ => Limit::None,
        }
    }

    /// Whether its packets are not ours.
    pub fn is_foreign(&self) -> bool {
        matches!(self.packets.kind, Kind::ForeignAddress | Kind::ForeignPort)
    }

    /// How much of `effort` suits the row: new flows cost so much that fewer packets say as much.
    pub fn scaled(&self, effort: Effort) -> Effort {
        match self.packets.kind {
            Kind::New => Effort { packets: effort.packets.div_ceil(4), ..effort },
            _ => effort,
        }
    }

    /// Whether the flows must have been established.
    pub fn needs_flows(&self) -> bool {
        matches!(self.packets.kind, Kind::Request | Kind::Reply | Kind::Local)
    }

    /// What its packets say of their connection.
    pub fn phase(&self) -> Phase {
        if self.packets.kind == Kind::New { Phase::Opening } else { Phase::Going }
    }

    /// Whether both rows differ in the family only.
    pub fn is_twin(&self, other: &Self) -> bool {
        let (a, b) = (self.packets, other.packets);
        (a.kind, a.protocol, self.flows, self.order) == (b.kind, b.protocol, other.flows, other.order)
            && a.family != b.family
    }

    /// Checks what became of the packet of flow `number`.
    ///
    /// # Errors
    /// It did not take the way that the row is about.
    pub fn check(&self, number: u64, run: &Run) -> Result<()> {
        let Packets { kind, family, .. } = self.packets;
        let sent = matches!(kind, Kind::Request | Kind::Reply | Kind::New);
        let action = if sent { TRANSMIT } else { PASS };
        ensure!(run.action == action, "{self}: flow {number} ended with action {}, not {action}", run.action);
        let found = frame::ends(family, &run.frame)?;
        let unsent = frame::is_unsent(&run.frame);
        ensure!(unsent != sent, "{self}: flow {number} has the wrong MAC addresses");
        let wanted = self.translated(number, &found);
        ensure!(found == wanted, "{self}: flow {number} became {found:?}, not {wanted:?}");
        Ok(())
    }

    /// The ends that the packet of flow `number` should have now; what the program may choose is taken from `found`.
    fn translated(&self, number: u64, found: &Ends) -> Ends {
        let Packets { kind, family, .. } = self.packets;
        let before = self.packets.ends(number);
        let node = address::node(0).of(family);
        let backend = |number: u64| flows::backend(family, 1, (number % u64::from(flows::BACKENDS)) as u16);
        match kind {
            Kind::ForeignAddress | Kind::ForeignPort => before,
            Kind::Request => {
                Ends { source: node, destination: backend(number), destination_port: flows::TARGET, ..before }
            }
            Kind::Reply => {
                let request = Packets { kind: Kind::Request, ..self.packets }.ends(number);
                Ends {
                    source: request.destination,
                    destination: request.source,
                    source_port: request.destination_port,
                    destination_port: request.source_port,
                }
            }
            Kind::Local => {
                Ends { destination: flows::backend(family, 0, 0), destination_port: flows::TARGET, ..before }
            }
            Kind::New => {
                let chosen = (0..u64::from(flows::BACKENDS)).map(backend).find(|a| *a == found.destination);
                Ends {
                    source: node,
                    source_port: found.source_port,
                    destination: chosen.unwrap_or(before.destination),
                    destination_port: flows::MANY_TARGET,
                }
            }
        }
    }

    /// Checks what the node's maps counted while `packets` packets of this row were measured.
    ///
    /// # Errors
    /// Not every packet took the way that the row is about.
    pub fn check_counts(&self, packets: u64, counts: &Counts) -> Result<()> {
        let (requests, replies, opened) = match self.packets.kind {
            Kind::ForeignAddress | Kind::ForeignPort => (0, 0, 0),
            Kind::Request | Kind::Local => (packets, 0, 0),
            Kind::Reply => (0, packets, 0),
            Kind::New => (packets, 0, packets),
        };
        let wanted = Counts { requests, replies, opened, reasons: Vec::new() };
        ensure!(*counts == wanted, "{self}: the maps counted {counts:?}, not {wanted:?}");
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packets { kind, family, protocol } = self.packets;
        let kind = match kind {
            Kind::ForeignAddress => "foreign-address",
            Kind::ForeignPort => "foreign-port",
            Kind::Request => "established",
            Kind::Reply => "reply",
            Kind::Local => "local",
            Kind::New => "new",
        };
        let family = if family == Family::V4 { "v4" } else { "v6" };
        write!(out, "{kind}-{family}-{}", protocol.nft())?;
        if self.needs_flows() {
            let flows = self.flows;
            if flows >= 1024 { write!(out, "-{}k", flows / 1024)? } else { write!(out, "-{flows}")? }
        }
        if self.order == Order::Scattered {
            out.write_str("-scattered")?;
        }
        Ok(())
    }
}
