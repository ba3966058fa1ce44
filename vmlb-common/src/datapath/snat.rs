//! SNAT ports: a tuple towards a backend belongs to one flow at a time. The reply's entry is the reservation.

use crate::abi::{Flow, Gate, Reply, ReplyKey, Settings, Tries};
use crate::family::Family;
use crate::flow::snat_port;
use crate::kernel::{Kernel, Search, Stage, Tables};

use super::end;

/// Ports tried for one flow. At 90 % use one flow in about 30 finds none of them free (0.9^32).
const ATTEMPTS: u32 = 32;

/// Whose a tuple is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tuple {
    /// The new flow's: its reply's side has been made.
    Reserved,
    /// Another flow's.
    Taken,
    /// That of a flow that was established and is over; [`end::reclaim`] frees it.
    Closed,
}

/// The search for a port.
struct Ports<'a, F: Family> {
    settings: &'a Settings,
    hash: u32,
    flow: &'a mut Flow<F::Address>,
    reply: &'a Reply<F::Address>,
    /// The last port met whose flow is over.
    closed: u32,
    reserved: u32,
    tried: u32,
}

impl<F: Family, K: Kernel + Tables<F>> Search<K> for Ports<'_, F> {
    #[inline(always)]
    fn step(&mut self, kernel: &K, number: u32) -> bool {
        let client_port = self.reply.flow.client_port;
        let own =
            number == 0 && kernel.gate(Gate::SNAT_PORTS.entry(client_port)) & Gate::mask(client_port) != 0;
        self.tried = number.wrapping_add(1);
        self.flow.peer_port = if own { client_port } else { snat_port(self.settings, self.hash, number) };
        match reserve(kernel, &self.flow.reply_key(self.reply.flow.protocol), self.reply) {
            Tuple::Reserved => self.reserved = 1,
            Tuple::Closed => self.closed = u32::from(self.flow.peer_port),
            Tuple::Taken => {}
        }
        self.reserved != 0
    }
}

/// Finds a port for `flow` (its `peer` is set) and makes the reply's side; `true` with the port in `flow`.
/// The client's own port is tried first, the port of a flow that is closed last.
#[inline(always)]
pub(super) fn reserve_port<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    hash: u32,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> bool {
    let found = search(kernel, hash, flow, reply);
    let is_reserved = found == RESERVED || {
        flow.peer_port = (found & 0xffff) as u16;
        flow.peer_port != 0 && take_over(kernel, &flow.reply_key(reply.flow.protocol), reply)
    };
    if !is_reserved {
        kernel.count_tries(Tries::EXHAUSTED);
    }
    is_reserved
}

/// [`search`] has made the reply's side.
const RESERVED: u32 = 1 << 16;

/// Searches; [`RESERVED`], or the port of a flow that is over, or 0. A subprogram, so that its frame does not
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
    let mut ports = Ports::<F> { settings, hash, flow, reply, closed: 0, reserved: 0, tried: 0 };
    kernel.search(ATTEMPTS, &mut ports);
    if ports.reserved == 0 && ports.closed == 0 {
        return 0;
    }
    kernel.count_tries(Tries::found_at(ports.tried));
    if ports.reserved != 0 { RESERVED } else { ports.closed }
}

/// Makes the reply's side on the tuple of a flow that is over.
#[inline(always)]
pub(super) fn take_over<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &ReplyKey<F::Address>,
    reply: &Reply<F::Address>,
) -> bool {
    end::reclaim(kernel, key) == end::Outcome::REMOVED && reserve(kernel, key, reply) == Tuple::Reserved
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
        return Tuple::Taken;
    }
    let Some(other) = kernel.reply(Stage::Established, key) else {
        return Tuple::Reserved;
    };
    kernel.remove_reply(Stage::Half, key);
    if end::is_over::<F, K>(kernel, other) { Tuple::Closed } else { Tuple::Taken }
}
