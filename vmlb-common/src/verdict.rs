//! What becomes of a packet, and the numbered reason where it is dropped or punted.

/// What the stages decided: an action, and a reason where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a verdict that nobody returns forwards what should have been dropped"]
#[repr(transparent)]
pub struct Verdict(u32);

impl Verdict {
    /// The stage has nothing to say; the next one decides.
    pub const CONTINUE: Self = Self(0);
    /// To the node's stack, untouched: not ours.
    pub const PASS: Self = Self(1);
    /// To the node's stack, translated.
    pub const DELIVER: Self = Self(2);
    /// Out of the device it came in by.
    pub const TRANSMIT: Self = Self(3);
    /// Out of another device (the hook has been told which).
    pub const REDIRECT: Self = Self(4);
    /// By the tunnel; a stage's word, which [`crate::datapath`] carries out.
    pub const CARRY: Self = Self(10);
    /// A fragment to one of our addresses, or from one of our pods: for the program that serves fragments. Where there is
    /// none it is [`Verdict::punt`] of [`Reason::FRAGMENT`].
    pub const FRAGMENT: Self = Self(11);
    const DEFER: u32 = 5;
    const PUNT: u32 = 6;
    const DROP: u32 = 7;
    const REJECT: u32 = 8;
    const ANSWER: u32 = 9;

    /// Untouched to TC ingress of the same device, which translates and sends it.
    #[inline(always)]
    pub const fn defer(reason: Reason) -> Self {
        Self(Self::DEFER | reason.0 << 8)
    }

    /// The same where XDP cannot send by the way on, which takes `mtu` octets from the IP header on, if that fits 16 bits; a
    /// stage's word.
    #[inline(always)]
    pub const fn defer_within(mtu: u32) -> Self {
        let mtu = if mtu > 0xffff { 0 } else { mtu };
        Self(Self::DEFER | Reason::NO_TRANSMIT.0 << 8 | mtu << 16)
    }

    /// Untouched to the stack although it is addressed to us.
    #[inline(always)]
    pub const fn punt(reason: Reason) -> Self {
        Self(Self::PUNT | reason.0 << 8)
    }

    /// Gone.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self(Self::DROP | reason.0 << 8)
    }

    /// To be refused so that its sender learns of it; a stage's word, which [`crate::datapath`] carries out.
    #[inline(always)]
    pub const fn reject(reason: Reason) -> Self {
        Self(Self::REJECT | reason.0 << 8)
    }

    /// To be refused because the way on takes no more than `mtu` octets, from the IP header on.
    #[inline(always)]
    pub const fn too_big(mtu: u32) -> Self {
        Self(Self::REJECT | Reason::TOO_BIG.0 << 8 | mtu << 16)
    }

    /// To be refused because it has no hop left for the way on.
    pub const EXPIRED: Self = Self::reject(Reason::TTL_EXPIRED);

    /// Whether it is the way on that refuses the packet, not the frontend: nobody else here can take it.
    #[inline(always)]
    pub const fn is_of_the_way(self) -> bool {
        self.mtu() != 0 || self.0 == Self::EXPIRED.0
    }

    /// The MTU of [`Verdict::too_big`] and [`Verdict::defer_within`]; 0 for others.
    #[inline(always)]
    pub const fn mtu(self) -> u32 {
        self.0 >> 16
    }

    /// Whether the packet is larger than the way on takes.
    #[inline(always)]
    pub const fn is_too_large(self) -> bool {
        let reason = self.reason();
        reason.0 == Reason::TOO_BIG.0 || reason.0 == Reason::UNCUTTABLE.0
    }

    /// Made into the answer that refuses it, and back out of the device it came in by.
    #[inline(always)]
    pub const fn answer(reason: Reason) -> Self {
        Self(Self::ANSWER | reason.0 << 8)
    }

    /// Whether a stage decided.
    #[inline(always)]
    pub const fn is_final(self) -> bool {
        self.0 != 0
    }

    /// Whether the packet is to be dropped.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self.0 & 0xff == Self::DROP
    }

    /// Whether the packet waits for TC ingress.
    #[inline(always)]
    pub const fn is_defer(self) -> bool {
        self.0 & 0xff == Self::DEFER
    }

    /// Whether the packet goes to the stack on purpose.
    #[inline(always)]
    pub const fn is_punt(self) -> bool {
        self.0 & 0xff == Self::PUNT
    }

    /// Whether the packet is to be refused.
    #[inline(always)]
    pub const fn is_reject(self) -> bool {
        self.0 & 0xff == Self::REJECT
    }

    /// Whether the packet has become its own answer.
    #[inline(always)]
    pub const fn is_answer(self) -> bool {
        self.0 & 0xff == Self::ANSWER
    }

    /// The verdict about a packet that another node's tunnel has brought: only a node that has it as the client sent it may
    /// leave it to a stack, refuse it, or send it on by the tunnel.
    #[inline(always)]
    pub const fn or_drop(self) -> Self {
        match self {
            Self::DELIVER | Self::TRANSMIT | Self::REDIRECT => self,
            _ if self.is_drop() => self,
            Self::CONTINUE | Self::PASS | Self::CARRY => Self::drop(Reason::TUNNEL_FRONTEND),
            _ => Self::drop(self.reason()),
        }
    }

    /// The verdict where nobody answers: what is to be refused is dropped.
    #[inline(always)]
    pub const fn unanswered(self) -> Self {
        if self.is_reject() { Self::drop(self.reason()) } else { self }
    }

    /// The reason; [`Reason::NONE`] where none belongs.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        Reason(self.0 >> 8 & 0xff)
    }

    /// As a number, for stages that return across a BPF subprogram boundary.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// From [`Verdict::number`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self.0 & 0xff {
            0 => "continue",
            1 => "pass",
            2 => "deliver",
            3 => "transmit",
            4 => "redirect",
            10 => "carry",
            11 => "fragment",
            Self::DEFER => "defer",
            Self::PUNT => "punt",
            Self::REJECT => "reject",
            Self::ANSWER => "answer",
            _ => "drop",
        }
    }
}

