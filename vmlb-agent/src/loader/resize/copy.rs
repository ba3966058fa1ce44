//! What one map holds, brought into another of its kind that has room for more or less.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

use anyhow::{Context, bail, ensure};
use vmlb_common::abi::{
    Affinity, Backend, BackendName, Carried, CarriedKey, Carrier, ClientKey, Device, EligibleKey, Flow,
    FlowKey, Frontend, FrontendKey, Inherited, NeighbourKey, Pod, RangeKey, Reply, ReplyKey, Service,
    ServiceName, Settings, TagKey, Target, TargetKey, Traffic, Turn, WireKey, names,
};
use vmlb_common::family::{Address, Address4, Address6};

use crate::bpf::{PinnedMap, Plain};
use crate::pins::PinRoot;
use crate::tables::selection_of;

/// Makes `to`'s map of that name, which no packet meets yet, hold exactly what `from`'s holds.
///
/// # Errors
/// When something in use has no room, or a map cannot be read or written.
pub fn mirror(name: &'static str, from: &PinRoot, to: &PinRoot) -> anyhow::Result<()> {
    let way = Way { name, from, to };
    let family = usize::from(name.ends_with("v6"));
    match name {
        names::SETTINGS => way.array::<Settings>(),
        names::GATE => way.array::<u64>(),
        names::SERVICES => way.array::<Service>(),
        names::SLOTS => way.slots(),
        names::DEVICES => way.hash::<u32, Device>(),
        names::CARRIED => way.hash::<CarriedKey, Carried>(),
        names::CARRIERS => way.hash::<u32, Carrier>(),
        names::TARGETS => way.hash::<TargetKey, u32>(),
        names::ELIGIBLE => way.hash::<EligibleKey, u32>(),
        names::SERVICE_NAMES => way.hash::<u32, ServiceName>(),
        names::BACKEND_NAMES => way.hash::<u32, BackendName>(),
        names::NEIGHBOURS => way.hash::<NeighbourKey, u32>(),
        names::TURNS => way.array::<Turn>(),
        names::TAGS => way.hash::<TagKey, Target>(),
        // What is in it has been read, or is for nobody.
        names::ARRIVALS => Ok(()),
        names::TRAFFIC => way.per_cpu::<Traffic>(),
        names::REASONS | names::SNAT_TRIES => way.per_cpu::<u64>(),
        // It is full again after a second.
        names::ANSWERS => Ok(()),
        // They come and go by the moment: the last one counts.
        _ if names::HALF_FLOWS.contains(&name) || names::HALF_REPLIES.contains(&name) => Ok(()),
        _ if family == 0 => way.of_family::<Address4>(),
        _ => way.of_family::<Address6>(),
    }
    .with_context(|| format!("map {name} cannot be taken over"))
}

/// From where to where.
struct Way<'a> {
    name: &'static str,
    from: &'a PinRoot,
    to: &'a PinRoot,
}

impl Way<'_> {
    fn of_family<A: Address + Plain + Debug + Hash + Eq>(&self) -> anyhow::Result<()>
    where
        FrontendKey<A>: Plain,
        Backend<A>: Empty,
    {
        let is = |twins: [&str; 2]| twins.contains(&self.name);
        match () {
            () if is(names::FRONTENDS) => self.hash::<FrontendKey<A>, Frontend>(),
            () if is(names::BACKENDS) => self.array::<Backend<A>>(),
            () if is(names::PODS) => self.hash::<A, Pod>(),
            () if is(names::NODES) => self.hash::<A, u32>(),
            () if is(names::RANGES) => self.hash::<RangeKey<A>, u32>(),
            () if is(names::AFFINITY) || is(names::NEW_AFFINITY) => self.hash::<ClientKey<A>, Affinity>(),
            () if is(names::INHERITED) => self.hash::<WireKey<A>, Inherited>(),
            () if is(names::FLOWS) => self.hash::<FlowKey<A>, Flow<A>>(),
            () if is(names::REPLIES) => self.hash::<ReplyKey<A>, Reply<A>>(),
            // A cache, filled by the first packet.
            () if is(names::HOPS) || is(names::TUNNEL_HOPS) => Ok(()),
            () => bail!("this vmlb does not know how"),
        }
    }

    fn open<K: Plain + Debug, V: Plain>(&self) -> anyhow::Result<[PinnedMap<K, V>; 2]> {
        Ok([PinnedMap::open(self.from, self.name)?, PinnedMap::open(self.to, self.name)?])
    }

    fn hash<K: Plain + Debug + Hash + Eq, V: Plain + PartialEq>(&self) -> anyhow::Result<()> {
        let [from, to] = self.open::<K, V>()?;
        let wanted: HashMap<K, V> = from.all()?.into_iter().collect();
        let evicts = names::NEW_AFFINITY.contains(&self.name);
        ensure!(
            evicts || wanted.len() <= to.entries() as usize,
            "{} entries are in use, there is room for {}",
            wanted.len(),
            to.entries()
        );
        let found: HashMap<K, V> = to.all()?.into_iter().collect();
        for key in found.keys().filter(|key| !wanted.contains_key(key)) {
            to.remove(key)?;
        }
        wanted
            .iter()
            .filter(|(key, value)| found.get(key) != Some(value))
            .try_for_each(|(key, value)| to.put(key, value))
    }

    fn array<V: Plain + PartialEq + Empty>(&self) -> anyhow::Result<()> {
        let [from, to] = self.open::<u32, V>()?;
        let used: Vec<(u32, V)> = from.all()?.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        for (index, value) in used {
            self.ensure_room(index, to.entries())?;
            to.put(&index, &value)?;
        }
        Ok(())
    }

    fn per_cpu<V: Plain + PartialEq + Empty>(&self) -> anyhow::Result<()> {
        let [from, to] = self.open::<u32, V>()?;
        for (index, values) in from.all_per_cpu()? {
            // Counters of an id that has no room are of one that is not in use, else its backend had none.
            if index < to.entries() && values.iter().any(|value| !value.is_empty()) {
                to.put_per_cpu(&index, &values)?;
            }
        }
        Ok(())
    }

    /// Selection tables keep their places: the services point there.
    fn slots(&self) -> anyhow::Result<()> {
        let [from, to] = self.open::<u32, Target>()?;
        let services: PinnedMap<u32, Service> = PinnedMap::open(self.from, names::SERVICES)?;
        for (_, service) in services.all()? {
            let Some(selection) = selection_of(&service) else { continue };
            let end = selection.offset.saturating_add(selection.size);
            self.ensure_room(end.saturating_sub(1), to.entries())?;
            to.put_run(selection.offset, &from.run(selection.offset, selection.size)?)?;
        }
        Ok(())
    }

    fn ensure_room(&self, index: u32, entries: u32) -> anyhow::Result<()> {
        ensure!(index < entries, "entry {index} is in use, there is room for {entries}");
        Ok(())
    }
}

/// Values that an array holds where nothing was written.
trait Empty {
    fn is_empty(&self) -> bool;
}

impl Empty for u64 {
    fn is_empty(&self) -> bool {
        *self == 0
    }
}

impl Empty for Settings {
    fn is_empty(&self) -> bool {
        self.version == 0
    }
}

macro_rules! empty_by_default {
    ($($type:ty),*) => {$(
        impl Empty for $type {
            fn is_empty(&self) -> bool {
                *self == Self::default()
            }
        }
    )*};
}

empty_by_default!(Turn, Service, Traffic, Backend<Address4>, Backend<Address6>);
