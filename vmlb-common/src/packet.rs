//! The packet as the datapath sees it: typed views from the start of the frame, and the few operations that differ
//! between XDP, TC and a buffer on the host.

use crate::abi::{FlowKey, TunnelShape, WireKey};
use crate::checksum::Delta;
use crate::family::{Family, Header};
use crate::live::Slot;
use crate::verdict::Verdict;
use crate::wire::{Be16, Ethernet, Ethertype, Protocol, TcpFlags, TcpHeader, UdpHeader, VxlanHeader, Wire};

/// Ethernet, IP and a transport header, one behind the other.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frame<I, L> {
    /// Link layer.
    pub ethernet: Ethernet,
    /// Network layer.
    pub ip: I,
    /// Transport layer.
    pub transport: L,
}

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<I: Wire, L: Wire> Wire for Frame<I, L> {}

/// IP and a transport header without a link layer, as tunnels in IP carry them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Bare<I, L> {
    /// Network layer.
    pub ip: I,
    /// Transport layer.
    pub transport: L,
}

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<I: Wire, L: Wire> Wire for Bare<I, L> {}

/// A packet in another: IP in IP.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct InIp<O, I, L> {
    /// Link layer.
    pub ethernet: Ethernet,
    /// The wrapping.
    pub outer: O,
    /// Network layer.
    pub ip: I,
    /// Transport layer.
    pub transport: L,
}

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<O: Wire, I: Wire, L: Wire> Wire for InIp<O, I, L> {}

/// A packet in another: VXLAN's shape.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct InUdp<O, I, L> {
    /// Link layer.
    pub ethernet: Ethernet,
    /// The wrapping.
    pub outer: O,
    /// Its transport layer.
    pub udp: UdpHeader,
    /// Which network.
    pub vxlan: VxlanHeader,
    /// Link layer of the packet inside.
    pub inner: Ethernet,
    /// Network layer.
    pub ip: I,
    /// Transport layer.
    pub transport: L,
}

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<O: Wire, I: Wire, L: Wire> Wire for InUdp<O, I, L> {}

/// The IP header of a wrapping, which is whole whatever is inside.
pub type Outer<F> = <<F as Family>::Own as Family>::Header;

/// Octets that the wrapping of a [`TunnelShape`] takes between the Ethernet header and the packet inside.
#[inline(always)]
pub const fn overhead<F: Family>(shape: u8) -> u32 {
    let outer = size_of::<Outer<F>>();
    let rest = size_of::<UdpHeader>() + size_of::<VxlanHeader>() + size_of::<Ethernet>();
    (if shape == TunnelShape::IP { outer } else { outer + rest }) as u32
}

/// How a hook sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Frames, with both MAC addresses written here, out of devices that XDP can send through; what it cannot send it
    /// may defer to TC (XDP).
    Frames,
    /// Packets, whose MAC addresses the kernel resolves (TC).
    Packets,
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the backend.
    Request,
    /// From the backend.
    Reply,
}

/// One packet at one hook.
pub trait Packet {
    /// How this hook sends.
    const SENDING: Sending;

    /// Whether it has all of the datagram; else it is the first fragment, which has the ports.
    const WHOLE: bool = true;

    /// Out of which devices, by bits of [`crate::abi::DeviceFlags`]; what sends packets does out of any.
    const SENDS_BY: u32;

    /// The first octets of the frame as a `T`, or `None` where the packet is shorter.
    fn view<T: Wire>(&mut self) -> Option<&mut T>;

    /// Four octets of the frame from `offset` on, which is less than 256; `None` where the packet ends before.
    fn octets_at(&mut self, offset: u32) -> Option<&mut [u8; 4]>;

    /// Octets of the frame, Ethernet header included. In TC it may count segments not yet cut (GSO).
    fn length(&self) -> u32;

    /// Octets of the frame, or 0 where it stands for segments not yet cut, whose length is their sender's affair.
    fn uncut_length(&self) -> u32;

    /// Index of the device the packet came in by (at egress: leaves by).
    fn ifindex(&self) -> u32;

