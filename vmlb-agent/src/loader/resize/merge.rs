//! Flows of retired tables, brought into the tables of the programs that come.
//!
//! The programs that go open nothing by then ([`Succession::begin`](super::Succession::begin)), so a flow of theirs can
//! only be proved, go on or end. One that is proved is in the established tables before it leaves the half-open ones, and
//! never comes back: read in the other order, half-open ones first, every flow is met at least once.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

use anyhow::ensure;
use vmlb_common::abi::{Flow, FlowKey, Reply, ReplyKey, Seen, names};
use vmlb_common::family::{Address, Address4, Address6};

use crate::bpf::{PinnedMap, Plain};
use crate::pins::PinRoot;

/// Makes the tables of `to`, which no packet meets yet, hold the flows of `from` and no others. Half-open ones that have no
/// room are left out, the oldest first.
///
/// # Errors
/// When a map cannot be read or written, or established flows have no room; those that have are there all the same.
pub fn mirror(from: &PinRoot, to: &PinRoot) -> anyhow::Result<()> {
    let v4 = Both::<Address4>::open(0, to)?.mirror(Found::take(0, from, to)?);
    let v6 = Both::<Address6>::open(1, to)?.mirror(Found::take(1, from, to)?);
    v4.and(v6)
}

/// Brings every flow of `from` that `to` does not know into `to`; how many.
///
/// # Errors
/// When a map cannot be read, or has another layout.
pub fn merge(from: &PinRoot, to: &PinRoot) -> anyhow::Result<usize> {
    let v4 = Both::<Address4>::open(0, to)?.merge(Found::take(0, from, to)?)?;
    Ok(v4 + Both::<Address6>::open(1, to)?.merge(Found::take(1, from, to)?)?)
}

/// Brings what flows of `from`, all of which `to` has known, have come to since; how many were proved. One that `to` does
/// not know any more has ended there.
///
/// # Errors
/// When a map cannot be read, or has another layout.
pub fn catch_up(from: &PinRoot, to: &PinRoot) -> anyhow::Result<usize> {
    let v4 = Both::<Address4>::open(0, to)?.catch_up(&Found::take(0, from, to)?)?;
    Ok(v4 + Both::<Address6>::open(1, to)?.catch_up(&Found::take(1, from, to)?)?)
}

/// Whole flows by the client's side; half of a pair serves nobody.
type Pairs<A> = HashMap<FlowKey<A>, (Flow<A>, Reply<A>)>;

/// What tables hold that packets change meanwhile.
struct Found<A> {
    half: Pairs<A>,
    established: Pairs<A>,
}

impl<A: Address + Plain + Debug + Hash + Eq> Found<A> {
    /// Reads the tables of `from`. One that it does not have is that of `to`; a pair of which it has none is left out.
    fn take(family: usize, from: &PinRoot, to: &PinRoot) -> anyhow::Result<Self> {
        let mut half = pairs::<A>(from, to, names::HALF_FLOWS[family], names::HALF_REPLIES[family])?;
        let established = pairs(from, to, names::FLOWS[family], names::REPLIES[family])?;
        half.retain(|key, _| !established.contains_key(key));
        Ok(Self { half, established })
    }
}

fn pairs<A: Address + Plain + Debug + Hash + Eq>(
    from: &PinRoot,
    to: &PinRoot,
    flows: &'static str,
    replies: &'static str,
) -> anyhow::Result<Pairs<A>> {
    if !from.map(flows).exists() && !from.map(replies).exists() {
        return Ok(Pairs::new());
    }
    let home = |name: &str| if from.map(name).exists() { from } else { to };
    let flows: PinnedMap<FlowKey<A>, Flow<A>> = PinnedMap::open(home(flows), flows)?;
    let replies: PinnedMap<ReplyKey<A>, Reply<A>> = PinnedMap::open(home(replies), replies)?;
    let flows = flows.all()?.into_iter();
    let replies: HashMap<ReplyKey<A>, Reply<A>> = replies.all()?.into_iter().collect();
    let pair = |(key, flow): (FlowKey<A>, Flow<A>)| {
        let reply = replies.get(&flow.reply_key(key.protocol)).filter(|reply| reply.flow == key)?;
        Some((key, (flow, *reply)))
    };
    Ok(flows.filter_map(pair).collect())
}

/// The tables of one stage.
struct Tables<A> {
    flows: PinnedMap<FlowKey<A>, Flow<A>>,
    replies: PinnedMap<ReplyKey<A>, Reply<A>>,
}

impl<A: Address + Plain + Debug + Hash + Eq> Tables<A> {
    fn open(root: &PinRoot, flows: &'static str, replies: &'static str) -> anyhow::Result<Self> {
        Ok(Self { flows: PinnedMap::open(root, flows)?, replies: PinnedMap::open(root, replies)? })
    }

    /// Removes everything but `wanted`.
    fn keep(&self, wanted: &Pairs<A>) -> anyhow::Result<()> {
        for (key, flow) in self.flows.all()? {
            if wanted
                .get(&key)
                .is_none_or(|(kept, _)| kept.reply_key(key.protocol) != flow.reply_key(key.protocol))
            {
                self.flows.remove(&key)?;
            }
        }
        for (key, reply) in self.replies.all()? {
            if wanted.get(&reply.flow).is_none_or(|(kept, _)| kept.reply_key(key.protocol) != key) {
                self.replies.remove(&key)?;
            }
        }
        Ok(())
    }

