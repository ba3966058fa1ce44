//! Reads BPF instructions for two things: how far below the frame pointer a function reaches, and whom it calls.

/// The verifier rounds each frame up to this many octets; newer kernels with a JIT round to 16, so this is the safe side.
pub const ROUNDING: u32 = 32;

/// Register 10, the frame pointer.
const FRAME: usize = 10;

/// A call of another function of the object.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Octets from the function's start to the call.
    pub offset: u64,
    /// The instruction's immediate: distance in instructions from the next one, unless a relocation says else.
    pub immediate: i32,
}

/// What one function does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Octets below the frame pointer.
    pub frame: u32,
    /// Calls in order.
    pub calls: Vec<Call>,
}

/// One instruction of 8 octets (kernel `struct bpf_insn`, little endian).
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: usize,
    source: usize,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn decode(octets: &[u8; 8]) -> Self {
        let [code, registers, low, high, a, b, c, d] = *octets;
        Self {
            code,
            destination: usize::from(registers & 15),
            source: usize::from(registers >> 4),
            offset: i16::from_le_bytes([low, high]),
            immediate: i32::from_le_bytes([a, b, c, d]),
        }
    }

    fn class(self) -> u8 {
        self.code & 7
    }
}

// Instruction classes and codes, kernel Documentation/bpf/standardization/instruction-set.rst.
const LD: u8 = 0;
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU: u8 = 4;
const ALU64: u8 = 7;
const LOAD_CONSTANT: u8 = 0x18;
const CALL: u8 = 0x85;
const MOVE_REGISTER: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
/// Source "register" of a call to a function of the same program.
const PSEUDO_CALL: usize = 1;

/// Scans a function's code. Registers that hold frame addresses are followed in the order of the code, which is how
/// compilers use them: the copy stands right before its use.
pub fn scan(code: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let mut address: [Option<i32>; 16] = [None; 16];
    address[FRAME] = Some(0);
    let mut instructions = code.as_chunks::<8>().0.iter().enumerate();
    while let Some((index, octets)) = instructions.next() {
        let instruction = Instruction::decode(octets);
        if instruction.code == CALL && instruction.source == PSEUDO_CALL {
            scan.calls.push(Call { offset: index as u64 * 8, immediate: instruction.immediate });
        }
        let reached = reach(instruction, &address);
        follow(instruction, &mut address);
        let depth = reached.into_iter().chain(address[instruction.destination]).min().unwrap_or(0);
        scan.frame = scan.frame.max(depth.min(0).unsigned_abs());
        if instruction.code == LOAD_CONSTANT {
            instructions.next();
        }
    }
    scan
}

/// The frame address that a load or store touches.
fn reach(instruction: Instruction, address: &[Option<i32>; 16]) -> Option<i32> {
    let base = match instruction.class() {
        LDX => instruction.source,
        ST | STX => instruction.destination,
        _ => return None,
    };
    Some(address[base]? + i32::from(instruction.offset))
}

/// What an instruction leaves in its destination register.
fn follow(instruction: Instruction, address: &mut [Option<i32>; 16]) {
    let written = instruction.destination;
    match (instruction.code, instruction.class()) {
        _ if written == FRAME => {}
        (MOVE_REGISTER, _) if instruction.offset == 0 => address[written] = address[instruction.source],
        (ADD_CONSTANT, _) => {
            address[written] = address[written].and_then(|at| at.checked_add(instruction.immediate));
        }
        (CALL, _) => address[..6].fill(None),
        (_, LD | LDX | ALU | ALU64) => address[written] = None,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = immediate.to_le_bytes();
        [code, destination | source << 4, low, high, a, b, c, d]
    }

    #[test]
    fn a_store_below_the_frame_pointer_is_the_frame() {
        // *(u64 *)(r10 - 24) = r1; exit
        let code = [instruction(0x7b, 10, 1, -24, 0), instruction(0x95, 0, 0, 0, 0)].concat();
        assert_eq!(scan(&code), Scan { frame: 24, calls: vec![] });
    }

    #[test]
    fn a_buffer_handed_to_a_helper_counts() {
        // r2 = r10; r2 += -80; call helper 1
        let code = [
            instruction(MOVE_REGISTER, 2, 10, 0, 0),
            instruction(ADD_CONSTANT, 2, 0, 0, -80),
            instruction(CALL, 0, 0, 0, 1),
        ];
        assert_eq!(scan(&code.concat()), Scan { frame: 80, calls: vec![] });
    }

    #[test]
    fn a_register_loaded_anew_is_no_frame_address() {
        // r2 = r10; r2 = *(u64 *)(r1 + 0); *(u8 *)(r2 - 100) = 0
        let code = [
            instruction(MOVE_REGISTER, 2, 10, 0, 0),
            instruction(0x79, 2, 1, 0, 0),
            instruction(0x72, 2, 0, -100, 0),
        ];
        assert_eq!(scan(&code.concat()), Scan::default());
    }

    #[test]
    fn the_second_half_of_a_long_constant_is_no_instruction() {
        let code = [
            instruction(LOAD_CONSTANT, 1, 0, 0, 7),
            [CALL, 0x10, 0, 0, 9, 0, 0, 0],
            instruction(CALL, 0, 1, 0, -1),
        ];
        assert_eq!(scan(&code.concat()).calls, [Call { offset: 16, immediate: -1 }]);
    }
}
