//! What a Service says of its clients: who stays with a backend, and who is admitted.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::super::{Findings, shorten};
use crate::facts::Cidr;
use crate::index::service::Left;

const STACK: &str = "leave the Service to kube-proxy, or mend the field";

/// Seconds of affinity where the Service does not say, as the API server fills in.
const AFFINITY: u32 = 10_800;
/// The API server admits no more.
const LONGEST_AFFINITY: i32 = 86_400;

/// The seconds of `sessionAffinity`, 0 for none.
pub(super) fn affinity(spec: &ServiceSpec, findings: &mut Findings) -> Result<u32, Left> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(0),
        Some("ClientIP") => {}
        Some(other) => {
            let message =
                format!("{:?} is not known; the Service is left to the node's stack", shorten(other));
            findings.warn("spec.sessionAffinity", message, STACK);
            return Err(Left::Affinity);
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else { return Ok(AFFINITY) };
    let valid = u32::try_from(seconds).ok().filter(|_| (1..=LONGEST_AFFINITY).contains(&seconds));
    Ok(valid.unwrap_or_else(|| {
        let message = format!("{seconds} is not possible; {AFFINITY} is used, as without the field");
        let remedy = "use 1 to 86400";
        findings.warn("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message, remedy);
        AFFINITY
    }))
}

/// The blocks of `loadBalancerSourceRanges`, which only load balancers have; sorted, each once.
pub(super) fn ranges(spec: &ServiceSpec, kind: &str, findings: &mut Findings) -> Result<Vec<Cidr>, Left> {
    if kind != "LoadBalancer" {
        return Ok(Vec::new());
    }
    let mut ranges = Vec::new();
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let Ok(range) = text.trim().parse::<Cidr>() else {
            // Without it clients would be turned away, or let in, that the Service means otherwise.
            let text = shorten(text);
            let message = format!(
                "{text:?} is not a block of addresses such as 192.0.2.0/24; the Service is left to the node's stack"
            );
            findings.warn(&format!("spec.loadBalancerSourceRanges[{index}]"), message, STACK);
            return Err(Left::SourceRanges);
        };
        ranges.push(range);
    }
    ranges.sort_unstable();
    ranges.dedup();
    Ok(ranges)
}