    /// Index of the device by which the packet entered the node; 0: the node made it itself. At ingress as
    /// [`Packet::ifindex`].
    fn entered_by(&self) -> u32;

    /// What helpers want as their first argument; opaque here.
    fn context(&self) -> *mut core::ffi::c_void;

    /// Brings the IP header's checksum (by `header`, what has changed in it) and the transport's (by both others) up to date,
    /// after the fields have been written. Views taken before are void.
    fn fix_checksums<F: Family>(&mut self, protocol: Protocol, header: Delta, addresses: Delta, ports: Delta);

    /// Brings the checksum of the IP header, if it has one, up to date by what has changed in it, where nothing behind it
    /// makes up for that. Views taken before are void.
    fn fix_header<F: Family>(&mut self, header: Delta);

    /// Told whose packet this is.
    fn note_backend(&mut self, _backend: u32, _direction: Direction) {}

    /// Cuts the frame behind its first `kept` octets and makes room for `front` octets before them. Views taken before
    /// are void. `false`: this hook cannot, and the frame is of no use any more.
    #[must_use]
    fn reshape(&mut self, kept: u32, front: u32) -> bool;

    /// Makes `octets` of room behind the Ethernet header, for a wrapping of this [`TunnelShape`]. Views taken before are void.
    #[must_use]
    fn wrap<F: Family>(&mut self, shape: u8, octets: u32) -> bool;

    /// Takes `octets` out behind the Ethernet header. Views taken before are void.
    #[must_use]
    fn unwrap<F: Family>(&mut self, octets: u32) -> bool;

    /// Sees to it that so many octets can be viewed, where the packet has them. Views taken before are void.
    fn reach(&mut self, octets: u32);

    /// Sends the finished packet by `hop`; MAC addresses are written where the hook sends frames.
    fn send(&mut self, hop: Slot) -> Verdict;
}

/// What is noted of a frame while it is looked at without its tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lane {
    /// Index of the device to which it belongs.
    pub ifindex: u32,
    /// Its first tag: TPID in the upper half, priority and VLAN in the lower one; 0: none.
    pub outer: u32,
    /// Its second tag.
    pub inner: u32,
    /// Index of the device by which it is to leave, where that is another.
    pub exit: u32,
}

/// A frame at a device that carries others. As a [`Packet`] it is one of the device to which it belongs.
pub trait Trunk: Packet {
    /// Index of the device on the wire.
    fn wire(&self) -> u32;

    /// Notes what the frame is.
    fn note(&mut self, lane: Lane);

    /// What was noted.
    fn lane(&self) -> Lane;

    /// Moves the Ethernet header by so many octets, towards the packet's end or its front, and has it announce
    /// `ethertype`. Views taken before are void.
    #[must_use]
    fn shift(&mut self, by: i32, ethertype: Ethertype) -> bool;

    /// Has the hook send the frame out of this device.
    fn redirect(&mut self, ifindex: u32);
}

/// What one TCP or UDP packet says besides its addresses, which are read where they are needed: they are large, and the
/// BPF stack is small.
#[derive(Clone, Copy)]
pub struct Transport {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// TCP flags; none for UDP.
    pub flags: TcpFlags,
    /// TCP sequence number, host order.
    pub sequence: u32,
    /// TCP acknowledgment number, host order.
    pub acknowledgment: u32,
    /// Sequence numbers that a TCP segment takes: octets of payload, SYN and FIN.
    pub consumed: u32,
    /// Octets from the IP header on.
    pub octets: u32,
}

