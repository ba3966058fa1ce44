//! The object in the kernel: programs run once on a frame, maps read and written by the ABI's types.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp, XdpMode};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use vmlb_agent::bpf::{PinnedMap, Plain};
use vmlb_agent::loader::{Datapath, Sizes, Trace, programs};
use vmlb_agent::pins::PinRoot;
use vmlb_common::abi::{
    Affinity, Backend, ClientKey, Device, EligibleKey, Flow, FlowKey, Fragment, FragmentKey, Frontend,
    FrontendKey, Hop, Inherited, Pod, RangeKey, Reply, ReplyKey, Service, Settings, TagKey, Target,
    TargetKey, Traffic, Turn, WireKey, names,
};
use vmlb_common::family::{Address, Address4, Address6, V4, V6};
use vmlb_common::host::{Capacities, Hook, HostFamily, Pairs};
use vmlb_common::verdict::Reason;
use vmlb_tests::packets::bench::Flows;
use vmlb_tests::packets::records::{Addressed, Records};
use vmlb_tests::packets::world::PRESENT;

/// The tables on both sides.
pub(crate) const CAPACITIES: Capacities = Capacities {
    flows: 64,
    half_flows: 4096,
    inherited: 4096,
    backends: 64,
    services: 256,
    slots: 1024,
    affinity: 64,
    fragments: 8192,
};

/// A family whose maps are open.
pub(crate) trait KernelFamily: HostFamily<Address: Plain> {
    fn maps(kernel: &Kernel) -> &Side<Self::Address>;
    fn maps_mut(kernel: &mut Kernel) -> &mut Side<Self::Address>;
}

impl KernelFamily for V4 {
    fn maps(kernel: &Kernel) -> &Side<Address4> {
        &kernel.v4
    }

    fn maps_mut(kernel: &mut Kernel) -> &mut Side<Address4> {
        &mut kernel.v4
    }
}

impl KernelFamily for V6 {
    fn maps(kernel: &Kernel) -> &Side<Address6> {
        &kernel.v6
    }

    fn maps_mut(kernel: &mut Kernel) -> &mut Side<Address6> {
        &mut kernel.v6
    }
}

/// The maps of one family.
pub(crate) struct Side<A> {
    frontends: PinnedMap<FrontendKey<A>, Frontend>,
    backends: PinnedMap<u32, Backend<A>>,
    pods: PinnedMap<A, Pod>,
    nodes: PinnedMap<A, u32>,
    established: Stage<A>,
    half: Stage<A>,
    inherited: PinnedMap<WireKey<A>, Inherited>,
    fragments: PinnedMap<FragmentKey<A>, Fragment<A>>,
    ranges: PinnedMap<RangeKey<A>, u32>,
    new_affinity: PinnedMap<ClientKey<A>, Affinity>,
    affinity: PinnedMap<ClientKey<A>, Affinity>,
    hops: Hops,
    tunnel_hops: Hops,
}

/// Cached next hops by backend, one a CPU.
struct Hops(PerCpuArray<MapData, [u8; size_of::<Hop>()]>);

impl Hops {
    fn open(root: &PinRoot, name: &str) -> Result<Self> {
        Ok(Self(Map::PerCpuArray(MapData::from_pin(root.map(name))?).try_into()?))
    }

    /// Those of `cpu`.
    fn read(&self, cpu: usize) -> Result<BTreeMap<u32, Hop>> {
        let of = |id| -> Result<(u32, Hop)> {
            let values = self.0.get(&id, 0)?;
            Ok((id, hop(values.get(cpu).context("a value of this CPU")?)))
        };
        PRESENT.into_iter().map(of).collect()
    }

    /// The same on all CPUs.
    fn write(&mut self, to: &BTreeMap<u32, Hop>) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(path))?;
        for id in PRESENT {
            let hop = octets(&to.get(&id).copied().unwrap_or_default());
            self.0.set(id, PerCpuValues::try_from(vec![hop; cpus])?, 0)?;
        }
        Ok(())
    }
}

struct Stage<A> {
    flows: PinnedMap<FlowKey<A>, Flow<A>>,
    replies: PinnedMap<ReplyKey<A>, Reply<A>>,
}

