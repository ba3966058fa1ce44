//! The tables as text: one line an entry, sorted, ids beside names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use vmlb_common::abi::{BackendFlags, Frontend, FrontendFlags, Gate, Role, ServiceFlags, Target};
use vmlb_common::wire::Protocol;

use super::Memory;

impl Memory {
    /// Everything as text. Slots are shown as shares; the gate as the ports it lets through and counts of hashed bits.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut out = String::new();
        self.dump_frontends(&mut out);
        self.dump_services(&mut out);
        self.dump_clients(&mut out);
        self.dump_backends(&mut out);
        self.dump_gate(&mut out);
        out
    }

    fn dump_frontends(&self, out: &mut String) {
        let v4 = self.frontends4.iter();
        let v4 = v4.map(|(key, value)| (IpAddr::from(key.address.octets), key.port, key.protocol, value));
        let v6 = self.frontends6.iter();
        let v6 = v6.map(|(key, value)| (IpAddr::from(key.address.octets), key.port, key.protocol, value));
        for (address, port, protocol, Frontend { service, flags: bits }) in v4.chain(v6) {
            let socket = std::net::SocketAddr::new(address, port);
            let admits = flags(*bits, &[(FrontendFlags::RANGES, "in ranges")]);
            let protocol = Protocol::new(protocol).name();
            line(out, &format!("frontend {socket} {protocol} -> service {service}{admits}"));
        }
    }

    fn dump_services(&self, out: &mut String) {
        for (id, name) in &self.service_names {
            let service = self.services.get(id).copied().unwrap_or_default();
            let mut shares: BTreeMap<&Target, usize> = BTreeMap::new();
            for target in self.selection(&service).unwrap_or_default() {
                *shares.entry(target).or_insert(0) += 1;
            }
            let shares: Vec<String> = shares
                .iter()
                .map(|(target, count)| format!("{}:{} x{count}", target.backend, target.port))
                .collect();
            let text = |octets: &[u8]| crate::plan::text_of(octets);
            line(
                out,
                &format!(
                    "service {id} {}/{} {} {}/{}{}{} slots {}+{} [{}]",
                    text(&name.namespace),
                    text(&name.name),
                    if name.port_name[0] == 0 { "-".to_owned() } else { text(&name.port_name) },
                    name.port,
                    Protocol::new(name.protocol).name(),
                    flags(
                        service.flags,
                        &[
                            (ServiceFlags::DROP_IF_EMPTY, "drop-if-empty"),
                            (ServiceFlags::LOCAL, "local"),
                            (ServiceFlags::RANDOM, "random"),
                        ]
                    ),
                    if service.affinity == 0 {
                        String::new()
                    } else {
                        format!(" affinity {}", service.affinity)
                    },
                    service.selection.offset,
                    service.selection.size,
                    shares.join(", ")
                ),
            );
        }
    }

    fn dump_clients(&self, out: &mut String) {
        let v4 =
            self.ranges4.keys().map(|key| (key.block.service, key.block.client.octets.into(), key.length));
        let v6 =
            self.ranges6.keys().map(|key| (key.block.service, key.block.client.octets.into(), key.length));
        let mut admitted: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (service, address, length) in v4.chain(v6) {
            let address: IpAddr = address;
            admitted.entry(service).or_default().push(format!(" {address}/{}", length.saturating_sub(32)));
        }
        for (service, ranges) in admitted {
            line(out, &format!("service {service} admits{}", ranges.concat()));
        }
        let mut kept: BTreeMap<(u32, u16), Vec<String>> = BTreeMap::new();
        for key in self.eligible.keys() {
            kept.entry((key.service, key.role)).or_default().push(format!(" {}:{}", key.backend, key.port));
        }
        for ((service, role), targets) in kept {
            let what = if role == Role::NEW { "clients" } else { "datagrams" };
            line(out, &format!("service {service} keeps {what} with{}", targets.concat()));
        }
    }

    fn dump_backends(&self, out: &mut String) {
        let bits = [(BackendFlags::LOCAL, "local")];
        for (id, name) in &self.backend_names {
            let text = |octets: &[u8]| crate::plan::text_of(octets);
            let turned = self.turned(*id);
            let side = |side: u32| -> Vec<String> {
                let ends = self.endpoints(*id, side).into_iter();
                ends.map(|(address, of)| format!(" {address}{}", flags(of, &bits))).collect()
            };
            let (present, other) = (side(turned.side()), side(1 - turned.side()));
            let other = match (turned.is_expected(), other.is_empty()) {
                (true, _) => format!(" expected at{}", other.concat()),
                (false, false) => format!(" beside{}", other.concat()),
                (false, true) => String::new(),
            };
            line(
                out,
                &format!(
                    "backend {id} {} {}/{} uid {} node {}{}{}{other}",
                    if name.vm == 1 { "vm" } else { "pod" },
                    text(&name.namespace),
                    text(&name.name),
                    text(&name.uid),
                    if name.node[0] == 0 { "-".to_owned() } else { text(&name.node) },
                    if name.weight == 100 { String::new() } else { format!(" weight {}", name.weight) },
                    if present.is_empty() { " gone".to_owned() } else { present.concat() },
                ),
            );
        }
        let v4 = self.pods4.iter().map(|(address, pod)| (IpAddr::from(address.octets), pod.backend));
        let v6 = self.pods6.iter().map(|(address, pod)| (IpAddr::from(address.octets), pod.backend));
        for (address, backend) in v4.chain(v6) {
            line(out, &format!("pod {address} -> backend {backend}"));
        }
        for (key, target) in &self.tags {
            line(
                out,
                &format!(
                    "tag {:#06x} of service {} -> {}:{}",
                    key.tag, key.service, target.backend, target.port
                ),
            );
        }
        let nodes = self.nodes4.keys().map(|address| IpAddr::from(address.octets));
        for node in nodes.chain(self.nodes6.keys().map(|address| IpAddr::from(address.octets))) {
            line(out, &format!("node {node}"));
        }
        for (key, count) in &self.targets {
            let protocol = Protocol::new(key.protocol).name();
            line(out, &format!("target {}:{} {protocol} services {count}", key.backend, key.port));
        }
    }

    fn dump_gate(&self, out: &mut String) {
        for (index, device) in &self.devices {
            let (v4, v6) = (IpAddr::from(device.snat_v4.octets), IpAddr::from(device.snat_v6.octets));
            line(out, &format!("device {index} flags {:#x} snat {v4} {v6}", device.flags));
        }
        for (name, gate) in
            [("frontend", Gate::FRONTEND_PORTS), ("SNAT", Gate::SNAT_PORTS), ("target", Gate::TARGET_PORTS)]
        {
            let ports = ranges(&self.bits(gate));
            if !ports.is_empty() {
                line(out, &format!("gate {name} ports {ports}"));
            }
        }
        let hashed = [
            ("frontend", Gate::FRONTEND_ADDRESSES),
            ("SNAT", Gate::SNAT_ADDRESSES),
            ("local pod", Gate::LOCAL_PODS),
        ];
        for (name, gate) in hashed {
            let count = self.bits(gate).len();
            if count > 0 {
                line(out, &format!("gate {name} addresses {count}"));
            }
        }
    }

    fn bits(&self, gate: Gate) -> Vec<u16> {
        (0..=u16::MAX).filter(|bit| self.gate(gate, *bit)).collect()
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    writeln!(out, "{text}").unwrap_or_default();
}

fn flags(value: u32, names: &[(u32, &str)]) -> String {
    let set = names.iter().filter(|(bit, _)| value & bit != 0);
    set.map(|(_, name)| format!(" {name}")).collect()
}

fn ranges(ports: &[u16]) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => runs.push((*port, *port)),
        }
    }
    let runs = runs
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    runs.collect::<Vec<_>>().join(",")
}
