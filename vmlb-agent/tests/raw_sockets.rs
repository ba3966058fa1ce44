//! What the agent sends by itself leaves the kernel as it was written, whatever its source. In a network namespace that ends with
//! the test's thread; needs root.

use std::io::Write;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkUnspec;
use socket2::{Domain, Protocol, Socket, Type};
use vmlb_agent::raw::packet::{Payload, TTL};
use vmlb_agent::raw::{Packet, RawSockets};
use vmlb_common::wire::TcpFlags;

/// Every protocol (`ETH_P_ALL`), as packet(7) wants it.
const EVERYTHING: u16 = 0x0003_u16.to_be();

fn set_loopback_up() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(handle.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await?)
    })
}

/// What leaves, from the IP header on.
fn tap() -> Result<Socket> {
    let protocol = Some(Protocol::from(i32::from(EVERYTHING)));
    let socket = Socket::new(Domain::from(libc::AF_PACKET), Type::DGRAM, protocol)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

fn heard(tap: &Socket, wanted: &[u8]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(2);
    let mut others = Vec::new();
    while Instant::now() < end {
        let mut space = [MaybeUninit::<u8>::uninit(); 2048];
        let Ok(length) = tap.recv(&mut space) else { continue };
        // SAFETY: the kernel has written so many.
        let found: Vec<u8> = space[..length].iter().map(|octet| unsafe { octet.assume_init() }).collect();
        if found == wanted {
            return Ok(());
        }
        others.push(found);
    }
    ensure!(others.is_empty(), "{wanted:x?} left as one of {others:x?}");
    anyhow::bail!("{wanted:x?} did not leave")
}

fn packets() -> Option<Vec<Packet>> {
    let socket = |text: &str| text.parse::<SocketAddr>().ok();
    let ack = Payload::Tcp { sequence: 7, acknowledgment: 9, flags: TcpFlags::ACK, window: 1024 };
    let mut packets = Vec::new();
    for (client, frontend, target, here, node) in [
        ("198.51.100.9:5000", "192.0.2.1:80", "127.0.0.5:8080", "127.0.0.1", "127.0.0.2"),
        ("[2001:db8::9]:5000", "[2001:db8::1]:80", "[::1]:8080", "::1", "::1"),
    ] {
        packets.push(Packet::new(socket(client)?, socket(target)?, TTL, ack)?);
        packets.push(Packet::new(socket(client)?, socket(target)?, 1, Payload::Udp)?);
        let inner = Packet::new(socket(client)?, socket(frontend)?, TTL, ack)?;
        packets.push(inner.within_ip(here.parse().ok()?, node.parse().ok()?, 0x1234)?);
    }
    Some(packets)
}

fn every_packet_leaves_as_it_was_written() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    set_loopback_up()?;
    let (sockets, tap) = (RawSockets::open()?, tap()?);
    for packet in packets().context("packets")? {
        sockets.send(&packet)?;
        heard(&tap, packet.octets())?;
    }
    // Twenty thousand are handed over in well under the five seconds that they may take.
    let packet = packets().context("packets")?.swap_remove(0);
    let begun = Instant::now();
    for _ in 0..20_000 {
        while sockets.send(&packet).is_err() {
            thread::yield_now();
        }
    }
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn what_is_sent_whole_leaves_the_kernel_as_it_was_written() -> Result<()> {
    const NAME: &str = "what_is_sent_whole_leaves_the_kernel_as_it_was_written";
    if !nix::unistd::geteuid().is_root() {
        // As `cargo xtask test` counts it, past libtest's capture.
        return Ok(writeln!(std::io::stdout().lock(), "\nSKIPPED: {NAME}: network namespaces need root")?);
    }
    // The namespace goes with the thread.
    let thread = thread::spawn(every_packet_leaves_as_it_was_written);
    thread.join().map_err(|_| anyhow::anyhow!("the test's thread has panicked"))?
}
