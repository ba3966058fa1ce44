//! The lab by itself, without vmlb: a VM moves between launcher pods on two nodes and answers at each one's address, so that
//! what fails elsewhere is not the lab's. A client on a third node asks the pods' addresses directly.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::{self, Family};
use vmlb_tests::lab::blackout::{Answers, Watch};
use vmlb_tests::lab::launcher::{Launcher, Rules};
use vmlb_tests::lab::stand_in::StandIn;
use vmlb_tests::lab::{self, Guest, Switch, Trial, qemu, unless_without_vms};
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::service::Protocol;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Topology};
use vmlb_tests::{probe, servers};

/// How much longer than it stood still a client may miss a stand-in: nothing but the kernel has a part in it.
const STAND_IN: Duration = Duration::from_millis(500);

/// And a real VM, whose emulator may take its time, and whose announcement may get lost on a busy machine: then the launcher,
/// which was asked for it in vain before, asks for it once a second.
const REAL: Duration = Duration::from_secs(2);

/// The VM's name.
const VM: &str = "vm01";

/// Three nodes; launchers on the first two, the client is the third.
struct Site {
    source: Launcher,
    target: Launcher,
    topology: Topology,
}

impl Site {
    fn build(rules: &Rules) -> Result<Self> {
        let mut topology = Topology::build(Prefix::unique(), 0, 3, Attachment::Routed)?;
        let source = topology.add_launcher(0, "source", rules)?;
        let mut target = topology.add_launcher(1, "target", rules)?;
        target.adopt(&source);
        ensure!(source.pod.vmi_uid() == target.pod.vmi_uid(), "one VM in both launchers");
        Ok(Self { source, target, topology })
    }

    fn client(&self) -> &Namespace {
        &self.topology.nodes[2].namespace
    }

    /// From now on packets to the source's addresses reach the target, as where a CNI lets a VM take its address along.
    fn take_addresses_along(&self) -> Result<()> {
        let (pod, nodes) = (self.source.pod.addresses, &self.topology.nodes);
        let via = nodes[1].addresses;
        for node in [&nodes[0], &nodes[2]] {
            node.namespace.ip(&format!(
                "route replace {} via {}\nroute replace {} via {}\n",
                pod.v4, via.v4, pod.v6, via.v6
            ))?;
        }
        let device = &self.target.pod.device;
        nodes[1]
            .namespace
            .ip(&format!("route add {} dev {device}\nroute add {} dev {device}\n", pod.v4, pod.v6))?;
        self.target
            .namespace()
            .ip(&format!("addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n", pod.v4, pod.v6))
    }
}

#[test]
fn a_stand_in_answers_at_each_launcher_and_keeps_its_connections() {
    unless_unable("a_stand_in_answers_at_each_launcher_and_keeps_its_connections", || {
        let site = Site::build(&Rules::All)?;
        let mut vm = StandIn::boot(&site.topology, VM, &site.source)?;
        vm.pause = Duration::from_millis(50);
        let held = moves_and_keeps_its_connections(&site, &mut vm, STAND_IN)?;
        ensure!(held == Trial::Held, "nothing emulates a stand-in, and yet it is dead");
        Ok(())
    });
}

#[test]
fn a_vm_answers_at_each_launcher_and_keeps_its_connections() {
    unless_without_vms("a_vm_answers_at_each_launcher_and_keeps_its_connections", || {
        lab::repeat(|| {
            let site = Site::build(&Rules::All)?;
            let mut vm = qemu::Vm::boot(&site.topology, VM, &site.source)?;
            moves_and_keeps_its_connections(&site, &mut vm, REAL)
        })
    });
}

/// The guest answers at the source's address before and at the target's after, opens connections at both, and those that were
/// open go on where packets to the old address still reach it.
fn moves_and_keeps_its_connections(site: &Site, vm: &mut impl Guest, slack: Duration) -> Result<Trial> {
    let [source, target] = [&site.source, &site.target];
    welcome(site, source).context("before the migration")?;
    ensure!(welcome(site, target).is_err(), "there is a guest in the target before the migration");
    let mut open = Vec::new();
    for family in Family::ALL {
        let server = source.pod.addresses.socket(family, servers::LINES);
        let mut conversation = site.client().run(|| Conversation::open(server))?;
        site.client().run(|| conversation.ask("before"))?;
        open.push((family, conversation));
    }
    let echo = |launcher: &Launcher| launcher.pod.addresses.socket(Family::V4, servers::ECHO);
    let watch = Watch::start(site.client(), &[echo(source), echo(target)]);
    std::thread::sleep(Duration::from_millis(200));
    let switch = vm.migrate(target)?;
    std::thread::sleep(slack + Duration::from_millis(300));
    let answers = watch.finish()?;
    if !answers[1].any_after(switch.resumed) && !target.guest_answers(Duration::from_secs(5)) {
        return Ok(Trial::GuestDied);
    }
    check_blackout(&answers, switch, slack)?;
    welcome(site, target).context("after the migration")?;
    ensure!(welcome(site, source).is_err(), "there is still a guest in the source");
    site.take_addresses_along()?;
    for (family, mut conversation) in open {
        let said = site.client().run(|| conversation.ask("after"));
        let pod = said.with_context(|| format!("a connection by {family} that was open before"))?;
        ensure!(pod == VM, "{pod} answers");
    }
    Ok(Trial::Held)
}