impl<A: Address + Plain + Ord> Stage<A> {
    fn open(root: &PinRoot, flows: &'static str, replies: &'static str) -> Result<Self> {
        Ok(Self { flows: PinnedMap::open(root, flows)?, replies: PinnedMap::open(root, replies)? })
    }

    fn read(&self) -> Result<Pairs<A>> {
        Ok(Pairs {
            flows: self.flows.all()?.into_iter().collect(),
            replies: self.replies.all()?.into_iter().collect(),
        })
    }

    fn write(&self, to: &Pairs<A>) -> Result<()> {
        replace(&self.flows, &to.flows)?;
        replace(&self.replies, &to.replies)
    }
}

/// Makes a hash map hold `to` and nothing else.
fn replace<K: Plain + Ord + std::fmt::Debug, V: Plain>(
    map: &PinnedMap<K, V>,
    to: &BTreeMap<K, V>,
) -> Result<()> {
    for (key, _) in map.all()? {
        map.remove(&key)?;
    }
    to.iter().try_for_each(|(key, value)| map.put(key, value))
}

impl<A: Address + Plain + Ord> Side<A>
where
    FrontendKey<A>: Plain,
{
    fn open(root: &PinRoot, family: usize) -> Result<Self> {
        Ok(Self {
            frontends: PinnedMap::open(root, names::FRONTENDS[family])?,
            backends: PinnedMap::open(root, names::BACKENDS[family])?,
            pods: PinnedMap::open(root, names::PODS[family])?,
            nodes: PinnedMap::open(root, names::NODES[family])?,
            established: Stage::open(root, names::FLOWS[family], names::REPLIES[family])?,
            half: Stage::open(root, names::HALF_FLOWS[family], names::HALF_REPLIES[family])?,
            inherited: PinnedMap::open(root, names::INHERITED[family])?,
            fragments: PinnedMap::open(root, names::FRAGMENTS[family])?,
            ranges: PinnedMap::open(root, names::RANGES[family])?,
            new_affinity: PinnedMap::open(root, names::NEW_AFFINITY[family])?,
            affinity: PinnedMap::open(root, names::AFFINITY[family])?,
            hops: Hops::open(root, names::HOPS[family])?,
            tunnel_hops: Hops::open(root, names::TUNNEL_HOPS[family])?,
        })
    }

    fn install(&self, records: &Addressed<A>) -> Result<()> {
        replace(&self.frontends, &records.frontends)?;
        replace(&self.pods, &records.pods)?;
        let range = |(block, bits): &(ClientKey<A>, u32)| RangeKey::new(block.service, block.client, *bits);
        replace(&self.ranges, &records.ranges.iter().map(|block| (range(block), 1)).collect())?;
        replace(&self.nodes, &records.nodes.iter().map(|address| (*address, 1)).collect())?;
        let absent = Backend::default();
        for place in 0..32 {
            self.backends.put(&place, records.backends.get(&place).unwrap_or(&absent))?;
        }
        Ok(())
    }
}

impl<A: Address + Plain + Ord> Side<A> {
    /// What flows have left; per-CPU values are those of `cpu`.
    pub(crate) fn read(&self, cpu: usize) -> Result<Flows<A>> {
        Ok(Flows {
            half: self.half.read()?,
            established: self.established.read()?,
            new_affinity: self.new_affinity.all()?.into_iter().collect(),
            affinity: self.affinity.all()?.into_iter().collect(),
            inherited: self.inherited.all()?.into_iter().collect(),
            fragments: self.fragments.all()?.into_iter().collect(),
            hops: self.hops.read(cpu)?,
            tunnel_hops: self.tunnel_hops.read(cpu)?,
        })
    }

    pub(crate) fn write(&mut self, to: &Flows<A>) -> Result<()> {
        self.half.write(&to.half)?;
        self.established.write(&to.established)?;
        replace(&self.new_affinity, &to.new_affinity)?;
        replace(&self.affinity, &to.affinity)?;
        replace(&self.inherited, &to.inherited)?;
        replace(&self.fragments, &to.fragments)?;
        self.hops.write(&to.hops)?;
        self.tunnel_hops.write(&to.tunnel_hops)
    }
}