/// Why a packet was dropped or punted: the index into map `reasons`. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Reason(u32);

macro_rules! reasons {
    ($($number:literal $name:ident $word:literal $why:literal;)*) => {
        impl Reason {
            $(#[doc = $why] pub const $name: Self = Self($number);)*

            /// All reasons, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// One word, as metrics and `vmlb status` print it.
            pub const fn name(self) -> &'static str {
                match self.0 { $($number => $word,)* _ => "unknown" }
            }

            /// A sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self.0 { $($number => $why,)* _ => "A reason that this version does not know." }
            }
        }
    };
}

reasons! {
    0 NONE "none" "No reason: the packet is not ours, or was served.";
    1 MALFORMED "malformed" "Dropped: addressed to a frontend or a flow, but its lengths contradict each other.";
    2 OPTIONS "ip_options" "Punted: an IPv4 header with options.";
    3 FRAGMENT "fragment" "Punted: a fragment that came before the first one of its datagram, or is of ICMP, or of a tunnel's own packet.";
    4 MID_FLOW "mid_flow" "Punted: TCP in mid-flow without a flow entry; its connection may be the stack's.";
    5 NO_BACKEND "no_backend" "Rejected: the Service has no usable backend anywhere.";
    6 NO_LOCAL_BACKEND "no_local_backend" "Dropped: policy Local, and the usable backends are all on other nodes.";
    7 BACKEND_GONE "backend_gone" "Rejected: the flow's backend no longer exists.";
    8 TABLE_FULL "table_full" "Punted: the flow table refused a new entry.";
    9 FLOW_BUSY "flow_busy" "Dropped: the flow is being moved or removed at this moment.";
    10 SNAT_EXHAUSTED "snat_exhausted" "Rejected: every SNAT port tried for this target is taken.";
    11 NO_SNAT_ADDRESS "no_snat_address" "Punted: the device to the backend has no address to SNAT to.";
    12 NO_ROUTE "no_route" "Punted: the FIB has no usable route.";
    13 FOREIGN_DEVICE "foreign_device" "Punted: the route leads into a device that vmlb does not manage.";
    14 SOURCE_NOT_KEPT "source_not_kept" "Punted: policy Local, but replies to the client would leave by a device without our program.";
    15 TTL_EXPIRED "ttl_expired" "Rejected: no hops left for the way on.";
    16 NO_METADATA "no_metadata" "Dropped: the driver gives XDP no metadata to mark the packet for TC.";
    17 OWN_RESET "own_reset" "Dropped: a reset of this node's stack from a SNAT port to a backend, for a connection that has no flow here.";
    18 NEIGHBOUR "neighbour" "Deferred to TC: the next hop's MAC address is not known yet.";
    19 NO_TRANSMIT "no_transmit" "Deferred to TC: XDP cannot send out of the device.";
    20 POD_DEVICE "pod_device" "Deferred to TC: the packet goes to a pod's host-side device.";
    21 TABLE_FULL_ESTABLISHED "table_full_established" "Counted: the flow was proved but stays evictable, the established table is full.";
    22 FORWARDING_OFF "forwarding_off" "Punted: IP forwarding is off on the device.";
    23 INHERITED "inherited" "Punted: the connection was the stack's before vmlb came, or the tuple it would get is.";
    24 SOURCE_RANGE "source_range" "Dropped: loadBalancerSourceRanges does not admit the client.";
    25 REJECT_LIMIT "reject_limit" "Dropped: to be rejected, but this CPU has sent as many answers in this second as it may.";
    26 TOO_BIG "too_big" "Rejected: the packet is larger than the way on takes, and must not be cut.";
    27 UNCUTTABLE "uncuttable" "Dropped: the packet is larger than the way on takes, and nobody here cuts it.";
    28 NOT_PRESENT "not_present" "Dropped: a reset or an ICMP error from where the VM is not: not yet, or not any more.";
    29 PROBE "probe" "Dropped: the answer to a probe of this node's agent, noted.";
    30 NO_TUNNEL "no_tunnel" "Dropped: the flow keeps the client's address, its backend is on another node, and no tunnel leads there.";
    31 TUNNEL_SOURCE "tunnel_source" "Dropped: a tunnel's packet from an address that is no node's of the cluster.";
    32 TUNNEL_FRONTEND "tunnel_frontend" "Dropped: a tunnel's packet for an address and port that no Service has.";
    33 TUNNEL_TARGET "tunnel_target" "Dropped: a tunnel's packet for a backend that is not on this node.";
    34 FRAGMENT_ORDER "fragment_order" "Dropped: of a datagram whose fragments came out of order, in a flow that the stack does not know.";
    35 FRAGMENT_TUNNEL "fragment_tunnel" "Dropped: a fragment that a tunnel has brought before the first one of its datagram, or that one then.";
}

impl Reason {
    /// Entries of map `reasons`.
    pub const ENTRIES: u32 = 64;

    /// From [`Reason::number`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The index into map `reasons`.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }
}
