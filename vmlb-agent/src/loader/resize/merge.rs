//! Flows that were opened or went on in retired tables, brought into the tables that packets meet already.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

use vmlb_common::abi::{Flow, FlowKey, Reply, ReplyKey, names};
use vmlb_common::family::{Address, Address4, Address6};

use crate::bpf::{PinnedMap, Plain};
use crate::pins::PinRoot;

/// Brings every flow of `from` that `to` does not know into `to`, and what `from` has seen of the others; how many were
/// brought. Tables that `from` does not have are those of `to` already.
///
/// # Errors
/// When a map cannot be read, or has another layout.
pub fn merge(from: &PinRoot, to: &PinRoot) -> anyhow::Result<usize> {
    Ok(family::<Address4>(0, from, to)? + family::<Address6>(1, from, to)?)
}

/// Established flows first: one that was promoted since the last look must not come back as half open.
fn family<A: Address + Plain + Debug + Hash + Eq>(
    family: usize,
    from: &PinRoot,
    to: &PinRoot,
) -> anyhow::Result<usize> {
    let established = Tables::<A>::open(to, names::FLOWS[family], names::REPLIES[family])?;
    let half = Tables::<A>::open(to, names::HALF_FLOWS[family], names::HALF_REPLIES[family])?;
    let mut brought = 0;
    for (names, into, other) in [
        ([names::FLOWS[family], names::REPLIES[family]], &established, None),
        ([names::HALF_FLOWS[family], names::HALF_REPLIES[family]], &half, Some(&established)),
    ] {
        let [flows, replies] = names;
        if !from.map(flows).exists() && !from.map(replies).exists() {
            continue;
        }
        // One of the two may not have been retired: then it is still the one in use.
        let home = |name: &str| if from.map(name).exists() { from } else { to };
        let flows: PinnedMap<FlowKey<A>, Flow<A>> = PinnedMap::open(home(flows), flows)?;
        let replies: PinnedMap<ReplyKey<A>, Reply<A>> = PinnedMap::open(home(replies), replies)?;
        brought += into.take(&flows, &replies, other)?;
    }
    Ok(brought)
}

struct Tables<A> {
    flows: PinnedMap<FlowKey<A>, Flow<A>>,
    replies: PinnedMap<ReplyKey<A>, Reply<A>>,
}

impl<A: Address + Plain + Debug + Hash + Eq> Tables<A> {
    fn open(root: &PinRoot, flows: &'static str, replies: &'static str) -> anyhow::Result<Self> {
        Ok(Self { flows: PinnedMap::open(root, flows)?, replies: PinnedMap::open(root, replies)? })
    }

    fn take(
        &self,
        flows: &PinnedMap<FlowKey<A>, Flow<A>>,
        replies: &PinnedMap<ReplyKey<A>, Reply<A>>,
        established: Option<&Self>,
    ) -> anyhow::Result<usize> {
        let replies: HashMap<ReplyKey<A>, Reply<A>> = replies.all()?.into_iter().collect();
        let mut brought = 0;
        for (key, flow) in flows.all()? {
            let reply_key = flow.reply_key(key.protocol);
            // Half of a pair serves nobody.
            let Some(reply) = replies.get(&reply_key).filter(|reply| reply.flow == key) else { continue };
            if established.is_some_and(|tables| matches!(tables.flows.get(&key), Ok(Some(_)))) {
                continue;
            }
            brought += usize::from(self.bring(&key, &flow, &reply_key, reply)?);
        }
        Ok(brought)
    }

    /// Whether the pair is new here.
    fn bring(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        reply_key: &ReplyKey<A>,
        reply: &Reply<A>,
    ) -> anyhow::Result<bool> {
        let Some(known) = self.flows.get(key)? else {
            // As the datapath does: the side that claims the tuple first.
            if !self.replies.put_new(reply_key, reply)? {
                return Ok(false);
            }
            return self.flows.put_new(key, flow);
        };
        if flow.flags & !known.flags != 0 {
            self.flows.put(key, &Flow { flags: known.flags | flow.flags, ..known })?;
        }
        if let Some(known) = self.replies.get(reply_key)?.filter(|known| known.flow == *key)
            && reply.flags & !known.flags != 0
        {
            let sequence = if known.sequence == 0 { reply.sequence } else { known.sequence };
            self.replies.put(reply_key, &Reply { flags: known.flags | reply.flags, sequence, ..known })?;
        }
        Ok(false)
    }
}