fn hop(octets: &[u8; size_of::<Hop>()]) -> Hop {
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|place| octets[at + place]));
    let mac = |at: usize| std::array::from_fn(|place| octets[at + place]);
    Hop {
        stamp: word(0),
        filled: word(4),
        ifindex: word(8),
        source: mac(12),
        destination: mac(18),
        mtu: word(24),
    }
}

fn octets(hop: &Hop) -> [u8; size_of::<Hop>()] {
    let mut octets = [0; size_of::<Hop>()];
    octets[..4].copy_from_slice(&hop.stamp.to_ne_bytes());
    octets[4..8].copy_from_slice(&hop.filled.to_ne_bytes());
    octets[8..12].copy_from_slice(&hop.ifindex.to_ne_bytes());
    octets[12..18].copy_from_slice(&hop.source);
    octets[18..24].copy_from_slice(&hop.destination);
    octets[24..].copy_from_slice(&hop.mtu.to_ne_bytes());
    octets
}

/// The object, loaded, with its maps open.
pub(crate) struct Kernel {
    datapath: Datapath,
    settings: PinnedMap<u32, Settings>,
    gate: PinnedMap<u32, u64>,
    devices: PinnedMap<u32, Device>,
    services: PinnedMap<u32, Service>,
    slots: PinnedMap<u32, Target>,
    targets: PinnedMap<TargetKey, u32>,
    eligible: PinnedMap<EligibleKey, u32>,
    turns: PinnedMap<u32, Turn>,
    tags: PinnedMap<TagKey, Target>,
    reasons: PinnedMap<u32, u64>,
    traffic: PinnedMap<u32, Traffic>,
    v4: Side<Address4>,
    v6: Side<Address6>,
    cpu: usize,
    /// Jiffies a second, once measured.
    pub(crate) rate: Option<u32>,
    out: Vec<u8>,
}

/// What the kernel did with a frame.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) action: u32,
    pub(crate) octets: Vec<u8>,
}

impl Kernel {
    /// Loads the object; the calling thread is in the node's namespace and stays on one CPU from now on.
    pub(crate) fn load(object: &[u8], pin_root: &Path) -> Result<Self> {
        let cpu = stay_on_one_cpu()?;
        let root = PinRoot::new(pin_root);
        root.create()?;
        let sizes = Sizes {
            flows: CAPACITIES.flows,
            half_flows: CAPACITIES.half_flows,
            backends: CAPACITIES.backends,
            services: CAPACITIES.services,
            slots: CAPACITIES.slots,
            frontends: 128,
            affinity: CAPACITIES.affinity,
        };
        let mut datapath = Datapath::load(object, &root, &sizes, Trace::Off)?;
        datapath.programs_mut().load(&programs::ALL)?;
        let program = datapath.programs_mut().xdp(programs::XDP)?;
        for uplink in ["eth0", "eth1", "eth2"] {
            // A program run wants a device whose receive queue knows XDP; that is one with a program.
            program.attach(uplink, XdpMode::Driver).with_context(|| format!("attaching to {uplink}"))?;
        }
        Ok(Self {
            datapath,
            settings: PinnedMap::open(&root, names::SETTINGS)?,
            gate: PinnedMap::open(&root, names::GATE)?,
            devices: PinnedMap::open(&root, names::DEVICES)?,
            services: PinnedMap::open(&root, names::SERVICES)?,
            slots: PinnedMap::open(&root, names::SLOTS)?,
            targets: PinnedMap::open(&root, names::TARGETS)?,
            eligible: PinnedMap::open(&root, names::ELIGIBLE)?,
            turns: PinnedMap::open(&root, names::TURNS)?,
            tags: PinnedMap::open(&root, names::TAGS)?,
            reasons: PinnedMap::open(&root, names::REASONS)?,
            traffic: PinnedMap::open(&root, names::TRAFFIC)?,
            v4: Side::open(&root, 0)?,
            v6: Side::open(&root, 1)?,
            cpu,
            rate: None,
            out: vec![0; 4096],
        })
    }

    /// The CPU whose values count.
    pub(crate) fn cpu(&self) -> usize {
        self.cpu
    }

