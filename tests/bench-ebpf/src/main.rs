//! The programs around the one that a bench measures. A program run does not restore the packet between repeats, so the
//! wrapper writes it anew each time, of the next flow, and tail-calls the target; with an empty target the same run
//! tells what to subtract, and the yardstick how fast the machine is at that moment.

#![no_std]
#![no_main]

mod course;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, HashMap, ProgramArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use course::{Course, FRAME, Varied};

#[btf_map(name = "course")]
static COURSE: Array<Course, 1> = Array::new();
#[btf_map(name = "targets")]
static TARGETS: ProgramArray<4> = ProgramArray::new();
#[btf_map(name = "yardstick")]
static YARDSTICK: HashMap<Key, u64, 65_536> = HashMap::new();

/// Sixteen octets.
type Key = [u64; 2];

/// Writes the next packet and hands it to the target.
#[xdp]
pub fn bench_wrapper(ctx: XdpContext) -> u32 {
    let Some(course) = COURSE.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: a value of the array, which only this program and, between runs, the bench write.
    let course = unsafe { &mut *course };
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + FRAME > end {
        return xdp_action::XDP_ABORTED;
    }
    let number = course.next.wrapping_mul(course.stride) & course.last;
    course.next = course.next.wrapping_add(1);
    let source = lane(course.source, number);
    let destination = lane(course.destination, number);
    let source_port = lane(course.source_port, number);
    let destination_port = lane(course.destination_port, number);
    let frame = &course.frame;
    let packet = data as *mut u64;
    // Whole words of eight octets, each written once: loads of the target that meet two pending stores would stall.
    // SAFETY: `FRAME` octets were compared with the packet's end; program runs align packets to eight.
    unsafe {
        packet.write(frame[0]);
        packet.add(1).write(frame[1]);
        packet.add(2).write(frame[2]);
        packet.add(5).write(frame[5]);
        packet.add(8).write(frame[8]);
        packet.add(9).write(frame[9]);
        if course.family == 4 {
            packet.add(3).write(frame[3] | source << 32);
            packet.add(4).write(frame[4] | destination | source_port << 16 | destination_port << 32);
            packet.add(6).write(frame[6]);
            packet.add(7).write(frame[7]);
        } else {
            packet.add(3).write(frame[3]);
            packet.add(4).write(frame[4] | source << 32);
            packet.add(6).write(frame[6] | destination << 32 | source_port << 48);
            packet.add(7).write(frame[7] | destination_port);
        }
        TARGETS.tail_call(&ctx, course.target);
    }
    xdp_action::XDP_ABORTED
}

/// The field as it lies in the lowest 16 bits of a word of the packet.
#[inline(always)]
fn lane(field: Varied, number: u64) -> u64 {
    u64::from(field.of(number).to_be())
}

/// What is subtracted.
#[xdp]
pub fn bench_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// One hit in a hash table with a key of 16 octets.
#[xdp]
pub fn bench_yardstick(_ctx: XdpContext) -> u32 {
    let key: Key = [0x6b72_6179, 0x6b63_6974];
    match YARDSTICK.get_ptr(&key) {
        Some(_) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
