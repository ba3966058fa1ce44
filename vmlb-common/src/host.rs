//! The datapath's seams over the standard library: [`Buffer`] is a packet, [`Node`] a node. Tests run tables of packets
//! through it; a command that runs a packet through a dump of the live maps is planned.
//!
//! It behaves as the kernel's maps do where the datapath can tell: tables have a size, half-open flows are evicted least
//! recently used first, and the memory of an entry that went is given to the next one.

use std::vec::Vec;

use crate::datapath;
use crate::datapath::fragment::{self, First};
use crate::packet::Packet;
use crate::verdict::Verdict;

mod buffer;
mod clients;
mod family;
mod fib;
mod node;
mod table;
mod tables;

pub use buffer::{Buffer, Carrier, Frames, Tc, Xdp};
pub use clients::Range;
pub use family::HostFamily;
pub use fib::{Gateway, Question, Routes};
pub use node::{Capacities, Lookups, Node, Socket};
pub use tables::Pairs;

/// A place where the datapath meets packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP of an uplink.
    Xdp,
    /// XDP of a device that carries uplinks.
    Carrier,
    /// TC ingress of an uplink: in XDP's place, or for what XDP deferred.
    Ingress,
    /// TC egress of an uplink.
    Egress,
    /// TC ingress of a pod's host-side device.
    Pod,
    /// TC ingress of a device by which pods of other nodes are reached, but no clients.
    Overlay,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the datapath decided.
    pub verdict: Verdict,
    /// The frame afterwards. At TC its MAC addresses are as they came: the kernel writes them later.
    pub octets: Vec<u8>,
    /// The device it leaves by, where the datapath sends it.
    pub device: Option<u32>,
}

impl Node {
    /// Gives `frame`, which came in by `device` (at egress: leaves by it), to the datapath at `hook`.
    pub fn receive(&self, hook: Hook, device: u32, frame: &[u8]) -> Outcome {
        match hook {
            Hook::Xdp => self.at::<Xdp>(device, frame, datapath::uplink_ingress, fragment::ingress),
            Hook::Carrier => self.at::<Carrier>(device, frame, datapath::carrier_ingress, later),
            Hook::Ingress => self.at::<Tc>(device, frame, datapath::uplink_ingress, fragment::ingress),
            Hook::Egress => self.at::<Tc>(device, frame, datapath::uplink_egress, fragment::egress),
            Hook::Pod => self.at::<Tc>(device, frame, datapath::pod_ingress, fragment::from_pod),
            Hook::Overlay => self.at::<Tc>(device, frame, datapath::overlay_ingress, fragment::from_overlay),
        }
    }

    fn at<H>(
        &self,
        device: u32,
        frame: &[u8],
        whole: fn(&mut Buffer<H>, &Self) -> Verdict,
        first: fn(&mut First<Buffer<H>>, &Self) -> Verdict,
    ) -> Outcome
    where
        Buffer<H>: Packet,
    {
        let mut buffer = Buffer::new(device, frame);
        let mut verdict = whole(&mut buffer, self);
        if verdict == Verdict::FRAGMENT {
            let mut fragment = First::new(buffer);
            verdict = first(&mut fragment, self);
            buffer = fragment.into_packet();
        }
        Outcome { verdict, octets: buffer.octets().to_vec(), device: buffer.sent_by() }
    }
}

/// A fragment at a device that carries others passes: TC ingress of the device to which it belongs serves it.
fn later<P>(_fragment: &mut First<P>, _node: &Node) -> Verdict {
    Verdict::PASS
}
