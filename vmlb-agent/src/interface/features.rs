//! Whether XDP can send out of a device. The kernel says so since 6.3 (generic netlink family `netdev`), and for a veth it
//! also looks at the far end; for older kernels a list of drivers has to do.

use std::fs;

use anyhow::Context;
use netlink_packet_generic::{GenlFamily, GenlHeader};
use rtnetlink::packet_core::{DecodeError, DefaultNla, Emitable, Nla, NlasIterator, ParseableParametrized};

use super::generic::Generic;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// Drivers that had `ndo_xdp_xmit` before kernels could tell.
const DRIVERS: [&str; 16] = [
    "bnxt_en",
    "cpsw",
    "ena",
    "enetc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "mvneta",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "virtio_net",
];

/// Asks the kernel about devices.
#[derive(Debug)]
pub struct Features {
    netdev: Option<Generic>,
}

impl Features {
    /// Opens a socket, in the network namespace of this thread.
    #[must_use]
    pub fn open() -> Self {
        match Generic::open(Netdev::family_name()) {
            Ok(netdev) => Self { netdev: Some(netdev) },
            Err(error) => {
                tracing::info!("XDP features of devices are taken from a list of drivers: {error:#}");
                Self { netdev: None }
            }
        }
    }

    /// What XDP can do on the device (`NETDEV_XDP_ACT_*`); `None`: the kernel does not tell.
    #[must_use]
    pub fn xdp(&self, ifindex: u32) -> Option<u64> {
        xdp_features(self.netdev.as_ref()?, ifindex).ok()
    }

    /// Whether XDP can send out of the device at this moment.
    #[must_use]
    pub fn can_transmit(&self, ifindex: u32, name: &str) -> bool {
        let Some(netdev) = &self.netdev else { return has_listed_driver(name) };
        match xdp_features(netdev, ifindex) {
            Ok(features) => features & NETDEV_XDP_ACT_NDO_XMIT != 0,
            Err(error) => {
                tracing::debug!("{name}: {error:#}");
                false
            }
        }
    }
}

fn has_listed_driver(name: &str) -> bool {
    let link = fs::read_link(format!("/sys/class/net/{name}/device/driver"));
    let driver = link.ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    driver.is_some_and(|driver| DRIVERS.contains(&driver.as_str()))
}

fn xdp_features(netdev: &Generic, ifindex: u32) -> anyhow::Result<u64> {
    let attributes = vec![DefaultNla::new(NETDEV_A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec())];
    let answer = netdev.ask(Netdev { attributes })?;
    let value = answer.attributes.iter().find(|attribute| attribute.kind() == NETDEV_A_DEV_XDP_FEATURES);
    let value = value.context("the kernel does not tell this device's XDP features")?;
    let mut octets = vec![0; value.value_len()];
    value.emit_value(&mut octets);
    Ok(u64::from_ne_bytes(octets.as_slice().try_into().context("XDP features of a size that is not 8")?))
}

/// A message of family `netdev`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Netdev {
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        NETDEV_CMD_DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(octets: &[u8], _header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(octets)
            .map(|attribute| {
                attribute.map(|attribute| DefaultNla::new(attribute.kind(), attribute.value().to_vec()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { attributes })
    }
}
