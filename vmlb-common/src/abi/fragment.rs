//! What is known of datagrams that come in fragments.

use super::{Address4, Address6, Hop};

/// Key of maps `fragments_*`: one datagram, at one hook (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Source address, as the fragments come.
    pub source: A,
    /// Destination address, as they come.
    pub destination: A,
    /// The datagram's number, of its sender's choice; 16 bits of it in IPv4.
    pub identification: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`FragmentHook`]: XDP may leave a datagram to TC, which has a way for it.
    pub hook: u8,
    /// Zero.
    pub pad: u16,
}

/// Where fragments were met; values of [`FragmentKey::hook`].
pub struct FragmentHook;

impl FragmentHook {
    /// XDP of an uplink.
    pub const XDP: u8 = 0;
    /// TC ingress of an uplink.
    pub const INGRESS: u8 = 1;
    /// TC egress of an uplink.
    pub const EGRESS: u8 = 2;
    /// TC ingress of a pod's host-side device.
    pub const POD: u8 = 3;
    /// TC ingress of an overlay's device.
    pub const OVERLAY: u8 = 4;
    /// XDP of an uplink, in another node's wrapping.
    pub const XDP_TUNNEL: u8 = 5;
    /// TC ingress of an uplink, in another node's wrapping.
    pub const INGRESS_TUNNEL: u8 = 6;

    /// Where in its array the program for a hook's fragments is. The arrays have four slots at most, and XDP an array of its own.
    pub const fn slot(hook: u8) -> u8 {
        hook % 4
    }
}

/// What became of a datagram's first fragment, and so becomes of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment<A> {
    /// Source address, as they leave; inside of the wrapping, where they get one.
    pub source: A,
    /// Destination address, as they leave; where they get a wrapping, the node that it is for.
    pub destination: A,
    /// By which hop, where a program of ours sends them.
    pub hop: Hop,
    /// When the first one, or one before it, was met, jiffies.
    pub seen: u32,
    /// [`crate::verdict::Verdict::number`] of the first one; that of [`crate::verdict::Verdict::CARRY`] where they get a
    /// wrapping.
    pub verdict: u32,
    /// The backend that they go to or come from; [`Fragment::NOBODY`]: none.
    pub backend: u32,
    /// [`FragmentFlags`].
    pub flags: u32,
    /// The datagram's number, as they leave; where they get a wrapping, its mark, and in the upper half its source port.
    pub identification: u32,
}

impl<A> Fragment<A> {
    /// No backend's id.
    pub const NOBODY: u32 = u32::MAX;
}

/// Bits of [`Fragment::flags`].
pub struct FragmentFlags;

impl FragmentFlags {
    /// They come from the backend.
    pub const REPLY: u32 = 1;
    /// The first one has not been met: what has come went to the stack.
    pub const EARLY: u32 = 2;
}

// The layout is a promise to pinned maps, as that of the others.
const _: () = {
    assert!(size_of::<FragmentKey<Address4>>() == 16 && size_of::<FragmentKey<Address6>>() == 40);
    assert!(size_of::<Fragment<Address4>>() == 56 && size_of::<Fragment<Address6>>() == 80);
};
