//! Connections that the node's stack carried before vmlb came: they stay with it until they end.

use crate::abi::{ReplyKey, WireKey};
use crate::family::Family;
use crate::kernel::{Kernel, Tables};
use crate::packet::{Frame, Packet, Transport, wire_key};
use crate::wire::UdpHeader;

use super::place::present;

/// Whether the packet belongs to such a connection. One look at the settings where nothing was inherited.
#[inline(never)]
pub(super) fn is_inherited<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> bool {
    let Some(settings) = kernel.settings() else {
        return false;
    };
    if settings.inherited == 0 {
        return false;
    }
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return false;
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return false;
    };
    let Some(seen) = kernel.inherited(&wire_key::<F>(&frame.ip, &transport)) else {
        return false;
    };
    seen.refresh(kernel.now());
    true
}

/// Whether the stack expects replies of this tuple, because it masqueraded a connection of its own to the same port
/// before vmlb came.
#[inline(never)]
pub(super) fn holds_replies<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ReplyKey<F::Address>,
) -> bool {
    match kernel.settings() {
        Some(settings) if settings.inherited != 0 => {}
        _ => return false,
    }
    let Some(backend) = present::<F, K>(kernel, key.backend) else {
        return false;
    };
    let wire = WireKey {
        source: backend.address,
        destination: key.peer,
        source_port: key.target_port,
        destination_port: key.peer_port,
        protocol: key.protocol,
        pad: 0,
        pad2: 0,
    };
    kernel.inherited(&wire).is_some()
}
