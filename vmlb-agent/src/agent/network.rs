//! The node's network as the agent drives it: programs on uplinks and on pods' devices, next hops kept fresh, and the facts
//! that the control plane works from.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use futures_util::FutureExt;
use vmlb_common::abi::{Device, DeviceFlags};

use super::carriage::Carriage;
use super::sides::Sides;
use crate::facts::NodeFacts;
use crate::handover::way::Way;
use crate::interface::features::Features;
use crate::interface::flag::DeviceFlag;
use crate::interface::footing::{Footing, Seat, hidden_tags};
use crate::interface::overlays::{is_ovn, leads_to_pods};
use crate::interface::straight::{LocalDelivery, Straight};
use crate::interface::uplinks::{Choice, Crossing, Snat, WithoutMetadata, choose, facts, without_metadata};
use crate::interface::watch::{Netlink, Route};
use crate::interface::{Changed, Interfaces, Link};
use crate::loader::attach::clsact;
use crate::loader::attach::{Attacher, Carriers, Mode, Place, TcMethod, Uplink};
use crate::loader::programs::Programs;
use crate::migration::Endpoint;
use crate::neighbours::{Neighbours, NextHop};
use crate::pins::{Hook, PinRoot};
use crate::state::{DeviceState, Role};
use crate::tables::pinned::{self, Whereabouts};

#[derive(Clone, Debug)]
struct Attached {
    name: String,
    wanted: Mode,
    footing: Option<Footing>,
    uplink: Uplink,
}

impl Attached {
    /// What its frames are known by on the device that carries it, while that has the program.
    fn footing(&self) -> Option<&Footing> {
        self.footing.as_ref().filter(|_| self.uplink.mode == Mode::Xdp)
    }

    /// Names of the devices that have its XDP program.
    fn xdp_devices(&self) -> impl Iterator<Item = &str> {
        let has_own = self.uplink.mode == Mode::Xdp && self.uplink.carriers.is_empty();
        let own = has_own.then_some(self.name.as_str());
        own.into_iter().chain(self.carriers())
    }

    /// Names of the devices that carry it.
    fn carriers(&self) -> impl Iterator<Item = &str> {
        self.uplink.carriers.iter().map(|(name, _)| name.as_str())
    }

    /// Which devices of its footing have the program.
    fn seat(&self) -> Seat {
        let is_on =
            |footing: &Footing| self.uplink.carriers.iter().any(|(_, ifindex)| *ifindex == footing.on);
        if self.footing().is_none_or(is_on) { Seat::On } else { Seat::Members }
    }

    /// The device that carries it and has its XDP program, or its members, with tags, for people; `None`: itself.
    fn on(&self, ifindex: u32) -> Option<String> {
        let footing =
            self.footing().filter(|footing| footing.on != ifindex || self.seat() == Seat::Members)?;
        Some(footing.describe(&self.carriers().collect::<Vec<_>>().join(" and ")))
    }
}

/// See the module.
pub struct Network {
    netlink: Netlink,
    interfaces: Interfaces,
    features: Features,
    attacher: Attacher,
    neighbours: Neighbours,
    flags: Vec<DeviceFlag>,
    uplinks: BTreeMap<u32, Attached>,
    carriage: Carriage,
    /// Names of devices whose XDP program may be of no use any more.
    idle: BTreeSet<String>,
    without_metadata: WithoutMetadata,
    sides: Sides,
    straight: Straight,
    /// To backends. Those of one node share a route, and most nodes are the others.
    routes: HashMap<IpAddr, Option<Arc<Route>>>,
    default_routes: Option<Vec<Route>>,
    backends: Arc<Places>,
    started: bool,
    missing: BTreeSet<String>,
    told_of_none: bool,
}

/// Backends as the network side knows them: addresses, and on which side of the uplinks they are.
pub type Places = BTreeSet<(IpAddr, Whereabouts)>;

