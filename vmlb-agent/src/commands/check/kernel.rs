//! The kernel, the BPF file system, this process's rights, and limits.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Finding, Weight};

/// Bits of `CapEff`.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const SYS_ADMIN: u32 = 21;

pub(super) fn look() -> Vec<Finding> {
    let mut findings = Vec::new();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = version(release.trim());
    findings.extend(version.map(|version| about_version(release.trim(), version)));
    findings.push(jit(&fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default()));
    let rights = effective(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    findings.push(about_rights(rights));
    findings.push(bpffs(rights));
    findings.extend(limits(version));
    findings
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn about_version(release: &str, version: (u32, u32)) -> Finding {
    const SUBJECT: &str = "kernel";
    match version {
        // bpf_link for XDP; CAP_BPF is from 5.8.
        (major, minor) if (major, minor) < (5, 9) => Finding::new(
            Weight::Problem,
            SUBJECT,
            format!("Linux {release}: programs cannot be attached to XDP by links that are pinned"),
            "update to Linux 5.9 or newer; 6.6 or newer is advised",
        ),
        (major, minor) if (major, minor) < (6, 6) => Finding::new(
            Weight::Note,
            SUBJECT,
            format!(
                "Linux {release} has no TCX: TC programs are attached by clsact filters, as other tools do"
            ),
            "",
        ),
        _ => Finding::ok(SUBJECT, format!("Linux {release}")),
    }
}

fn jit(enabled: &str) -> Finding {
    match enabled.trim() {
        "0" => Finding::new(
            Weight::Warning,
            "jit",
            "BPF programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // Not there: compiled in for good.
        _ => Finding::ok("jit", "BPF programs are compiled"),
    }
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

fn about_rights(rights: u64) -> Finding {
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| rights >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Finding::ok("rights", "this process may load and attach programs");
    }
    Finding::new(
        Weight::Problem,
        "rights",
        format!("this process lacks {}", missing.join(", ")),
        "run as root, or with these capabilities",
    )
}

fn bpffs(rights: u64) -> Finding {
    const ROOT: &str = "/sys/fs/bpf";
    let is_mounted = statfs(ROOT).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    match (is_mounted, rights >> SYS_ADMIN & 1 == 1) {
        (true, _) => Finding::ok("bpffs", format!("{ROOT} is mounted")),
        (false, true) => {
            Finding::new(Weight::Note, "bpffs", format!("{ROOT} is not mounted: the agent mounts it"), "")
        }
        (false, false) => Finding::new(
            Weight::Problem,
            "bpffs",
            format!("{ROOT} is not mounted, and without CAP_SYS_ADMIN the agent cannot mount it"),
            format!("mount -t bpf bpf {ROOT}, at every start of the node"),
        ),
    }
}

fn limits(version: Option<(u32, u32)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Since 5.11 maps count as memory of the cgroup.
    if version.is_some_and(|version| version < (5, 11))
        && let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft < 512 << 20
    {
        findings.push(Finding::new(
            Weight::Problem,
            "limits",
            format!("{} KiB of locked memory are allowed, too few for the maps", soft >> 10),
            "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)",
        ));
    }
    let available = available(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    if let Some(mebibytes) = available.filter(|mebibytes| *mebibytes < 512) {
        findings.push(Finding::new(
            Weight::Warning,
            "limits",
            format!("{mebibytes} MiB of memory are free; maps of the default sizes take 316"),
            "give the agent smaller tables: --flows, --half-flows, --slots",
        ));
    }
    findings
}

/// MiB that may be had without swapping.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_what_they_can_attach() {
        let weight = |release: &str| version(release).map(|version| about_version(release, version).weight);
        assert_eq!(weight("5.4.0-150-generic"), Some(Weight::Problem));
        assert_eq!(weight("5.14.0-427.el9.x86_64"), Some(Weight::Note));
        assert_eq!(weight("6.18.4"), Some(Weight::Ok));
        assert_eq!(weight("x"), None);
    }

    #[test]
    fn missing_rights_are_named() {
        assert_eq!(about_rights(u64::MAX).weight, Weight::Ok);
        let finding = about_rights(effective("Name:\tx\nCapEff:\t0000000000001000\n"));
        assert_eq!(finding.message, "this process lacks CAP_PERFMON, CAP_BPF");
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:  204800 kB\n"), Some(200));
        assert_eq!(jit("0\n").weight, Weight::Warning);
    }
}
