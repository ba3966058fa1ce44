//! The datapath compiled twice gives the same twice: every packet goes through the host's node and, by
//! `BPF_PROG_TEST_RUN`, through the object in the kernel, with the same tables on both sides; verdict, octets, reasons
//! and tables afterwards must be equal. Routes and neighbours are the kernel's own, in a namespace that the host's
//! routing table mirrors.

#[path = "parity/both.rs"]
mod both;
#[path = "parity/generate.rs"]
mod generate;
#[path = "parity/kernel.rs"]
mod kernel;
#[path = "parity/network.rs"]
mod network;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use vmlb_common::family::{V4, V6};
use vmlb_common::host::Hook;
use vmlb_common::verdict::Reason;
use vmlb_tests::address::Family;
use vmlb_tests::packets::frame::{Frame, tcp, udp};
use vmlb_tests::packets::random::Random;
use vmlb_tests::packets::story::{self, Driver};
use vmlb_tests::packets::world::{ETH0, ETH2, Net, POD1};
use vmlb_tests::packets::wrapped;
use vmlb_tests::skip;

use both::Both;
use generate::SCENES;
use network::Network;

/// Pairs of packet and tables in each scene.
const PAIRS: usize = 1_200;

/// Runs `test` in a network of its own, unless this machine cannot.
fn in_network(name: &str, test: impl FnOnce(&Network, &[u8]) -> Result<()> + Send) {
    let path = object();
    let Ok(octets) = std::fs::read(&path) else {
        return skip::announce(
            name,
            &format!("no BPF object at {}; `cargo xtask build-ebpf` makes it", path.display()),
        );
    };
    skip::unless_unable(name, || {
        let network = Network::build()?;
        network.node.run(|| test(&network, &octets))
    });
}

fn object() -> PathBuf {
    std::env::var_os("VMLB_BPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/vmlb.bpf.o"),
        PathBuf::from,
    )
}

#[test]
fn stories_come_out_alike_on_the_host_and_in_the_kernel() {
    in_network("stories_come_out_alike_on_the_host_and_in_the_kernel", |network, object| {
        let mut kernel = kernel::Kernel::load(object, &network.pin_root)?;
        let mut packets = 0;
        for family in Family::ALL {
            for story in story::all(family) {
                for driver in [Driver::Xdp, Driver::Tc] {
                    let mut both = Both::new(network, kernel)?;
                    story.tell(&mut both, family, driver);
                    let (returned, count) = both.finish();
                    kernel = returned;
                    packets += count;
                }
            }
        }
        println!("{packets} packets of stories");
        ensure!(packets > 1500, "only {packets} packets");
        Ok(())
    });
}

/// Packets of one family, for the sweep over their prefixes: wrapped ones, and one of each direction that is not.
fn prefixed(net: Net) -> Vec<Vec<u8>> {
    let client = net.client(0, 61001);
    let plain = [
        tcp(client, net.node(30002)).syn(1),
        udp(client, net.vip(30001)).data(b"some data"),
        tcp(net.pod(2), net.node(61001)).syn(5).ack(1),
        tcp(net.pod(1), client).syn(5).ack(2),
    ];
    plain.iter().map(Frame::octets).chain(wrapped::all(net)).collect()
}

/// How short a frame the kernel runs programs on: a whole Ethernet header, at TC also the IP header that it tells of.
fn shortest(hook: Hook, octets: &[u8]) -> usize {
    match (hook, octets.get(12..14)) {
        (Hook::Xdp, _) => 14,
        (_, Some([0x08, 0x00])) => 14 + 20,
        (_, Some([0x86, 0xdd])) => 14 + 40,
        _ => 15,
    }
}

#[test]
fn prefixes_of_packets_come_out_alike() {
    in_network("prefixes_of_packets_come_out_alike", |network, object| {
        let mut both = Both::new(network, kernel::Kernel::load(object, &network.pin_root)?)?;
        let mut count = 0;
        for (hook, device) in [
            (Hook::Xdp, ETH0),
            (Hook::Ingress, ETH0),
            (Hook::Egress, ETH0),
            (Hook::Pod, POD1),
            (Hook::Overlay, ETH2),
        ] {
            for family in Family::ALL {
                for octets in prefixed(Net(family)) {
                    // Headers are short; what lies behind them is taken in larger steps.
                    let first = shortest(hook, &octets);
                    for length in (first..octets.len().min(90)).chain((90..octets.len()).step_by(16)) {
                        let frame = &octets[..length];
                        let compared = match family {
                            Family::V4 => both.compare::<V4>(hook, device, frame),
                            Family::V6 => both.compare::<V6>(hook, device, frame),
                        };
                        let outcome = compared.with_context(|| format!("{family}, {length} octets"))?.outcome;
                        ensure!(outcome.octets == frame, "{hook:?} changed {frame:02x?}");
                        count += 1;
                    }
                }
            }
        }
        println!("{count} prefixes");
        ensure!(count > 5_000, "only {count} prefixes");
        Ok(())
    });
}