impl Network {
    /// Connects to the kernel and looks around; attaches nothing yet.
    ///
    /// # Errors
    /// When netlink does not work.
    pub async fn start(
        root: &PinRoot,
        method: TcMethod,
        flags: Vec<DeviceFlag>,
        local_delivery: LocalDelivery,
    ) -> anyhow::Result<Self> {
        let netlink = Netlink::connect()?;
        let interfaces = netlink.dump().await?;
        let neighbours = Neighbours::adopt(netlink.handle().clone(), pinned::neighbours(root)?)?;
        Ok(Self {
            netlink,
            interfaces,
            features: Features::open(),
            attacher: Attacher::new(root, method),
            neighbours,
            flags,
            uplinks: BTreeMap::new(),
            carriage: Carriage::open(root)?,
            idle: BTreeSet::new(),
            without_metadata: WithoutMetadata::default(),
            sides: Sides::default(),
            straight: Straight::new(local_delivery),
            routes: HashMap::new(),
            default_routes: None,
            backends: Arc::default(),
            started: false,
            missing: BTreeSet::new(),
            told_of_none: false,
        })
    }

    /// Waits until something changes that the kernel tells; `None`: it told too much at once.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub async fn changed(&mut self) -> anyhow::Result<Option<Changed>> {
        loop {
            match self.netlink.changed(&mut self.interfaces).await? {
                Some(Changed::NOTHING) => {}
                changed => return Ok(changed),
            }
        }
    }

    /// What has changed in all, after a burst of messages whose beginning was `first`.
    ///
    /// # Errors
    /// As [`Network::changed`].
    pub async fn settle(&mut self, first: Option<Changed>) -> anyhow::Result<Changed> {
        let mut changed = first;
        while let Some(more) = self.netlink.changed(&mut self.interfaces).now_or_never() {
            changed = changed.zip(more?).map(|(before, more)| before.and(more));
        }
        let changed = match changed {
            Some(changed) => changed,
            None => self.resume().await.and(Changed::LINKS),
        };
        self.forget_routes(changed);
        Ok(changed)
    }

    /// Looks at everything again; says what is not as it was.
    pub async fn resume(&mut self) -> Changed {
        match self.netlink.dump().await {
            Ok(now) if now == self.interfaces => Changed::NOTHING,
            Ok(now) => {
                let links_differ = !now.links().eq(self.interfaces.links());
                self.interfaces = now;
                let changed = if links_differ { Changed::LINKS } else { Changed::FEATURES };
                self.forget_routes(changed);
                changed
            }
            Err(error) => {
                tracing::error!("the network is not seen: {error:#}");
                Changed::NOTHING
            }
        }
    }

    fn forget_routes(&mut self, changed: Changed) {
        if changed.has(Changed::LINKS.and(Changed::ADDRESSES).and(Changed::ROUTES)) {
            self.routes.clear();
            self.default_routes = None;
        }
    }

    /// Takes in which devices give XDP no metadata. Whether there is one more: it gets TC with the next
    /// [`Network::refresh`], and keeps it until it goes, over restarts too, since the map says so.
    pub fn lacks_metadata(&mut self, devices: &BTreeMap<u32, Device>) -> bool {
        let interfaces = &self.interfaces;
        self.without_metadata.retain(|ifindex| interfaces.link(*ifindex).is_some());
        let before = self.without_metadata.len();
        let found = without_metadata(devices).into_iter();
        self.without_metadata.extend(found.filter(|ifindex| interfaces.link(*ifindex).is_some()));
        self.without_metadata.len() > before
    }

    /// Whether the backends are others than those of the last [`Network::refresh`].
    #[must_use]
    pub fn wants(&self, backends: &Places) -> bool {
        *backends != *self.backends
    }

    /// Puts programs on every device that needs them, looks after next hops, and says what there is. Devices that need
    /// theirs no more are out of the facts at once and lose their programs by [`Network::release_devices`].
    ///
    /// # Errors
    /// When, the first time, a program cannot be attached to an uplink.
    pub async fn refresh(
        &mut self,
        programs: &mut Programs,
        backends: Arc<Places>,
        internal: &[IpAddr],
        snat: &mut Snat,
    ) -> anyhow::Result<NodeFacts> {
        self.backends = backends;
        self.look_up_routes().await;
        self.attach_uplinks(programs, internal)?;
        let mut crossings = BTreeMap::new();
        for (ifindex, attached) in &self.uplinks {
            let crossing: &mut Crossing = crossings.entry(*ifindex).or_default();
            crossing.flags |= DeviceFlags::UPLINK;
            if self.can_carry(attached) {
                crossing.flags |= DeviceFlags::CARRIED;
            }
        }
        let hops = self.cross(&mut crossings);
        self.sides.attach(&mut self.attacher, programs, &self.interfaces, &mut crossings);
        self.straight.judge(&self.netlink, &self.interfaces, &mut crossings).await;
        for (ifindex, crossing) in &mut crossings {
            let name = self.interfaces.link(*ifindex).map(|link| link.name.as_str()).unwrap_or_default();
            let is_overlay = crossing.flags & DeviceFlags::OVERLAY != 0;
            let refuses = self.uplinks.get(ifindex).is_some_and(|attached| attached.seat() == Seat::Members);
            if !is_overlay && !refuses && self.features.can_transmit(*ifindex, name) {
                crossing.flags |= DeviceFlags::XDP_TRANSMIT;
            }
            if self.without_metadata.contains(ifindex) {
                crossing.flags |= DeviceFlags::NO_METADATA;
            }
        }
        self.neighbours.keep(&hops, &self.interfaces).await;
        let mut facts = facts(&self.interfaces, &crossings, snat, internal);
        facts.unreached = self.unreached();
        facts.is_ovn = self.interfaces.links().any(is_ovn);
        snat.note(&facts);
        Ok(facts)
    }

    /// Whether XDP can send out of all the devices that the frames of an uplink leave by. Out of a bond that has no program
    /// itself only the stack sends: which member it is, and under which address, XDP does not know.
    fn can_carry(&self, attached: &Attached) -> bool {
        let Some(footing) = attached.footing().filter(|_| attached.seat() == Seat::On) else { return false };
        let mut wires = footing.wires.iter().filter_map(|wire| self.interfaces.link(*wire));
        wires.all(|wire| self.features.can_transmit(wire.ifindex, &wire.name))
    }

    /// Looks up what the next [`Network::refresh`] for these backends would have to wait for.
    pub async fn look_up(&mut self, backends: Arc<Places>) {
        self.backends = backends;
        self.look_up_routes().await;
    }

    async fn look_up_routes(&mut self) {
        if self.default_routes.is_none() {
            match self.netlink.default_routes().await {
                Ok(routes) => self.default_routes = Some(routes),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        self.routes.retain(|address, _| {
            self.backends
                .range((*address, Whereabouts::Here)..)
                .next()
                .is_some_and(|(found, _)| found == address)
        });
        let mut known: HashSet<Arc<Route>> = self.routes.values().flatten().cloned().collect();
        for (address, _) in self.backends.iter() {
            if self.routes.contains_key(address) {
                continue;
            }
            match self.netlink.route(*address).await {
                Ok(route) => {
                    let route = route.map(|route| known.get(&route).cloned().unwrap_or_else(|| route.into()));
                    known.extend(route.clone());
                    self.routes.insert(*address, route);
                }
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }

    fn attach_uplinks(&mut self, programs: &mut Programs, internal: &[IpAddr]) -> anyhow::Result<()> {
        let default_routes = self.default_routes.iter().flatten().map(|route| route.ifindex).collect();
        let interfaces = &self.interfaces;
        // A device is an uplink until it goes: a default route that is away for a moment is no reason to stop.
        let is_there =
            |ifindex: &u32, name: &str| interfaces.link(*ifindex).is_some_and(|link| link.name == name);
        let attacher = &self.attacher;
        let before = self.uplinks.len();
        self.uplinks.retain(|ifindex, attached| {
            let place = Place { name: &attached.name, ifindex: *ifindex };
            let stays = is_there(ifindex, &attached.name) && attacher.is_intact(place, &attached.uplink);
            if !stays {
                self.idle.extend(attached.carriers().map(str::to_owned));
            }
            stays
        });
        if self.uplinks.len() < before {
            self.attacher.forget_devices_that_are_gone();
        }
        let choices = choose(&self.flags, interfaces, &default_routes, internal, &self.without_metadata);
        for Choice { link, mode, reason, footing } in choices {
            let unseen = footing.as_ref().and_then(|footing| hidden_tags(interfaces, footing));
            let wanted = if unseen.is_some() { Mode::Tc } else { mode };
            let reason = unseen.or(reason.map(str::to_owned));
            let carriers = footing.as_ref().and_then(|footing| carriers(interfaces, footing));
            if let Some(attached) = self.uplinks.get(&link.ifindex) {
                let mut carry = attached.uplink.carriers.iter();
                let is_as_wanted = attached.wanted == wanted && attached.footing == footing;
                if is_as_wanted && carry.all(|(name, ifindex)| is_there(ifindex, name)) {
                    continue;
                }
                self.idle.extend(attached.carriers().map(str::to_owned));
            }
            let attached = self.attacher.uplink(programs, place(link), wanted, carriers.as_ref());
            let mut uplink = match attached.with_context(|| format!("cannot serve clients on {}", link.name))
            {
                Ok(uplink) => uplink,
                // An agent that cannot begin its work says so by ending; later the other devices go on.
                Err(error) if !self.started => return Err(error),
                // It went while we were at it; netlink will tell.
                Err(error) if clsact::is_absent_device(&error) => continue,
                Err(error) => {
                    tracing::error!("{error:#}");
                    continue;
                }
            };
            uplink.reason = uplink.reason.or(reason);
            let attached = Attached { name: link.name.clone(), wanted, footing, uplink };
            let by = match attached.on(link.ifindex) {
                Some(on) => format!("{} on {on}", attached.uplink.mode.name()),
                None => attached.uplink.mode.name().to_owned(),
            };
            match &attached.uplink.reason {
                None => tracing::info!("{}: uplink by {by}", link.name),
                Some(reason) => tracing::info!("{}: uplink by {by}: {reason}", link.name),
            }
            self.sides.yield_to_uplink(link.ifindex, &self.attacher)?;
            self.idle.insert(link.name.clone());
            self.uplinks.insert(link.ifindex, attached);
        }
        self.started = true;
        self.carry()?;
        self.complain_of_missing();
        Ok(())
    }

    /// Has the maps say which devices carry uplinks, and takes XDP programs off those that do so no more.
    fn carry(&mut self) -> anyhow::Result<()> {
        let (interfaces, uplinks) = (&self.interfaces, &self.uplinks);
        let stands = uplinks.iter().filter_map(|(ifindex, attached)| {
            Some((interfaces.link(*ifindex)?, attached.footing()?, attached.seat()))
        });
        self.carriage.set(interfaces, stands);
        let used: BTreeSet<&str> = uplinks.values().flat_map(Attached::xdp_devices).collect();
        for name in std::mem::take(&mut self.idle) {
            if !used.contains(name.as_str()) {
                self.attacher.detach(&name, Hook::Xdp)?;
            }
        }
        Ok(())
    }

    fn complain_of_missing(&mut self) {
        let missing: BTreeSet<String> = self
            .flags
            .iter()
            .filter(|flag| !self.interfaces.links().any(|link| flag.matches(&link.name)))
            .map(|flag| flag.name.clone())
            .collect();
        for name in missing.difference(&self.missing) {
            tracing::warn!("--device {name}: there is no such device yet; it is attached when it appears");
        }
        self.missing = missing;
        let none = self.uplinks.is_empty() && self.flags.is_empty();
        if none && !self.told_of_none {
            tracing::warn!("no default route and no InternalIP tells the uplink; name it: --device NAME");
        }
        self.told_of_none = none;
    }

    /// Where packets to backends go: devices of pods on this node are noted in `crossings`, neighbours towards other nodes
    /// and default gateways are returned.
    fn cross(&self, crossings: &mut BTreeMap<u32, Crossing>) -> BTreeSet<NextHop> {
        let hop = |route: &Route| NextHop { ifindex: route.ifindex, address: route.next_hop };
        let on_uplink = |route: &&Route| self.uplinks.contains_key(&route.ifindex);
        let gateways =
            self.default_routes.iter().flatten().filter(on_uplink).filter(|route| route.by_gateway);
        let mut hops: BTreeSet<NextHop> = gateways.map(hop).collect();
        for (address, place) in self.backends.iter() {
            let Some(Some(route)) = self.routes.get(address) else { continue };
            if self.uplinks.contains_key(&route.ifindex) {
                if *place == Whereabouts::Elsewhere {
                    hops.insert(hop(route));
                }
                continue;
            }
            let Some(link) = self.interfaces.link(route.ifindex) else { continue };
            let flag = match place {
                Whereabouts::Here if ["veth", "bridge"].contains(&link.kind.as_str()) => {
                    DeviceFlags::POD_SIDE
                }
                Whereabouts::Elsewhere if leads_to_pods(link) => DeviceFlags::OVERLAY,
                _ => continue,
            };
            let crossing = crossings.entry(route.ifindex).or_default();
            crossing.flags |= flag;
            let source = if address.is_ipv4() { &mut crossing.source_v4 } else { &mut crossing.source_v6 };
            *source = source.or(route.source);
        }
        for crossing in crossings.values_mut() {
            // A bridge that joins pods of several nodes.
            if crossing.flags & DeviceFlags::POD_SIDE != 0 {
                crossing.flags &= !DeviceFlags::OVERLAY;
            }
        }
        hops
    }

    /// Backends of other nodes whose route leads into a device that is not for us, by its name.
    fn unreached(&self) -> BTreeMap<IpAddr, Arc<str>> {
        let elsewhere = self.backends.iter().filter(|(_, place)| *place == Whereabouts::Elsewhere);
        let unreached = elsewhere.filter_map(|(address, _)| {
            let route = self.routes.get(address)?.as_ref()?;
            let link = self.interfaces.link(route.ifindex)?;
            let is_reached = self.uplinks.contains_key(&route.ifindex) || leads_to_pods(link);
            (!is_reached).then(|| (*address, Arc::from(link.name.as_str())))
        });
        unreached.collect()
    }

    /// Takes the programs off devices behind which no backend is any more and are out of the facts.
    pub fn release_devices(&mut self) {
        self.sides.release(&self.attacher);
    }

    /// The ways to the target of a migration, as they are now; `devices` are those of map `devices`.
    pub async fn ways(&self, endpoints: &[Endpoint], devices: &BTreeMap<u32, Device>) -> Vec<Way> {
        let mut ways = Vec::new();
        for endpoint in endpoints {
            let route = self.route(endpoint.address).await;
            let to_node = match endpoint.node.filter(|_| !endpoint.is_local) {
                Some(node) => self.route(node).await,
                None => None,
            };
            ways.push(Way::new(*endpoint, route, to_node, devices));
        }
        ways
    }

    async fn route(&self, address: IpAddr) -> Option<Route> {
        let route = self.netlink.route(address).await;
        route.inspect_err(|error| tracing::warn!("{error:#}")).ok().flatten()
    }

    /// Removes the links of an earlier agent that this one does not use.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self) -> anyhow::Result<()> {
        let mut wanted = BTreeSet::new();
        for attached in self.uplinks.values() {
            wanted.extend([Hook::Ingress, Hook::Egress].map(|hook| (attached.name.clone(), hook)));
            wanted.extend(attached.xdp_devices().map(|name| (name.to_owned(), Hook::Xdp)));
        }
        wanted.extend(self.sides.links());
        self.attacher.prune(&wanted)
    }

    /// Has the kernel confirm the next hops it does not look after by itself.
    pub async fn probe(&self) {
        self.neighbours.probe().await;
    }

    /// How many next hops are kept fresh.
    #[must_use]
    pub fn neighbours(&self) -> usize {
        self.neighbours.count()
    }

    /// How TC programs are attached, in a word.
    #[must_use]
    pub fn method_name(&self) -> &'static str {
        match self.attacher.method() {
            TcMethod::Tcx => "tcx",
            TcMethod::Clsact => "clsact",
        }
    }

    /// The devices with programs.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceState> {
        let uplinks = self.uplinks.iter().map(|(ifindex, attached)| DeviceState {
            name: attached.name.clone(),
            ifindex: *ifindex,
            role: Role::Uplink,
            mode: attached.uplink.mode,
            reason: attached.uplink.reason.clone(),
            on: attached.on(*ifindex),
        });
        let pods = self.sides.devices().map(|device| DeviceState {
            reason: self.straight.refusal(device.ifindex).map(str::to_owned),
            ..device
        });
        uplinks.chain(pods).collect()
    }
}

fn place(link: &Link) -> Place<'_> {
    Place { name: &link.name, ifindex: link.ifindex }
}

/// What carries an uplink, as the attacher wants it; `None`: it has gone.
fn carriers<'a>(interfaces: &'a Interfaces, footing: &Footing) -> Option<Carriers<'a>> {
    let place = |ifindex: &u32| interfaces.link(*ifindex).map(place);
    let members = footing.members.iter().filter_map(place);
    Some(Carriers { on: place(&footing.on)?, members: members.collect() })
}
