//! Packets as they were on the wire, with every checksum recomputed by code that is not vmlb's (crate `etherparse`).

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;

use crate::address::Addresses;
use crate::namespace::Namespace;

/// A running capture of everything a host receives or sends.
///
/// Look where packets *arrive* behind a cable: what a host sends itself has no checksum yet where offloads are on.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

/// After this long every packet sent before the stop has been seen.
const LAST: Duration = Duration::from_secs(1);

/// Packets kept at most; later ones are not looked at.
const LIMIT: usize = 200_000;

impl Capture {
    /// Starts to capture in `host`.
    pub fn start(host: &Namespace) -> Result<Self> {
        Self::only(host, |_| true)
    }

    /// The same, of frames that are `wanted`.
    pub fn only(host: &Namespace, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Self> {
        let packets = host.run(open).context("opening a packet socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || collect(packets, &until, wanted));
        Ok(Self { stop, thread })
    }

    /// TCP resets that arrive at `addresses` in `host`.
    pub fn resets(host: &Namespace, addresses: Addresses) -> Result<Self> {
        Self::only(host, move |frame| is_reset_to(frame, addresses))
    }

    /// Ends the capture, a moment after the last packet, and returns the frames.
    pub fn finish(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

fn open() -> Result<File> {
    let packets: OwnedFd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&packets, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    setsockopt(&packets, sockopt::RcvBufForce, &(64 << 20))?;
    Ok(File::from(packets))
}

fn collect(mut packets: File, stop: &AtomicBool, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let (mut frames, mut frame) = (Vec::new(), vec![0; 65536]);
    let mut end = None;
    loop {
        if stop.load(Ordering::Acquire) {
            end.get_or_insert_with(|| Instant::now() + LAST);
        }
        match packets.read(&mut frame) {
            // Where others go on talking it is never silent.
            Ok(_) if end.is_some_and(|end| end < Instant::now()) => return frames,
            Ok(length) if frames.len() < LIMIT => {
                if wanted(&frame[..length]) {
                    frames.push(frame[..length].to_vec());
                }
            }
            Ok(_) => {}
            // Nothing for a tenth of a second: every packet sent before the stop has been seen.
            Err(_) if end.is_some() => return frames,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn is_reset_to(frame: &[u8], addresses: Addresses) -> bool {
    let Ok(packet) = PacketHeaders::from_ethernet_slice(frame) else { return false };
    let destination: Option<IpAddr> = match &packet.net {
        Some(NetHeaders::Ipv4(header, _)) => Some(header.destination.into()),
        Some(NetHeaders::Ipv6(header, _)) => Some(header.destination.into()),
        _ => None,
    };
    matches!(&packet.transport, Some(TransportHeader::Tcp(header)) if header.rst)
        && destination.is_some_and(|destination| addresses.contains(destination))
}

/// Whether a frame carries TCP or UDP.
pub fn is_of_a_flow(frame: &[u8]) -> bool {
    PacketHeaders::from_ethernet_slice(frame).is_ok_and(|packet| {
        matches!(packet.transport, Some(TransportHeader::Tcp(_) | TransportHeader::Udp(_)))
    })
}

/// A frame as people read it.
pub fn show(frame: &[u8]) -> String {
    match PacketHeaders::from_ethernet_slice(frame) {
        Ok(packet) => format!("{:?} {:?}", packet.net, packet.transport),
        Err(_) => hexadecimal(frame),
    }
}

/// Recomputes every checksum of every TCP, UDP, ICMP and IPv4 header in `frames`; returns how many packets were looked at.
/// Fails with the first wrong one.
pub fn check_sums(frames: &[Vec<u8>]) -> Result<usize> {
    let mut checked = 0;
    for frame in frames {
        checked += usize::from(check(frame).with_context(|| format!("packet {}", hexadecimal(frame)))?);
    }
    Ok(checked)
}

/// Whether the frame is one with sums; fails if one is wrong.
fn check(frame: &[u8]) -> Result<bool> {
    let Ok(packet) = PacketHeaders::from_ethernet_slice(frame) else { return Ok(false) };
    if let Some(NetHeaders::Ipv4(header, _)) = &packet.net {
        let right = header.calc_header_checksum();
        ensure!(header.header_checksum == right, "IPv4 sum {:#x}, not {right:#x}", header.header_checksum);
    }
    let payload = packet.payload.slice();
    let (found, right) = match (&packet.transport, &packet.net) {
        (Some(TransportHeader::Tcp(header)), Some(NetHeaders::Ipv4(ip, _))) => {
            (header.checksum, header.calc_checksum_ipv4(ip, payload)?)
        }
        (Some(TransportHeader::Tcp(header)), Some(NetHeaders::Ipv6(ip, _))) => {
            (header.checksum, header.calc_checksum_ipv6(ip, payload)?)
        }
        (Some(TransportHeader::Udp(header)), Some(NetHeaders::Ipv4(ip, _))) if header.checksum != 0 => {
            (header.checksum, header.calc_checksum_ipv4(ip, payload)?)
        }
        (Some(TransportHeader::Udp(header)), Some(NetHeaders::Ipv6(ip, _))) => {
            (header.checksum, header.calc_checksum_ipv6(ip, payload)?)
        }
        (Some(TransportHeader::Icmpv4(header)), _) => {
            (header.checksum, header.icmp_type.calc_checksum(payload))
        }
        (Some(TransportHeader::Icmpv6(header)), Some(NetHeaders::Ipv6(ip, _))) => {
            (header.checksum, header.icmp_type.calc_checksum(ip.source, ip.destination, payload)?)
        }
        _ => return Ok(false),
    };
    ensure!(same_sum(found, right), "transport sum {found:#x}, not {right:#x}");
    Ok(true)
}

/// One's complement has two zeros; receivers take both, and incremental updates (RFC 1624) may give either. For UDP the
/// zero that means "no sum" has been told apart before.
fn same_sum(found: u16, right: u16) -> bool {
    found == right || [found, right].iter().all(|sum| matches!(sum, 0 | 0xffff))
}

fn hexadecimal(frame: &[u8]) -> String {
    frame.iter().take(128).map(|octet| format!("{octet:02x}")).collect()
}