/// Answers come from the source up to the switch and from the target after it, and the client misses them no more than
/// `slack` longer than the VM stood still.
fn check_blackout(answers: &[Answers], switch: Switch, slack: Duration) -> Result<()> {
    let [source, target] = answers else { anyhow::bail!("two servers were asked") };
    let gap = Answers::longest_gap(answers);
    println!("the VM stood still for {:?}, the client saw a gap of {gap:?}", switch.pause());
    ensure!(source.any_before(switch.stopped), "the source never answered");
    ensure!(target.any_after(switch.resumed), "the target never answered");
    ensure!(!target.any_before(switch.stopped), "the target answered before the switch");
    ensure!(gap < switch.pause() + slack, "a gap of {gap:?}, {:?} of it the VM's", switch.pause());
    Ok(())
}

/// The VM welcomes the client by HTTP at the launcher's addresses and sees the client's own.
fn welcome(site: &Site, launcher: &Launcher) -> Result<()> {
    for family in Family::ALL {
        let server = launcher.pod.addresses.socket(family, servers::HTTP);
        let answer = site.client().run(|| {
            // Where there is no guest the launcher finds nobody on its bridge, and says so after three seconds.
            requests::http(server, "/")
        })?;
        let client: IpAddr = address::node(2).of(family);
        ensure!(
            (answer.pod(), answer.client) == (VM, client),
            "{} answered and saw {}",
            answer.pod(),
            answer.client
        );
    }
    Ok(())
}

#[test]
fn a_cancelled_migration_leaves_the_vm_where_it_is() {
    unless_without_vms("a_cancelled_migration_leaves_the_vm_where_it_is", || {
        lab::repeat(|| {
            let site = Site::build(&Rules::All)?;
            let mut vm = qemu::Vm::boot(&site.topology, VM, &site.source)?;
            vm.bandwidth = Some(1 << 20);
            let migration = vm.begin(&site.target)?;
            welcome(&site, &site.source).context("during the migration")?;
            migration.cancel()?;
            welcome(&site, &site.source).context("after it was cancelled")?;
            // It can still be moved.
            vm.bandwidth = Some(1 << 30);
            vm.migrate(&site.target)?;
            if !site.target.guest_answers(Duration::from_secs(5)) {
                return Ok(Trial::GuestDied);
            }
            welcome(&site, &site.target).context("after the migration that was not cancelled")?;
            Ok(Trial::Held)
        })
    });
}

#[test]
fn a_launcher_that_lists_ports_passes_on_nothing_else() {
    unless_unable("a_launcher_that_lists_ports_passes_on_nothing_else", || {
        let site = Site::build(&Rules::Ports(vec![(Protocol::Tcp, servers::HTTP)]))?;
        let vm = StandIn::boot(&site.topology, VM, &site.source)?;
        welcome(&site, &site.source)?;
        for family in Family::ALL {
            let server: SocketAddr = site.source.pod.addresses.socket(family, servers::LINES);
            let refused =
                site.client().run(|| requests::connect(server)).err().context("a port that is not listed")?;
            ensure!(format!("{refused:#}").contains("refused"), "{family}: {refused:#}");
            // The server is there; it is the launcher that does not let it be reached.
            let guest =
                vm.namespace.run(|| requests::connect(SocketAddr::new(loopback(family), servers::LINES)));
            guest.with_context(|| format!("{family}: inside the guest"))?;
        }
        Ok(())
    });
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
        Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

#[test]
fn what_a_guest_opens_leaves_with_the_address_of_its_launcher() {
    unless_unable("what_a_guest_opens_leaves_with_the_address_of_its_launcher", || {
        let site = Site::build(&Rules::All)?;
        let mut vm = StandIn::boot(&site.topology, VM, &site.source)?;
        for (launcher, place) in [(&site.source, "source"), (&site.target, "target")] {
            if place == "target" {
                vm.migrate(launcher)?;
            }
            for family in Family::ALL {
                seen_from_outside(&site, &vm, launcher, family)
                    .with_context(|| format!("{family}, in the {place}"))?;
            }
        }
        Ok(())
    });
}

fn seen_from_outside(site: &Site, vm: &StandIn, launcher: &Launcher, family: Family) -> Result<()> {
    let server = SocketAddr::new(address::node(2).of(family), 7007);
    let listener = site.client().run(|| std::net::TcpListener::bind(server))?;
    let connection = std::thread::spawn(move || listener.accept().map(|(_, client)| client.ip()));
    // The cable may not have been plugged in for long.
    probe::wait("a connection from the guest", requests::PATIENCE, || {
        vm.namespace.run(|| requests::connect(server)).map(|_| true)
    })?;
    let seen = connection.join().expect("no panic")?;
    ensure!(seen == launcher.pod.addresses.of(family), "seen as {seen}");
    Ok(())
}
