use std::cell::RefCell;
use std::io;

use etherparse::{SlicedPacket, TransportSlice};

use super::*;
use crate::handover::way::Way;
use crate::migration::{Endpoint, Moment, Stage, Task};

const PROBES: u16 = 1023;
const MILLISECOND: u64 = 1_000_000;

#[derive(Default)]
struct Wire(RefCell<Vec<Packet>>);

impl Send for Wire {
    fn send(&self, packet: &Packet) -> io::Result<()> {
        self.0.borrow_mut().push(packet.clone());
        Ok(())
    }
}

fn course(number: u64, turned: bool) -> Course {
    let endpoint = Endpoint { address: [10, 244, 1, 5].into(), node: None, is_local: false };
    let known = Moment { monotonic: 7_000_000, wall: 0 };
    let task = Task {
        number,
        backend: u32::try_from(number).unwrap(),
        side: 1,
        tag: 0,
        stage: if turned { Stage::Turned } else { Stage::Primed },
        is_installed: true,
        endpoints: vec![endpoint],
        known,
        turned: turned.then_some(known),
        probe: (!turned).then_some(known),
    };
    Course {
        task,
        ways: vec![Way { endpoint, source: Some([192, 0, 2, 101].into()), outer: None, hops: None }],
    }
}

/// Runs for so many milliseconds from `from` on; how many packets were sent.
fn run(
    prober: &mut Prober,
    wire: &Wire,
    start: Instant,
    span: std::ops::Range<u64>,
    replied: impl Fn(u64) -> u64,
) -> usize {
    let before = wire.0.borrow().len();
    for millisecond in span {
        let turn = |_| Some(Turn { word: 2, pad: 0, replied: replied(millisecond) });
        let now = start + Duration::from_millis(millisecond);
        prober.work(|_| Some(22), turn, wire, now, millisecond * MILLISECOND);
    }
    wire.0.borrow().len() - before
}

/// Source, destination, flags SYN RST ACK, sequence number.
fn read(packet: &Packet) -> (u16, u16, [bool; 3], u32) {
    let sliced = SlicedPacket::from_ip(packet.octets()).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
    (tcp.source_port(), tcp.destination_port(), [tcp.syn(), tcp.rst(), tcp.ack()], tcp.sequence_number())
}

#[test]
fn a_vm_of_which_nothing_is_known_is_probed_ten_times_a_second_by_one_segment() {
    let (mut prober, wire, start) = (Prober::new(PROBES), Wire::default(), Instant::now());
    prober.follow(&[course(1, false)], start);
    let sent = run(&mut prober, &wire, start, 0..10_000, |_| 0);
    assert!((90..=101).contains(&sent), "{sent}");
    assert!(wire.0.borrow().iter().all(|packet| read(packet) == (PROBES, 22, [true, false, false], 7000)));
    assert_eq!(prober.sent(1), u64::try_from(sent).unwrap());
}

#[test]
fn a_vm_that_was_talking_and_falls_silent_is_probed_every_tick() {
    let (mut prober, wire, start) = (Prober::new(PROBES), Wire::default(), Instant::now());
    prober.follow(&[course(1, false)], start);
    // An answer each 10 ms until two seconds are over.
    let replied = |millisecond: u64| millisecond.min(2000) / 10 * 10 * MILLISECOND;
    let talking = run(&mut prober, &wire, start, 0..2000, replied);
    assert!((15..=21).contains(&talking), "{talking}");
    let silent = run(&mut prober, &wire, start, 2000..3000, replied);
    assert!((55..=70).contains(&silent), "{silent}");
    // After some seconds it is not that.
    run(&mut prober, &wire, start, 3000..7000, replied);
    let given_up = run(&mut prober, &wire, start, 7100..8100, replied);
    assert!((9..=11).contains(&given_up), "{given_up}");
}

#[test]
fn a_vm_that_seldom_talks_is_not_asked_more_for_its_silence() {
    let (mut prober, wire, start) = (Prober::new(PROBES), Wire::default(), Instant::now());
    prober.follow(&[course(1, false)], start);
    let sent = run(&mut prober, &wire, start, 0..5000, |millisecond| millisecond / 1000 * 1000 * MILLISECOND);
    assert!((45..=51).contains(&sent), "{sent}");
}

#[test]
fn many_vms_share_what_there_is() {
    let (mut prober, wire, start) = (Prober::new(PROBES), Wire::default(), Instant::now());
    let courses: Vec<Course> = (1..=1000).map(|number| course(number, false)).collect();
    prober.follow(&courses, start);
    let sent = run(&mut prober, &wire, start, 0..1500, |_| 0);
    assert!((3000..=3300).contains(&sent), "{sent}");
    let least = (1..=1000).map(|number| prober.sent(number)).min();
    assert!(least >= Some(2), "{least:?}");
}

#[test]
fn what_the_guest_has_half_opened_is_reset_once_it_has_arrived() {
    let (mut prober, wire, start) = (Prober::new(PROBES), Wire::default(), Instant::now());
    prober.follow(&[course(1, false)], start);
    run(&mut prober, &wire, start, 0..500, |_| 0);
    wire.0.borrow_mut().clear();
    let now = start + Duration::from_millis(500);
    prober.follow(&[course(1, true)], now);
    assert_eq!(prober.due(), Some(now));
    assert_eq!(run(&mut prober, &wire, start, 500..1000, |_| 0), 2);
    assert!(wire.0.borrow().iter().all(|packet| read(packet) == (PROBES, 22, [false, true, false], 7001)));
    assert_eq!(prober.due(), None);
}

#[test]
fn nothing_is_asked_without_flows_without_a_port_or_before_the_start() {
    let (wire, start) = (Wire::default(), Instant::now());
    let mut prober = Prober::new(PROBES);
    prober.follow(&[course(1, false)], start);
    prober.work(|_| None, |_| None, &wire, start, 0);
    let mut without = Prober::new(0);
    without.follow(&[course(1, false)], start);
    assert_eq!(without.due(), None);
    let mut early = course(1, false);
    early.task.probe = None;
    prober.follow(&[early], start);
    assert_eq!(prober.due(), None);
    // A migration that was given up leaves no guest to reset.
    assert!(wire.0.borrow().is_empty());
}