/// Verdicts and reasons that generated pairs must meet, or they prove little.
const IMPORTANT: [Reason; 29] = [
    Reason::MALFORMED,
    Reason::OPTIONS,
    Reason::FRAGMENT,
    Reason::MID_FLOW,
    Reason::NO_BACKEND,
    Reason::NO_LOCAL_BACKEND,
    Reason::BACKEND_GONE,
    Reason::FLOW_BUSY,
    Reason::SNAT_EXHAUSTED,
    Reason::NO_SNAT_ADDRESS,
    Reason::NO_ROUTE,
    Reason::FOREIGN_DEVICE,
    Reason::SOURCE_NOT_KEPT,
    Reason::TTL_EXPIRED,
    Reason::NEIGHBOUR,
    Reason::NO_TRANSMIT,
    Reason::POD_DEVICE,
    Reason::TABLE_FULL_ESTABLISHED,
    Reason::FORWARDING_OFF,
    Reason::INHERITED,
    Reason::SOURCE_RANGE,
    Reason::TOO_BIG,
    Reason::UNCUTTABLE,
    Reason::NOT_PRESENT,
    Reason::PROBE,
    Reason::NO_TUNNEL,
    Reason::TUNNEL_SOURCE,
    Reason::TUNNEL_FRONTEND,
    Reason::TUNNEL_TARGET,
];

#[test]
fn generated_packets_and_tables_come_out_alike() {
    in_network("generated_packets_and_tables_come_out_alike", |network, object| {
        let mut random = Random::announced("generated_packets_and_tables_come_out_alike");
        let mut both = Both::new(network, kernel::Kernel::load(object, &network.pin_root)?)?;
        let mut met = Met::default();
        for scene in &SCENES {
            both.reset()?;
            vmlb_tests::packets::bench::Bench::change(&mut both, &|world| (scene.change)(world));
            for number in 0..PAIRS {
                let context = || format!("scene `{}`, pair {number}", scene.name);
                if number % 2 == 0 {
                    one::<V4>(&mut both, scene, Net(Family::V4), &mut random, &mut met)
                        .with_context(context)?;
                } else {
                    one::<V6>(&mut both, scene, Net(Family::V6), &mut random, &mut met)
                        .with_context(context)?;
                }
            }
        }
        met.report();
        met.judge(SCENES.len() * PAIRS)
    });
}

fn one<F: kernel::KernelFamily>(
    both: &mut Both<'_>,
    scene: &generate::Scene,
    net: Net,
    random: &mut Random,
    met: &mut Met,
) -> Result<()> {
    let pair = generate::pair::<F>(scene, &both.host.world, net, both.now(), random);
    both.set_flows::<F>(&pair.flows)?;
    both.set_turns(&pair.turns)?;
    let outcome = both.compare::<F>(pair.hook, pair.device, &pair.frame)?;
    let word = outcome.outcome.verdict.name();
    *met.verdicts.entry((pair.hook, word)).or_default() += 1;
    for reason in outcome.counted {
        *met.reasons.entry(reason).or_default() += 1;
    }
    met.promoted += usize::from(outcome.promoted);
    met.turned += usize::from(outcome.turned);
    met.unwrapped += usize::from(outcome.outcome.octets.len() + 20 <= pair.frame.len());
    met.wrapped += usize::from(
        outcome.outcome.octets.len() >= pair.frame.len() + 20 && !outcome.outcome.verdict.is_answer(),
    );
    if random.once_in(8) {
        met.swept += both.compare_sweep::<F>()?;
    }
    met.pairs += 1;
    Ok(())
}

/// What generated pairs have met.
#[derive(Debug, Default)]
struct Met {
    pairs: usize,
    verdicts: BTreeMap<(Hook, &'static str), usize>,
    reasons: BTreeMap<Reason, usize>,
    promoted: usize,
    swept: usize,
    turned: usize,
    wrapped: usize,
    unwrapped: usize,
}

impl Met {
    fn report(&self) {
        println!("{} pairs; {} flows promoted, {} entries swept", self.pairs, self.promoted, self.swept);
        println!("{} turned, {} wrapped, {} unwrapped", self.turned, self.wrapped, self.unwrapped);
        for ((hook, verdict), count) in &self.verdicts {
            println!("{count:6} {hook:?} {verdict}");
        }
        for (reason, count) in &self.reasons {
            println!("{count:6} {}", reason.name());
        }
    }

    fn judge(&self, pairs: usize) -> Result<()> {
        ensure!(self.pairs == pairs && pairs >= 10_000, "{} pairs", self.pairs);
        for reason in IMPORTANT {
            ensure!(self.reasons.contains_key(&reason), "no packet met `{}`", reason.name());
        }
        for served in [
            (Hook::Xdp, "deliver"),
            (Hook::Xdp, "transmit"),
            (Hook::Xdp, "redirect"),
            (Hook::Xdp, "pass"),
            (Hook::Xdp, "answer"),
            (Hook::Ingress, "deliver"),
            (Hook::Ingress, "redirect"),
            (Hook::Egress, "deliver"),
            (Hook::Pod, "redirect"),
            (Hook::Overlay, "redirect"),
        ] {
            let count = self.verdicts.get(&served).copied().unwrap_or(0);
            ensure!(count >= 20, "{served:?} was met {count} times");
        }
        ensure!(
            self.turned >= 50 && self.wrapped >= 50 && self.unwrapped >= 100,
            "{} turned, {} wrapped, {} unwrapped",
            self.turned,
            self.wrapped,
            self.unwrapped
        );
        ensure!(self.promoted >= 50 && self.swept >= 100, "{} promoted, {} swept", self.promoted, self.swept);
        Ok(())
    }
}
