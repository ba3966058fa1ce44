//! The wrapper program, and timed runs of it.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use nix::time::{ClockId, clock_gettime};

use super::course::{Course, FRAME};

// SAFETY: repr(C) of numbers without gaps; any bit pattern is valid.
unsafe impl Pod for Course {}

/// Where the wrapper sends its packets: indexes of its map `targets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Target {
    /// A program that returns at once.
    Empty = 0,
    /// A program with one hit in a hash table with a key of 16 octets.
    Yardstick = 1,
    /// The program that is measured.
    Measured = 2,
}

/// `XDP_PASS`: what the empty target and the yardstick return.
pub const PASS: u32 = 2;
/// `XDP_TX`.
pub const TRANSMIT: u32 = 3;

/// The key of the yardstick's hit, as in the program.
const YARDSTICK: [u64; 2] = [0x6b72_6179, 0x6b63_6974];

/// The loaded bench object.
pub struct Harness {
    ebpf: Ebpf,
    // Holds the programs while the kernel refers to them.
    _targets: ProgramArray<MapData>,
    course: Array<MapData, Course>,
    ifindex: u32,
}

/// What a run of the wrapper showed.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// CPU time of all packets, ns.
    pub nanoseconds: u64,
    /// What the target returned for the last packet.
    pub action: u32,
    /// The last packet as the target left it.
    pub frame: [u8; FRAME],
}

impl Harness {
    /// Loads `object` around `measured`; packets will seem to come from the device `ifindex` of the calling thread's
    /// namespace, which needs a registered queue (an XDP program does that for a veth).
    pub fn load(object: &[u8], measured: &ProgramFd, ifindex: u32) -> Result<Self> {
        let mut ebpf = Ebpf::load(object).context("loading the bench object")?;
        let mut targets = ProgramArray::try_from(ebpf.take_map("targets").context("no map targets")?)?;
        targets.set(Target::Measured as u32, measured, 0).context("setting the measured target")?;
        for (name, target) in [("bench_empty", Target::Empty), ("bench_yardstick", Target::Yardstick)] {
            let program = program(&mut ebpf, name)?;
            program.load()?;
            targets.set(target as u32, program.fd()?, 0)?;
        }
        program(&mut ebpf, "bench_wrapper")?.load()?;
        let mut yardstick: HashMap<_, [u64; 2], u64> =
            HashMap::try_from(ebpf.map_mut("yardstick").context("no map yardstick")?)?;
        yardstick.insert(YARDSTICK, 1, 0)?;
        let course = Array::try_from(ebpf.take_map("course").context("no map course")?)?;
        Ok(Self { ebpf, _targets: targets, course, ifindex })
    }

    /// Sets what the next runs are about.
    pub fn set_course(&mut self, course: &Course) -> Result<()> {
        self.course.set(0, course, 0).context("writing the course")
    }

    /// Runs the wrapper for the next `count` packets.
    pub fn run(&mut self, target: Target, count: u32) -> Result<Run> {
        let course = Course { target: target as u32, ..self.course.get(&0, 0)? };
        self.set_course(&course)?;
        let wrapper = program(&mut self.ebpf, "bench_wrapper")?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, u32::try_from(FRAME)?, 0, self.ifindex, 0, 0]
            .into_iter()
            .flat_map(|word: u32| word.to_ne_bytes())
            .collect();
        let (blank, mut frame) = ([0; FRAME], [0; FRAME]);
        // The thread's own CPU time: what other processes take on this CPU meanwhile is not in it, and neither is the
        // kernel's rounding of its own answer to whole nanoseconds.
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let result = wrapper.test_run(TestRunOptions {
            data_in: Some(&blank),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            repeat: count,
            ..TestRunOptions::new()
        });
        let took = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
        let result = result.context("running the wrapper program")?;
        ensure!(
            result.data_size_out as usize == FRAME,
            "the frame has become {} octets",
            result.data_size_out
        );
        let took = std::time::Duration::from(took);
        Ok(Run { nanoseconds: u64::try_from(took.as_nanos())?, action: result.return_value, frame })
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name} in the bench object"))?;
    Ok(program.try_into()?)
}