    fn put(&self, key: &FlowKey<A>, flow: &Flow<A>, reply: &Reply<A>) -> anyhow::Result<()> {
        self.replies.put(&flow.reply_key(key.protocol), reply)?;
        self.flows.put(key, flow)
    }

    /// As the datapath does: the side that claims the tuple first. Whether the pair is new here.
    fn bring(&self, key: &FlowKey<A>, flow: &Flow<A>, reply: &Reply<A>) -> anyhow::Result<bool> {
        Ok(self.replies.put_new(&flow.reply_key(key.protocol), reply)? && self.flows.put_new(key, flow)?)
    }

    /// What is known of the same flow: not of a later one between the same ports.
    fn known(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        reply: &Reply<A>,
    ) -> anyhow::Result<Option<(Flow<A>, Reply<A>)>> {
        let reply_key = flow.reply_key(key.protocol);
        let Some(known) = self.flows.get(key)?.filter(|known| known.reply_key(key.protocol) == reply_key)
        else {
            return Ok(None);
        };
        let is_same = |other: &Reply<A>| {
            let is_later = Seen::is_closed(flow.flags) && !Seen::is_closed(known.flags);
            other.flow == *key && (other.sequence == reply.sequence || other.sequence == 0 && !is_later)
        };
        Ok(self.replies.get(&reply_key)?.filter(is_same).map(|reply| (known, reply)))
    }

    /// Adds what packets have shown of a flow.
    fn note(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        reply: &Reply<A>,
        known: (Flow<A>, Reply<A>),
    ) -> anyhow::Result<()> {
        let (known, known_reply) = known;
        if flow.flags & !known.flags != 0 {
            self.flows.put(key, &Flow { flags: known.flags | flow.flags, ..known })?;
        }
        if reply.flags & !known_reply.flags != 0 {
            let flags = known_reply.flags | reply.flags;
            let noted = Reply { flags, sequence: reply.sequence, ..known_reply };
            self.replies.put(&flow.reply_key(key.protocol), &noted)?;
        }
        Ok(())
    }
}

/// The tables of both stages.
struct Both<A> {
    half: Tables<A>,
    established: Tables<A>,
}

impl<A: Address + Plain + Debug + Hash + Eq> Both<A> {
    fn open(family: usize, root: &PinRoot) -> anyhow::Result<Self> {
        Ok(Self {
            half: Tables::open(root, names::HALF_FLOWS[family], names::HALF_REPLIES[family])?,
            established: Tables::open(root, names::FLOWS[family], names::REPLIES[family])?,
        })
    }

    fn mirror(&self, found: Found<A>) -> anyhow::Result<()> {
        self.established.keep(&found.established)?;
        self.half.keep(&found.half)?;
        let mut half: Vec<_> = found.half.iter().collect();
        // Times go round; no two of them are half a round apart.
        let now = half.first().map_or(0, |(_, (flow, _))| flow.seen).wrapping_add(u32::MAX / 2);
        half.sort_unstable_by_key(|(_, (flow, _))| now.wrapping_sub(flow.seen));
        // The youngest last: who comes takes the place of the oldest.
        for (key, (flow, reply)) in half.iter().take(self.half.flows.entries() as usize).rev() {
            self.half.put(key, flow, reply)?;
        }
        let room = self.established.flows.entries() as usize;
        for (key, (flow, reply)) in found.established.iter().take(room) {
            self.established.put(key, flow, reply)?;
        }
        let count = found.established.len();
        ensure!(count <= room, "{count} established flows are in use, there is room for {room}");
        Ok(())
    }

    fn merge(&self, found: Found<A>) -> anyhow::Result<usize> {
        let mut brought = 0;
        for (key, (flow, reply)) in &found.established {
            if self.established.flows.get(key)?.is_none() {
                brought += usize::from(self.established.bring(key, flow, reply)?);
            }
        }
        for (key, (flow, reply)) in &found.half {
            if self.established.flows.get(key)?.is_none() && self.half.flows.get(key)?.is_none() {
                brought += usize::from(self.half.bring(key, flow, reply)?);
            }
        }
        Ok(brought)
    }

    fn catch_up(&self, found: &Found<A>) -> anyhow::Result<usize> {
        let mut proved = 0;
        for (key, (flow, reply)) in &found.established {
            if let Some(known) = self.established.known(key, flow, reply)? {
                self.established.note(key, flow, reply, known)?;
            } else if self.half.known(key, flow, reply)?.is_some() {
                proved += usize::from(self.established.bring(key, flow, reply)?);
            }
        }
        for (key, (flow, reply)) in &found.half {
            for tables in [&self.established, &self.half] {
                if let Some(known) = tables.known(key, flow, reply)? {
                    tables.note(key, flow, reply, known)?;
                    break;
                }
            }
        }
        Ok(proved)
    }
}
