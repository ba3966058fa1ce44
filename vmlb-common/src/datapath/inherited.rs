//! Connections that the node's stack carried before vmlb came: they stay with it until they end.

use crate::family::Family;
use crate::kernel::{Kernel, Tables};
use crate::packet::{Frame, Packet, Transport, wire_key};
use crate::wire::UdpHeader;

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
