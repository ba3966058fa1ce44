//! Clients that talk by UDP.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::{INTERVAL, Seen, Stage};
use crate::requests;

/// How long an answer may be under way.
const LATE: Duration = Duration::from_millis(500);

pub(super) fn echo(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let socket = requests::datagrams(server)?;
    let (mut seen, mut answered, mut next) = (Seen::default(), BTreeSet::new(), SystemTime::now());
    while !stage.is_over() {
        // An error here is the ICMP error for an earlier one, which is lost.
        let _lost = socket.send(&seen.sent.to_be_bytes());
        seen.sent += 1;
        next += INTERVAL;
        collect(&socket, next, &mut seen, &mut answered)?;
    }
    collect(&socket, SystemTime::now() + LATE, &mut seen, &mut answered)?;
    seen.lost = seen.sent - answered.len() as u64;
    ensure!(!answered.is_empty(), "no datagram was answered");
    Ok(seen)
}

/// Takes answers until `end`.
fn collect(socket: &UdpSocket, end: SystemTime, seen: &mut Seen, answered: &mut BTreeSet<u64>) -> Result<()> {
    let mut answer = [0; 16];
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        // The kernel takes zero as no limit.
        socket.set_read_timeout(Some(left.max(Duration::from_micros(100))))?;
        if let Ok(8) = socket.recv(&mut answer)
            && let Some(number) = answer.first_chunk()
        {
            let number = u64::from_be_bytes(*number);
            ensure!(number < seen.sent, "an answer that was not asked for");
            answered.insert(number);
            seen.note();
        }
    }
    Ok(())
}

pub(super) fn pushed(stage: &Stage, server: SocketAddr, count: u32) -> Result<Seen> {
    let socket = requests::datagrams(server)?;
    socket.send(format!("push {} {count}", INTERVAL.as_millis()).as_bytes())?;
    let (mut seen, mut expected, mut answer) = (Seen::default(), 0, [0; 16]);
    while !stage.is_over() && expected < u64::from(count) {
        let length = socket.recv(&mut answer).with_context(|| format!("datagram {expected}"))?;
        let number: u64 = std::str::from_utf8(&answer[..length])?.parse()?;
        ensure!(number >= expected, "datagram {number} after {expected}");
        seen.lost += number - expected;
        if expected == 0 {
            // A second word of the client's shows that it is there; it is the last.
            socket.send(format!("push {} 0", INTERVAL.as_millis()).as_bytes())?;
        }
        expected = number + 1;
        seen.note();
    }
    seen.sent = expected;
    Ok(seen)
}