impl Transport {
    /// Reads a plain TCP or UDP packet; `None` where its lengths contradict each other or the frame.
    #[inline(always)]
    pub fn read<F: Family, P: Packet>(packet: &mut P) -> Option<Self> {
        let available =
            packet.length().wrapping_sub(size_of::<Ethernet>() as u32 + size_of::<F::Header>() as u32);
        let frame = packet.view::<Frame<F::Header, UdpHeader>>()?;
        let payload = frame.ip.payload_length();
        let protocol = frame.ip.protocol();
        let transport = Self {
            source_port: frame.transport.source.get(),
            destination_port: frame.transport.destination.get(),
            protocol,
            flags: TcpFlags(0),
            sequence: 0,
            acknowledgment: 0,
            consumed: 0,
            octets: payload.wrapping_add(size_of::<F::Header>() as u32),
        };
        if payload > available {
            return None;
        }
        if protocol == Protocol::UDP {
            let claimed = u32::from(frame.transport.length.get());
            return (claimed >= 8 && (claimed <= payload || !P::WHOLE)).then_some(transport);
        }
        let tcp = &packet.view::<Frame<F::Header, TcpHeader>>()?.transport;
        let (length, flags) = (tcp.length(), tcp.flags());
        let (sequence, acknowledgment) = (tcp.sequence_number(), tcp.acknowledgment_number());
        let ends = u32::from(flags.any(TcpFlags::SYN)) + u32::from(flags.any(TcpFlags::FIN));
        let consumed = payload.wrapping_sub(length).wrapping_add(ends);
        let is_whole = length >= 20 && length <= payload;
        is_whole.then_some(Self { flags, sequence, acknowledgment, consumed, ..transport })
    }
}

/// The flow a packet with this IP header would belong to if a client sent it. Built in one piece from the packet: a key
/// that passes through an `Option`, or is filled later, travels octet by octet through the BPF stack.
#[inline(always)]
pub fn flow_key<F: Family>(ip: &F::Header, transport: &Transport) -> FlowKey<F::Address> {
    FlowKey {
        client: ip.source(),
        frontend: ip.destination(),
        client_port: transport.source_port,
        frontend_port: transport.destination_port,
        protocol: transport.protocol.number(),
        pad: 0,
        pad2: 0,
    }
}

/// The tuple of a packet with this IP header. Built in one piece, as [`flow_key`].
#[inline(always)]
pub fn wire_key<F: Family>(ip: &F::Header, transport: &Transport) -> WireKey<F::Address> {
    WireKey {
        source: ip.source(),
        destination: ip.destination(),
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: transport.protocol.number(),
        pad: 0,
        pad2: 0,
    }
}

/// [`Packet::fix_header`] by arithmetic in the packet.
#[inline(always)]
pub fn fix_header_in_place<F: Family, P: Packet>(packet: &mut P, header: Delta) {
    if let Some(frame) = packet.view::<Frame<F::Header, ()>>() {
        let _field = frame.ip.fix_checksum(header);
    }
}

/// [`Packet::fix_checksums`] by arithmetic in the packet, for hooks whose packets carry full checksums.
#[inline(always)]
pub fn fix_in_place<F: Family, P: Packet>(
    packet: &mut P,
    protocol: Protocol,
    header: Delta,
    addresses: Delta,
    ports: Delta,
) {
    let both = addresses.and(ports);
    if protocol == Protocol::TCP {
        if let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() {
            let _field = frame.ip.fix_checksum(header);
            frame.transport.checksum = both.apply(frame.transport.checksum);
        }
    } else if let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() {
        let _field = frame.ip.fix_checksum(header);
        frame.transport.checksum = udp_checksum::<F>(frame.transport.checksum, both);
    }
}

/// A UDP checksum after a change. RFC 768: zero means "no checksum"; a sum that comes out as zero is sent as all ones.
#[inline(always)]
pub fn udp_checksum<F: Family>(old: Be16, change: Delta) -> Be16 {
    if F::UDP_CHECKSUM_OPTIONAL && old == Be16::default() {
        return old;
    }
    let new = change.apply(old);
    if new == Be16::default() { Be16::from_raw(0xffff) } else { new }
}

/// [`Packet::send`]'s part for hooks that send frames: both MAC addresses.
#[inline(always)]
pub fn address_frame<P: Packet>(packet: &mut P, hop: Slot) {
    if let Some(ethernet) = packet.view::<Ethernet>() {
        ethernet.destination = hop.destination();
        ethernet.source = hop.source();
    }
}