    /// Writes what an agent would have written.
    pub(crate) fn install(&self, records: &Records) -> Result<()> {
        self.settings.put(&0, &records.settings)?;
        for (entry, bits) in &records.gate {
            self.gate.put(entry, bits)?;
        }
        replace(&self.devices, &records.devices)?;
        for (id, service) in &records.services {
            self.services.put(id, service)?;
        }
        for (index, target) in &records.slots {
            self.slots.put(index, target)?;
        }
        let targets = records.targets.iter().map(|target| (*target, 1)).collect();
        replace(&self.targets, &targets)?;
        replace(&self.eligible, &records.eligible.iter().map(|target| (*target, 1)).collect())?;
        self.set_turns(&records.turns)?;
        replace(&self.tags, &records.tags)?;
        self.v4.install(&records.v4)?;
        self.v6.install(&records.v6)
    }

    /// Runs the program of `hook` once on a frame that came in by `device`.
    pub(crate) fn run(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Result<Done> {
        let name = match hook {
            Hook::Xdp => programs::XDP,
            Hook::Carrier => programs::XDP_CARRIER,
            Hook::Ingress => programs::INGRESS_FULL,
            Hook::Egress => programs::EGRESS,
            Hook::Pod => programs::POD,
            Hook::Overlay => programs::OVERLAY,
        };
        let mut context = [0; 64];
        let is_frame = matches!(hook, Hook::Xdp | Hook::Carrier);
        if is_frame {
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, …
            context[4..8].copy_from_slice(&u32::try_from(frame.len())?.to_ne_bytes());
            context[12..16].copy_from_slice(&device.to_ne_bytes());
        } else {
            // struct __sk_buff: ifindex.
            context[40..44].copy_from_slice(&device.to_ne_bytes());
        }
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut self.out);
        options.ctx_in = Some(if is_frame { &context[..24] } else { &context });
        let result = match self.datapath.programs_mut().get(name)? {
            Program::Xdp(program) => Xdp::test_run(program, options),
            Program::SchedClassifier(program) => SchedClassifier::test_run(program, options),
            other => bail!("{:?}", other.prog_type()),
        };
        let result = result.with_context(|| format!("running {name} on {} octets", frame.len()))?;
        let length = usize::try_from(result.data_size_out)?;
        Ok(Done { action: result.return_value, octets: self.out[..length].to_vec() })
    }

    /// One ageing pass.
    pub(crate) fn sweep(&self) -> Result<()> {
        self.datapath.sweep()
    }

    /// Packets counted under each reason so far, by number.
    pub(crate) fn reasons(&self) -> Result<Vec<u64>> {
        let mut counts = vec![0; Reason::ALL.len()];
        for (number, values) in self.reasons.all_per_cpu()? {
            if let Some(count) = counts.get_mut(number as usize) {
                *count = values.iter().sum();
            }
        }
        Ok(counts)
    }

    /// Writes where the world's backends are.
    pub(crate) fn set_turns(&self, to: &BTreeMap<u32, Turn>) -> Result<()> {
        (0..16).try_for_each(|id| self.turns.put(&id, &to.get(&id).copied().unwrap_or_default()))
    }

    /// Where the world's backends are.
    pub(crate) fn turns(&self) -> Result<Vec<u32>> {
        (0..16).map(|id| Ok(self.turns.get(&id)?.unwrap_or_default().word)).collect()
    }

    /// Traffic of the world's backends so far.
    pub(crate) fn traffic(&self) -> Result<Vec<Traffic>> {
        let mut sums = vec![Traffic::default(); 16];
        for (id, values) in self.traffic.all_per_cpu()? {
            let Some(sum) = sums.get_mut(id as usize) else { continue };
            for value in values {
                sum.requests += value.requests;
                sum.request_octets += value.request_octets;
                sum.replies += value.replies;
                sum.reply_octets += value.reply_octets;
                sum.opened += value.opened;
            }
        }
        Ok(sums)
    }
}

/// Keeps this thread where it is: per-CPU maps hold what one CPU did.
fn stay_on_one_cpu() -> Result<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = cpu.context("a thread runs somewhere")?;
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(this, &one)?;
    ensure!(sched_getaffinity(this)?.is_set(cpu)?);
    Ok(cpu)
}
