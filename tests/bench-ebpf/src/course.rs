//! What the bench tells the wrapper program, in its map `course`; compiled into both.

/// Octets of every measured frame: the headers of either family, and some payload.
pub const FRAME: usize = 80;

/// A 16-bit field of the packet that differs between flows: `base + (number >> shift & mask)`, in host order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Varied {
    /// The field in flow 0.
    pub base: u16,
    /// Which bits of the shifted number are added.
    pub mask: u16,
    /// By how much the flow's number is shifted.
    pub shift: u32,
}

impl Varied {
    /// The field in flow `number`.
    #[inline(always)]
    pub const fn of(self, number: u64) -> u16 {
        self.base.wrapping_add((number >> (self.shift & 63)) as u16 & self.mask)
    }
}

/// Which packets the wrapper makes, and where it sends them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Course {
    /// Counts packets; the wrapper raises it.
    pub next: u64,
    /// Odd; the packet of count `n` is of flow `n * stride & last`. 1 takes the flows in order.
    pub stride: u64,
    /// Number of flows, a power of two, less one.
    pub last: u64,
    /// Index into map `targets`.
    pub target: u32,
    /// 4 or 6: where the varied fields lie.
    pub family: u32,
    /// Last 16 bits of the source address.
    pub source: Varied,
    /// Last 16 bits of the destination address.
    pub destination: Varied,
    /// Source port.
    pub source_port: Varied,
    /// Destination port.
    pub destination_port: Varied,
    /// The frame, with zeros in the varied fields.
    pub frame: [u64; FRAME / 8],
}
