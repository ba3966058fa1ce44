//! The BPF object of vmlb: entry points only. What they do is vmlb-common's `datapath`.

#![no_std]
#![no_main]

mod carrier;
mod context;
mod helpers;
mod maps;
mod sweep;

use aya_ebpf::macros::{classifier, raw_tracepoint, xdp};
use aya_ebpf::programs::{RawTracePointContext, TcContext, XdpContext};
use vmlb_common::abi::FragmentHook;
use vmlb_common::datapath;
use vmlb_common::datapath::fragment::{self, First};
use vmlb_common::verdict::Verdict;

use carrier::Carried;
use context::{NEXT, Tc, Xdp};
use maps::Node;

/// Ingress of an uplink whose driver takes XDP.
#[xdp]
pub fn vmlb_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Xdp(ctx.ctx);
    let verdict = datapath::uplink_ingress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(&ctx, FragmentHook::XDP);
    }
    packet.action(verdict)
}

/// Where [`vmlb_xdp`] meets a fragment.
#[xdp]
pub fn vmlb_xdp_fragment(ctx: XdpContext) -> u32 {
    let mut packet = First::new(Xdp(ctx.ctx));
    let verdict = fragment::ingress(&mut packet, &Node);
    packet.into_packet().action(verdict)
}

/// Ingress of a device that carries uplinks: the parent of VLANs, a bond's members, a bridge's port.
#[xdp]
pub fn vmlb_xdp_carrier(ctx: XdpContext) -> u32 {
    let mut packet = Carried::new(ctx.ctx);
    let verdict = datapath::carrier_ingress(&mut packet, &Node);
    packet.action(verdict)
}

/// TC ingress of the same uplink: packets that XDP could not send itself.
#[classifier]
pub fn vmlb_ingress(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    if !packet.is_deferred() {
        return NEXT;
    }
    packet.pull();
    let verdict = datapath::uplink_ingress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(&ctx, FragmentHook::INGRESS);
    }
    packet.action(verdict)
}

/// TC ingress of an uplink without XDP, or with it on a device that carries it: the whole datapath.
#[classifier]
pub fn vmlb_ingress_full(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    if packet.is_punted() {
        return NEXT;
    }
    packet.pull();
    let verdict = datapath::uplink_ingress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(&ctx, FragmentHook::INGRESS);
    }
    packet.action(verdict)
}

/// Where [`vmlb_ingress`] or [`vmlb_ingress_full`] meets a fragment.
#[classifier]
pub fn vmlb_ingress_fragment(ctx: TcContext) -> i32 {
    let mut packet = First::new(Tc(ctx.skb.skb));
    let verdict = fragment::ingress(&mut packet, &Node);
    packet.into_packet().action(verdict)
}

/// TC egress of an uplink: replies on their way out of the stack.
#[classifier]
pub fn vmlb_egress(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    packet.pull();
    let verdict = datapath::uplink_egress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(&ctx, FragmentHook::EGRESS);
    }
    packet.action(verdict)
}

/// Where [`vmlb_egress`] meets a fragment.
#[classifier]
pub fn vmlb_egress_fragment(ctx: TcContext) -> i32 {
    let mut packet = First::new(Tc(ctx.skb.skb));
    let verdict = fragment::egress(&mut packet, &Node);
    packet.into_packet().action(verdict)
}

/// TC ingress of a pod's host-side device.
#[classifier]
pub fn vmlb_pod(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    packet.pull();
    let verdict = datapath::pod_ingress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(&ctx, FragmentHook::POD);
    }
    packet.action(verdict)
}

/// Where [`vmlb_pod`] meets a fragment.
#[classifier]
pub fn vmlb_pod_fragment(ctx: TcContext) -> i32 {
    let mut packet = First::new(Tc(ctx.skb.skb));
    let verdict = fragment::from_pod(&mut packet, &Node);
    packet.into_packet().action(verdict)
}

/// TC ingress of an overlay's device: replies from pods of other nodes.
#[classifier]
pub fn vmlb_overlay(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    packet.pull();
    from_overlay(&ctx)
}

/// What comes by an overlay's device, behind an Ethernet header.
#[inline(always)]
fn from_overlay(ctx: &TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    let verdict = datapath::overlay_ingress(&mut packet, &Node);
    if verdict == Verdict::FRAGMENT {
        maps::serve_fragment(ctx, FragmentHook::OVERLAY);
    }
    packet.action(verdict)
}

/// The same for a tunnel in IP, whose packets have no Ethernet header. What may be ours gets one, as sending by another
/// device wants it; the stack finds the IP header wherever it is.
#[classifier]
pub fn vmlb_overlay_ip(ctx: TcContext) -> i32 {
    let mut packet = Tc(ctx.skb.skb);
    packet.pull();
    let ethertype = packet.ethertype();
    if !datapath::is_for_overlay(&mut packet, &Node, ethertype) || !packet.put_ethernet(ethertype) {
        return NEXT;
    }
    from_overlay(&ctx)
}

/// Where [`vmlb_overlay`] or [`vmlb_overlay_ip`] meets a fragment.
#[classifier]
pub fn vmlb_overlay_fragment(ctx: TcContext) -> i32 {
    let mut packet = First::new(Tc(ctx.skb.skb));
    let verdict = fragment::from_overlay(&mut packet, &Node);
    packet.into_packet().action(verdict)
}

/// The ageing pass; never attached, the agent runs it.
#[raw_tracepoint]
pub fn vmlb_sweep(_ctx: RawTracePointContext) -> i32 {
    maps::keep();
    sweep::pass();
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel's GPL-only helpers (FIB, redirect, tracing) want a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
