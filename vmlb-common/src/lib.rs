//! The datapath of vmlb and the ABI of its maps. This page is the architecture document.
//!
//! # What vmlb is
//!
//! A packet load balancer on every node of a Kubernetes cluster that runs virtual machines (KubeVirt). A Service's
//! frontends (node ports, load-balancer addresses) are translated to the pods that carry the VMs before the node's
//! network stack sees the packet: by XDP where the driver has it, at TC ingress elsewhere. The agent (`vmlb-agent`)
//! fills the maps from Kubernetes objects; the programs (`vmlb-ebpf`) are this crate, compiled for BPF.
//!
//! This crate is compiled twice from one source: into the BPF object, and natively for tests (and some day for a command
//! that tells of a packet what this node would do with it). It knows packets and tables as traits ([`packet::Packet`], [`kernel::Kernel`], [`kernel::Tables`]), and IPv4 from IPv6
//! only in [`family`].
//!
//! # Words
//!
//! *Uplink*: a device by which clients and other nodes reach the node. *Frontend*: address, port and protocol that a
//! client uses. *Backend*: a VM (or a plain pod) by an id. *Endpoint*: where a backend is, was, or is expected; each has two,
//! of which one is the *present* one. *Turn*: the moment in which the other becomes it. *Target*: a backend and a port.
//! *Flow*: both directions of a connection, named by target, not by pod address, so that a VM may move. *Punt*: to give
//! a packet to the stack on purpose. *Defer*: to give it to the TC program behind XDP.
//!
//! # A packet's ways
//!
//! | | packet | what happens | where |
//! |-|-|-|-|
//! | 1 | not ours | passes, after at most four bitmap loads | XDP |
//! | 2 | to a frontend, backend here | DNAT, source kept, to the stack ([`abi::Delivery::KEPT`]) | XDP |
//! | 3 | reply of 2 | source rewritten to the frontend | TC egress of the uplink |
//! | 4 | to a frontend, backend elsewhere | DNAT and SNAT, sent by the FIB's next hop ([`abi::Delivery::SNAT`]) | XDP |
//! | 5 | reply of 4 | both undone, sent to the client | XDP |
//! | – | to a frontend, backend here, but its reply would miss our egress program | DNAT and SNAT into the pod's device ([`abi::Delivery::SNAT`]), undone at that device's TC ingress | TC |
//! | – | to a frontend, backend here, where the operator wants it | DNAT, source kept, into the pod's device past the stack ([`abi::Delivery::PEER`]), reversed at that device's TC ingress | TC |
//! | 6 | to a frontend, source kept, backend elsewhere | wrapped as it came, to the backend's node; there unwrapped and as 2, the first reply wrapped and back, later ones as 3 | XDP, TC |
//! | 7 | ICMP error that quotes a flow's packet | both translated, so that each end learns of what it sent itself | XDP, TC |
//! | 8 | fragment | as the first one of its datagram, which goes its way by the ports it has; where that has not come yet, to the stack | as those |
//! | 9 | frontend without a usable backend | dropped where policy Local says so, else answered: RST, port unreachable | XDP |
//! | – | larger than the way on takes | answered with the way's MTU, where it must not be cut | XDP |
//! | 10 | device without XDP | the same stages at TC ingress | TC |
//! | 11 | to a frontend, backend elsewhere behind an overlay (VXLAN, Geneve, IPIP, GRE, WireGuard, ...) | DNAT and SNAT to the overlay's address ([`abi::DeviceFlags::OVERLAY`]), undone at that device's TC ingress | TC |
//!
//! An uplink whose frames come by another device (a VLAN by its parent, a bond by its members, a bridge by its port) has XDP
//! there: a program of its own takes the tags out, has the same stages look at the frame as one of the uplink's, and puts
//! tags on before it goes on ([`datapath::carrier_ingress`]). TC ingress of such an uplink runs the stages for all that comes.
//!
//! What XDP cannot send itself (next hop's MAC address unknown, device that XDP cannot send through, a pod's device) it
//! passes untouched with a mark in the packet's metadata; TC ingress of the same device runs the same stages and sends by
//! `bpf_redirect_neigh`. A packet that carries the node's own address as source never enters the stack: the kernel would
//! drop it as a martian.
//!
//! # The stages
//!
//! [`datapath`] has them in order. *Gate*: bitmaps tell most foreign packets. *Reply*: a packet to a SNAT address.
//! *Established*: a request of a proved flow. *Open*: sees to it that a request has a flow. *Half-open*: a request of a
//! flow not proved yet, and its proof. A stage decides ([`verdict::Verdict`]) or lets the next one; state is in tables,
//! not in arguments, because the BPF stack has 512 octets along a chain of calls. What is to be refused is answered last, by
//! a stage that makes the packet its own answer, so many a second ([`abi::Bucket`]); at TC the stack is left to refuse.
//!
//! # Clients
//!
//! Source ranges and session affinity are looked at once a flow, when it opens. A client stays with a target by
//! (service port, address): in an LRU table until one of its flows is proved, then in a table that nothing evicts, so that
//! a flood of invented clients costs real ones nothing. What may be chosen is in map `eligible`; anything else is a miss.
//!
//! # VMs that move
//!
//! A flow names its backend, so one word moves all flows of a VM: [`abi::Turn`] says which of the backend's two endpoints is the
//! present one. When the agent knows of a second pod of a VM it writes the endpoint that is not present, makes the pod's
//! address known, and sets the word's mark that the VM is expected there. The first packet of one of its flows from there
//! (or the answer to the agent's probe) turns the word by compare-and-swap, in whichever program sees it
//! ([`datapath`], stage `place`): requests on every CPU follow at once, and the agent is told by a ring. A reset or an ICMP
//! error from a side where the VM is not is its launcher's word and is dropped; other packets of the old side are still
//! translated while its address is known. KubeVirt's translation in the new pod takes flows up in mid-stream, but no FIN for a
//! beginning: a flow's first packet to the new endpoint goes without it, and the client sends it again. Each flow keeps the
//! client's sequence numbers, from which the agent makes packets that prepare the new pod beforehand.
//!
//! # The tunnel
//!
//! A flow whose source is kept and whose backend is elsewhere (because its Service says so, or because the VM has moved
//! away) goes wrapped to the backend's node, in IP or in VXLAN's shape. The wrapping carries a mark: the backend's tag, by
//! which the far node finds the target that was chosen here, and whether the flow is proved. From a proved flow's packet the far node makes a
//! proved flow, whatever moment of it that is. It answers by the node that the client addressed until a request after the answer
//! shows that the answer was seen there; then it answers the client directly (or never, see [`abi::Tunnel::returns`]).
//! What comes out of a tunnel never goes into one. Only nodes of the cluster are listened to, and only about frontends.
//!
//! # Fragments
//!
//! A program that meets a fragment to or from us goes on with another ([`verdict::Verdict::FRAGMENT`]), because a chain
//! of calls with more in it would not fit the stack; the two maps that name those programs are pinned, and a slot
//! changes in one step when an agent loads new ones. A datagram's first fragment is a [`packet::Packet`] that is not
//! whole ([`datapath::fragment::First`]) and goes through the same stages: a checksum changed by difference is right
//! for the datagram. IPv6's fragment header is part of the IP header of a family of its own ([`family::V6Fragment`]),
//! so that nothing is moved. What became of the first one is noted ([`abi::Fragment`]) under the datagram's number at
//! this hook, for thirty seconds, and becomes of the others. By the tunnel every one is wrapped as the first; the far
//! node takes them out, and notes them as others than those that come to itself. One that comes before the first goes
//! to the stack, and so does the first then, unless its flow is ours: half of a datagram helps nobody, and is dropped.
//! An ICMPv6 error that quotes a fragment comes here too: what it quotes is of that family with one header more, the
//! error itself is not.
//!
//! # Flows
//!
//! A flow is a pair of entries: [`abi::Flow`] by the client's tuple, [`abi::Reply`] by the backend's. Each direction
//! writes its own entry; FIN and RST are noted on both. New pairs are made in LRU tables (`half_*`), and move to plain
//! hash tables when both directions are proved: TCP by the client's acknowledgment of the SYN-ACK's sequence number, UDP
//! by a request after an answer. A flood of new flows evicts new flows only.
//!
//! The reply's key is the reservation of its tuple: it is made only where neither table holds it, first in the half-open
//! table and then looked for in the other, while promotion makes the new pair before it removes the old one. So no tuple
//! towards a backend is ever shared, and with SNAT a port is found by a search from a secret start, the client's own port
//! first, that of a closed flow last.
//!
//! Ageing runs in the kernel ([`datapath::sweep`]): one pass marks idle pairs, a later one claims both sides by
//! compare-and-swap and removes them; a packet in between takes the mark back.
//!
//! SYN and SYN-ACK have their maximum segment size lowered to what their way takes ([`abi::ClampMss`]), with a bounded walk over
//! the options that runs for them only.
//!
//! # Next hops
//!
//! The FIB is asked once a flow and direction. Requests cache the hop per backend and CPU, replies in their entry. A hop
//! holds while [`abi::Settings::generation`] (raised by the agent with every change of routes, neighbours and links) and
//! the backend's revision stand, and for ten seconds at most, in case no agent is there to raise anything.
//!
//! # Checksums
//!
//! Only differences ([`checksum`]): a flow keeps what its translation changes in the sum of both addresses
//! ([`abi::Flow::address_sum`]), a packet adds its ports and, over IPv4, the hop count. XDP and host buffers do the
//! arithmetic in the packet, TC by the helpers that know of partial checksums, and of what hardware summed of a whole packet.
//!
//! # Order of writes
//!
//! The agent writes endpoints, pods, turns and targets, then slots, then the service that points at them (one 8-byte store),
//! then frontends, and removes in reverse. Slots are slices of one array; a slice is not written again while packets may
//! still read it.
//!
//! # Rust for BPF
//!
//! What building this taught: addresses go from packet to key in one expression, and by reference afterwards, else LLVM
//! moves them octet by octet through the stack; large empty values are made in place, word by word
//! ([`abi::Plain`]), else LLVM calls `memset`, a loop over octets; `ctx->data` is read volatile in one place; bounded
//! searches go through `bpf_loop` ([`kernel::Kernel::search`]), else the verifier walks every turn; compare-and-swap is
//! one line of assembly, because rustc says that the target has none.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod checksum;
pub mod datapath;
pub mod family;
pub mod flow;
#[cfg(feature = "host")]
pub mod host;
pub mod kernel;
pub mod live;
pub mod packet;
pub mod verdict;
pub mod wire;
