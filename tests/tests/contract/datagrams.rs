//! Datagrams whose VM stops serving.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::objects::{Condition, endpoints};

/// Between two datagrams of a client.
const BEAT: Duration = Duration::from_millis(10);
/// From the event until the datagrams have moved.
const AT_ONCE: Duration = Duration::from_millis(200);
/// What the agent's directory of manifests adds: it looks five times a second, and believes a file that has come to rest.
const READING: Duration = Duration::from_millis(260);

/// What a client met: who answered when, and how many datagrams nobody answered.
struct Stream {
    answers: Vec<(Instant, String)>,
    lost: usize,
}

fn stream(socket: &UdpSocket, stop: &AtomicBool) -> Result<Stream> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut met = Stream { answers: Vec::new(), lost: 0 };
    while !stop.load(Ordering::Acquire) {
        match requests::who(socket) {
            Ok((vm, _)) => met.answers.push((Instant::now(), vm)),
            Err(_) => met.lost += 1,
        }
        thread::sleep(BEAT);
    }
    Ok(met)
}

#[test]
fn datagrams_move_at_once_when_their_vm_stops_serving_and_others_stay() {
    unless_unable("datagrams_move_at_once_when_their_vm_stops_serving_and_others_stay", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut sockets = Vec::new();
        for family in Family::ALL {
            for node in 0..2 {
                let frontend = cluster.frontend("both", servers::ECHO, node, family)?;
                let opened = (0..8).map(|_| cluster.client().run(|| requests::datagrams(frontend)));
                sockets.extend(opened.collect::<Result<Vec<_>>>()?);
            }
        }
        let stop = AtomicBool::new(false);
        let (streams, changed) = thread::scope(|scope| {
            let threads: Vec<_> =
                sockets.iter().map(|socket| scope.spawn(|| stream(socket, &stop))).collect();
            thread::sleep(Duration::from_millis(500));
            let changed = Instant::now();
            let done =
                endpoints(&cluster, "both", &[("vm01", Condition::Unready), ("vm02", Condition::Ready)]);
            thread::sleep(Duration::from_millis(1500));
            stop.store(true, Ordering::Release);
            let streams = threads.into_iter().map(|thread| thread.join().expect("a client"));
            Ok::<_, anyhow::Error>((streams.collect::<Result<Vec<_>>>()?, done.map(|()| changed)?))
        })?;
        let mut began = BTreeSet::new();
        for Stream { answers, lost } in &streams {
            let (_, first) = answers.first().context("a client without an answer")?;
            began.insert(first.clone());
            ensure!(
                answers.last().is_some_and(|(_, vm)| vm == "vm02"),
                "a client that began at {first} stayed"
            );
            if first == "vm02" {
                ensure!(
                    answers.iter().all(|(_, vm)| vm == "vm02") && *lost == 0,
                    "a client of vm02 was moved"
                );
                continue;
            }
            let moved = answers.iter().find(|(_, vm)| vm == "vm02").map(|(at, _)| *at - changed);
            ensure!(moved.is_some_and(|after| after <= AT_ONCE + READING), "moved after {moved:?}");
            ensure!(*lost <= 1, "{lost} datagrams were lost on the way");
        }
        ensure!(began.len() == 2, "all clients began at {began:?}");
        Ok(())
    });
}
