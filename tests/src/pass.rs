//! An XDP program that passes everything, for the far ends of cables.
//!
//! A veth puts the frames of its neighbour's `XDP_TX` on a ring that, as of Linux 6.18, it only wakes up for where an XDP
//! program is attached (`veth_xdp_flush` looks at the program; `ndo_xdp_xmit`, for redirects, at NAPI, which GRO
//! enables too). Without one, such frames wait until any other packet comes along.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// `r0 = XDP_PASS; exit`, as the kernel's instructions of eight octets.
const PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// `BPF_OBJ_PIN` and `BPF_PROG_LOAD` of `enum bpf_cmd`, `BPF_PROG_TYPE_XDP` of `enum bpf_prog_type`.
const OBJ_PIN: libc::c_long = 6;
const PROG_LOAD: libc::c_long = 5;
const TYPE_XDP: u32 = 6;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what follows as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
}

/// The beginning of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

/// Attaches the program to `device` of `host` for as long as the device exists. `scratch` is a path in bpffs that is
/// free, and free again afterwards.
pub fn attach(host: &Namespace, device: &str, scratch: &Path) -> Result<()> {
    let program = load().context("loading an XDP program that passes everything")?;
    pin(&program, scratch).with_context(|| format!("pinning at {}", scratch.display()))?;
    let path = scratch.to_str().context("pins have plain names")?;
    let attached = host.output("ip", &["link", "set", "dev", device, "xdpdrv", "pinned", path]);
    fs::remove_file(scratch)?;
    attached.map(drop)
}

fn load() -> io::Result<OwnedFd> {
    let license = c"GPL";
    let request = Load {
        kind: TYPE_XDP,
        instructions: PROGRAM.len() as u32,
        program: PROGRAM.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: the request outlives the call, and so does what its pointers lead to, with the lengths it states.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const request, size_of::<Load>()) };
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn pin(program: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let object = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let request = Pin { path: path.as_ptr() as u64, object, flags: 0 };
    // SAFETY: the request and the path it points to, which ends with a zero, outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const request, size_of::<Pin>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
