//! TC programs of others on pods' devices: what a CNI judges its pods' packets by.

use aya::programs::{SchedClassifier, TcAttachType};
use futures_util::stream::TryStreamExt;

use super::watch::Netlink;
use super::{Interfaces, Link};
use crate::loader::attach::clsact;

/// How the names of vmlb's programs begin.
const OURS: &str = "vmlb_";

/// What others have on a device, or on the ports of a bridge.
pub(super) async fn of_others(netlink: &Netlink, interfaces: &Interfaces, ifindex: u32) -> Option<String> {
    let is_there = |link: &&Link| link.ifindex == ifindex || link.controller == Some(ifindex);
    for link in interfaces.links().filter(is_there) {
        if let Some(name) = program(link) {
            return Some(format!("{name} is at TC of {}", link.name));
        }
        if filters(netlink, link).await {
            return Some(format!("a filter of another's is at TC of {}", link.name));
        }
    }
    None
}

/// The name of another's TCX program; none on kernels without TCX, or on a device that has just gone.
fn program(link: &Link) -> Option<String> {
    [TcAttachType::Ingress, TcAttachType::Egress].into_iter().find_map(|direction| {
        let (_, programs) = SchedClassifier::query_tcx(&link.name, direction).ok()?;
        let others = programs.iter().map(|program| match program.name_as_str() {
            Some("") | None => "a program without a name".to_owned(),
            Some(name) => format!("program {name}"),
        });
        others.into_iter().find(|name| !name.contains(OURS))
    })
}

/// Whether another's filters are at the device's clsact or ingress qdisc. What cannot be listed counts as one.
async fn filters(netlink: &Netlink, link: &Link) -> bool {
    let Ok(index) = i32::try_from(link.ifindex) else { return true };
    let ask = || netlink.handle().traffic_filter(index).get();
    for question in [ask().ingress(), ask().egress()] {
        let mut answers = question.execute();
        loop {
            match answers.try_next().await {
                Ok(None) => break,
                Ok(Some(filter)) if clsact::is_ours(filter.header.info >> 16, filter.header.handle.minor) => {
                }
                Ok(Some(_)) => return true,
                Err(error) => {
                    tracing::debug!("TC filters of {} are not listed: {error}", link.name);
                    return true;
                }
            }
        }
    }
    false
}
