//! SNAT ports: a tuple towards a backend belongs to one flow at a time. The reply's entry is the reservation.

use crate::abi::{Flow, Gate, Reply, ReplyKey, Seen, Settings, Tries};
use crate::family::Family;
use crate::flow::snat_port;
use crate::kernel::{Kernel, Search, Stage, Tables};

use super::end;

/// Ports tried for one flow. At 90 % use one flow in about 30 finds none of them free (0.9^32).
const ATTEMPTS: u32 = 32;

/// Whose a tuple is; a number, the greater the better for a newcomer, because enums make the verifier walk each way of a
/// search on its own.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Tuple(u32);

impl Tuple {
    /// Another flow's.
    const TAKEN: Self = Self(0);
    /// That of a flow that was established and that TCP is done with, its last acknowledgment included;
    /// [`end::reclaim`] frees it. One less: the acknowledgment may be on its way.
    pub(super) const OVER: Self = Self(2);
    /// The new flow's: its reply's side has been made.
    pub(super) const RESERVED: Self = Self(3);
}

/// The search for a port.
struct Ports<'a, F: Family> {
    settings: &'a Settings,
    hash: u32,
    flow: &'a mut Flow<F::Address>,
    reply: &'a Reply<F::Address>,
    /// The best tuple met, in the upper half, and its port.
    best: u32,
    tried: u32,
}

impl<F: Family, K: Kernel + Tables<F>> Search<K> for Ports<'_, F> {
    #[inline(always)]
    fn step(&mut self, kernel: &K, number: u32) -> bool {
        let client_port = self.reply.flow.client_port;
        let own = number == 0
            && kernel.gate(Gate::SNAT_PORTS.entry(client_port)) & Gate::mask(client_port) != 0
            && !self.settings.is_taken(client_port);
        self.tried = number.wrapping_add(1);
        self.flow.peer_port = if own { client_port } else { snat_port(self.settings, self.hash, number) };
        let tuple = reserve(kernel, &self.flow.reply_key(self.reply.flow.protocol), self.reply);
        let met = tuple.0 << 16 | u32::from(self.flow.peer_port);
        self.best = if met > self.best { met } else { self.best };
        tuple == Tuple::RESERVED
    }
}

/// Finds a port for `flow` (its `peer` is set) and makes the reply's side; `true` with the port in `flow`.
/// The client's own port is tried first, the port of a flow that is over late, and before a connection is refused that of
/// a flow whose last acknowledgment may be on its way.
#[inline(always)]
pub(super) fn reserve_port<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    hash: u32,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> bool {
    let found = search(kernel, hash, flow, reply);
    let tuple = Tuple(found >> 16);
    flow.peer_port = (found & 0xffff) as u16;
    let is_reserved = tuple == Tuple::RESERVED
        || tuple != Tuple::TAKEN && take_over(kernel, &flow.reply_key(reply.flow.protocol), reply);
    if !is_reserved {
        kernel.count_tries(Tries::EXHAUSTED);
    }
    is_reserved
}

/// Searches; the best tuple met, in the upper half, and its port. A subprogram, so that its frame does not
/// stand below the one that takes over.
#[inline(never)]
fn search<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    hash: u32,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> u32 {
    let Some(settings) = kernel.settings() else {
        return 0;
    };
    let mut ports = Ports::<F> { settings, hash, flow, reply, best: 0, tried: 0 };
    kernel.search(ATTEMPTS, &mut ports);
    if ports.best >> 16 != Tuple::TAKEN.0 {
        kernel.count_tries(Tries::found_at(ports.tried));
    }
    ports.best
}

/// Makes the reply's side on the tuple of a flow that TCP is done with.
#[inline(always)]
pub(super) fn take_over<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ReplyKey<F::Address>,
    reply: &Reply<F::Address>,
) -> bool {
    end::reclaim(kernel, key) == end::Outcome::REMOVED && reserve(kernel, key, reply) == Tuple::RESERVED
}

/// Makes the reply's side where the tuple is free in both tables. First the entry, then the look at the other table:
/// a flow that is being promoted is in one of the two at any time. Who holds the tuple in the half-open table is not
/// looked up: that would count as use, and a search would keep alive what it meets.
#[inline(always)]
pub(super) fn reserve<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ReplyKey<F::Address>,
    reply: &Reply<F::Address>,
) -> Tuple {
    if key.peer_port == 0 || kernel.add_reply(Stage::Half, key, reply).is_err() {
        return Tuple::TAKEN;
    }
    let Some(other) = kernel.reply(Stage::Established, key) else {
        return Tuple::RESERVED;
    };
    kernel.remove_reply(Stage::Half, key);
    let is_closed = Seen::is_closed(other.flags().get());
    Tuple(u32::from(is_closed) + u32::from(end::is_over::<F, K>(kernel, other)))
}
