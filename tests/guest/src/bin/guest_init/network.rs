//! The VM's network device, configured by netlink: there is no `ip` in the initramfs.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use vmlb_guest::vm;

/// `RTM_…` of linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// `NLMSG_ERROR` of linux/netlink.h, which is the acknowledgement too.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_CREATE`.
const FLAGS: u16 = 0x1 | 0x4 | 0x400;

/// The octets of an address, its family, and the length of its prefix.
struct Address {
    family: AddressFamily,
    octets: Vec<u8>,
    prefix: u8,
    gateway: Vec<u8>,
}

/// Brings loopback and the device up, with the addresses and gateways that every launcher gives its guest.
///
/// # Errors
/// There is no device, or the kernel refuses.
pub fn configure() -> Result<()> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    for device in ["lo", vm::DEVICE] {
        up(&kernel, index(device)?).with_context(|| format!("bringing {device} up"))?;
    }
    let device = index(vm::DEVICE)?;
    let addresses = [
        Address {
            family: AddressFamily::Inet,
            octets: vm::V4.octets().to_vec(),
            prefix: vm::PREFIX_V4,
            gateway: vm::GATEWAY_V4.octets().to_vec(),
        },
        Address {
            family: AddressFamily::Inet6,
            octets: vm::V6.octets().to_vec(),
            prefix: vm::PREFIX_V6,
            gateway: vm::GATEWAY_V6.octets().to_vec(),
        },
    ];
    for address in addresses {
        add_address(&kernel, device, &address).context("adding an address")?;
        add_default_route(&kernel, device, &address).context("adding a route")?;
    }
    Ok(())
}

fn index(device: &str) -> Result<u32> {
    let path = format!("/sys/class/net/{device}/ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("looking for device {device}"))?;
    Ok(text.trim().parse()?)
}

/// `struct ifinfomsg` with `IFF_UP` to be set.
fn up(kernel: &OwnedFd, device: u32) -> Result<()> {
    const IFF_UP: u32 = 1;
    let mut message = vec![0; 4];
    for number in [device, IFF_UP, IFF_UP] {
        message.extend(number.to_ne_bytes());
    }
    ask(kernel, NEW_LINK, &message)
}

/// `struct ifaddrmsg`, the address as local and as the prefix's, usable at once.
fn add_address(kernel: &OwnedFd, device: u32, address: &Address) -> Result<()> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_F_NODAD: u8 = 2;
    let flags = if address.family == AddressFamily::Inet6 { IFA_F_NODAD } else { 0 };
    let mut message = vec![address.family as u8, address.prefix, flags, 0];
    message.extend(device.to_ne_bytes());
    for kind in [IFA_ADDRESS, IFA_LOCAL] {
        attribute(&mut message, kind, &address.octets);
    }
    ask(kernel, NEW_ADDRESS, &message)
}

/// `struct rtmsg` of a unicast route to everywhere in the main table.
fn add_default_route(kernel: &OwnedFd, device: u32, address: &Address) -> Result<()> {
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_STATIC: u8 = 4;
    const RTN_UNICAST: u8 = 1;
    let mut message = vec![address.family as u8, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
    message.extend(0_u32.to_ne_bytes());
    attribute(&mut message, RTA_OIF, &device.to_ne_bytes());
    attribute(&mut message, RTA_GATEWAY, &address.gateway);
    ask(kernel, NEW_ROUTE, &message)
}

/// Appends an attribute; all of ours are multiples of four octets long.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("addresses are short");
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

/// Sends a request and waits for the kernel's word on it.
fn ask(kernel: &OwnedFd, kind: u16, message: &[u8]) -> Result<()> {
    let length = u32::try_from(16 + message.len())?;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(FLAGS.to_ne_bytes());
    // Sequence number and sender, which nobody else here could be.
    request.extend([0; 8]);
    request.extend(message);
    sendto(kernel.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    ensure!(length >= 20, "the kernel's answer has {length} octets");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    ensure!(kind == ERROR, "the kernel answers with a message of type {kind}");
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        code => bail!("the kernel refuses: {}", std::io::Error::from_raw_os_error(-code)),
    }
}
