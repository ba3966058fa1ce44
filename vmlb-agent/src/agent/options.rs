//! The flags of `vmlb agent`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vmlb_common::abi::PortRange;

use super::source::SourceFlags;
use crate::http;
use crate::interface::flag::DeviceFlag;
use crate::interface::straight::LocalDelivery;
use crate::loader::Sizes;
use crate::logging;
use crate::pins::DEFAULT_ROOT;
use crate::serving::Serving;
use crate::settings::tunnel::TunnelFlags;
use crate::settings::{self, ClampFlag, SnatPorts, TimeoutFlag, ports};

/// Options of `vmlb agent`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb agent                                      in a pod, by its service account; or by ~/.kube/config
  vmlb agent --kubeconfig admin.conf --context lab --node-name node-a
  vmlb agent --manifests /etc/vmlb --node-name node-a
  vmlb agent --manifests /etc/vmlb --node-name node-a --device eth0 --device 'eth1*=tc' --flows 1000000

The agent may be stopped, killed, restarted and upgraded at any time: programs and maps stay, traffic goes on.
`vmlb detach` takes everything down.")]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub source: SourceFlags,
    /// Devices by which clients and other nodes are reached, by native XDP or by TC: a name, or a pattern with `*` and `?`
    /// for those that are there and those that come; may be given several times. Without it: the devices of the default
    /// routes and of the node's InternalIP. XDP where the driver has it, TC on a veth
    #[arg(long = "device", value_name = "PATTERN[=xdp|tc]")]
    pub devices: Vec<DeviceFlag>,
    /// Folder of pins, on a BPF file system; one per agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub pin_root: PathBuf,
    /// Ports that SNAT may use, up to four ranges. Without it: 1024-29999 and 61000-65535 less net.ipv4.ip_local_port_range
    /// and less the node ports
    #[arg(long, value_name = "A-B,C-D")]
    pub snat_ports: Option<SnatPorts>,
    /// The cluster's node ports (the API server's --service-node-port-range)
    #[arg(long, value_name = "A-B", default_value = "30000-32767", value_parser = ports::range)]
    pub node_port_range: PortRange,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub serving: Serving,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub tunnel: TunnelFlags,
    /// How packets reach VMs of this node whose client's address is kept: by the node's stack, or straight into the pod's device
    /// and back past it, which no rule of netfilter and no CNI's program there sees. `peer` leaves those pods to the stack where
    /// such rules or programs of others are found, `peer-forced` does not look. Flows keep what they began with
    #[arg(long, value_enum, value_name = "stack|peer|peer-forced", default_value_t)]
    pub local_delivery: LocalDelivery,
    /// What TCP's maximum segment size is lowered to in SYN and SYN-ACK, never raised: what fits the tunnel or the way that vmlb
    /// sends them by (auto), these octets if they are fewer, or nothing
    #[arg(long, value_name = "auto|off|OCTETS", default_value_t)]
    pub clamp_mss: ClampFlag,
    /// When idle flows end; those not named keep their default
    #[arg(long, value_name = "NAME=TIME,...", default_value_t)]
    pub timeout: TimeoutFlag,
    /// Refusals (TCP resets, ICMP port unreachable) that XDP may send in a second, for each CPU; over that packets are
    /// dropped. 0: refusing is left to the node's stack
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub reject_rate: u32,
    /// Time between two ageing passes over the flow tables (ms, s, m)
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = settings::duration)]
    pub sweep_interval: Duration,
    /// Log every step of every packet of ours (slow; for one packet at a time)
    #[arg(long)]
    pub trace: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub sizes: Sizes,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub http: http::Flags,
    /// Time between two looks at what netlink may not have told
    #[arg(long, hide = true, value_name = "TIME", default_value = "15s", value_parser = settings::duration)]
    pub review_interval: Duration,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub logging: logging::LogFlags,
    /// Attach TC programs by clsact filters even where there is TCX
    #[arg(long, hide = true)]
    pub clsact: bool,
}
