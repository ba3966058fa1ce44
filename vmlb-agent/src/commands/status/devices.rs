//! The devices that programs are on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use vmlb_common::abi::{Device, DeviceFlags, names};

use crate::bpf::{LinkHook, PinnedMap};
use crate::loader::attach::{Mode, links};
use crate::pins::PinRoot;
use crate::state::State;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceStatus {
    pub name: String,
    pub ifindex: u32,
    pub mode: Option<Mode>,
    pub flags: Vec<&'static str>,
    pub snat_v4: Option<IpAddr>,
    pub snat_v6: Option<IpAddr>,
    /// Why not by XDP.
    pub reason: Option<String>,
    /// The device that carries it and has its XDP program, with tags.
    pub on: Option<String>,
}

/// Names and modes come from the links that are pinned; filters of clsact have no pins, there the agent's word counts.
pub(super) fn read(root: &PinRoot, state: Option<&State>) -> anyhow::Result<Vec<DeviceStatus>> {
    let map: PinnedMap<u32, Device> = PinnedMap::open(root, names::DEVICES)?;
    let mut known: BTreeMap<u32, (String, Option<Mode>)> = BTreeMap::new();
    for link in links(root)? {
        if let (Some((name, _)), Some(target)) = (link.named, link.target) {
            let entry = known.entry(target.ifindex).or_insert((name, Some(Mode::Tc)));
            if target.hook == LinkHook::Xdp {
                entry.1 = Some(Mode::Xdp);
            }
        }
    }
    let told = |ifindex: u32| state?.devices.iter().find(|device| device.ifindex == ifindex);
    let mut devices: Vec<DeviceStatus> = map
        .all()?
        .into_iter()
        .filter(|(ifindex, _)| *ifindex != Device::NODE)
        .map(|(ifindex, device)| {
            let told = told(ifindex);
            let (name, mode) = known.get(&ifindex).cloned().unwrap_or_else(|| {
                (told.map_or_else(|| "?".to_owned(), |told| told.name.clone()), told.map(|told| told.mode))
            });
            let v4 = IpAddr::from(device.snat_v4.octets);
            let v6 = IpAddr::from(device.snat_v6.octets);
            DeviceStatus {
                name,
                ifindex,
                mode: told.filter(|told| told.on.is_some()).map_or(mode, |told| Some(told.mode)),
                flags: flags(device.flags),
                snat_v4: Some(v4).filter(|address| !address.is_unspecified()),
                snat_v6: Some(v6).filter(|address| !address.is_unspecified()),
                reason: told.and_then(|told| told.reason.clone()),
                on: told.and_then(|told| told.on.clone()),
            }
        })
        .collect();
    devices.sort_by_key(|device| device.ifindex);
    Ok(devices)
}

fn flags(bits: u32) -> Vec<&'static str> {
    let words = [
        (DeviceFlags::UPLINK, "uplink"),
        (DeviceFlags::XDP_TRANSMIT, "xdp-transmit"),
        (DeviceFlags::POD_SIDE, "pod-side"),
        (DeviceFlags::DIRECT, "direct"),
        (DeviceFlags::OVERLAY, "overlay"),
        (DeviceFlags::NO_METADATA, "no-metadata"),
        (DeviceFlags::CARRIED, "carried"),
    ];
    words.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| word).collect()
}
