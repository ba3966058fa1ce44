//! What is in a BPF object: its programs, how large they are and how much stack their call chains take, and whether
//! a panic path was linked in.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use object::build::elf::SectionData;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind,
    SymbolIndex, SymbolKind,
};

use crate::stack::{self, Call};

/// Octets of an instruction; a 64-bit constant takes two.
pub const INSTRUCTION: u64 = 8;

/// One program of an object, with all functions it calls.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Name of its entry function.
    pub name: String,
    /// Section of the entry, which tells the program's type.
    pub section: String,
    /// Instructions of the entry and of the functions it reaches, each counted once.
    pub instructions: u64,
    /// Functions it reaches, the entry included.
    pub functions: usize,
    /// The chain of calls that takes most stack, from the entry down: function and octets, rounded as the verifier
    /// does.
    pub chain: Vec<(String, u32)>,
}

impl Program {
    /// Octets of stack along the deepest chain of calls.
    pub fn stack(&self) -> u32 {
        self.chain.iter().map(|(_, frame)| frame).sum()
    }
}

/// A function of the object.
struct Function {
    name: String,
    section: SectionIndex,
    address: u64,
    size: u64,
    global: bool,
    frame: u32,
    calls: Vec<usize>,
}

/// Reads an object.
///
/// # Errors
/// It is no BPF object, has no BTF, or contains a panic path.
pub fn programs(bytes: &[u8]) -> Result<Vec<Program>> {
    let file = object::File::parse(bytes).context("not an ELF object")?;
    refuse_panics(&file)?;
    if file.section_by_name(".BTF").is_none() {
        bail!("the object has no BTF: maps and programs would have no types in bpftool");
    }
    let functions = functions(&file)?;
    let mut programs = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        let section = file.section_by_index(function.section)?;
        let name = section.name()?;
        if function.global && name != ".text" {
            programs.push(program(&functions, index, name));
        }
    }
    if programs.is_empty() {
        bail!("the object has no programs");
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// A panic path links cleanly and is refused only by the verifier, with a message that names neither file nor line.
fn refuse_panics(file: &object::File<'_>) -> Result<()> {
    let symbols = file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned));
    let panics: Vec<_> = symbols.filter(|name| name.contains("panicking")).collect();
    if !panics.is_empty() {
        bail!(
            "a panic path is in the object: {}. The kernel would refuse it. Look for indexing, slicing, division, \
             `unwrap` and arithmetic with overflow checks in what changed last",
            panics.join(", ")
        );
    }
    Ok(())
}

/// All functions, with their frames and calls.
fn functions(file: &object::File<'_>) -> Result<Vec<Function>> {
    let mut functions = Vec::new();
    let mut by_symbol = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(section) = symbol.section_index() else { continue };
        by_symbol.insert(symbol.index(), functions.len());
        functions.push(Function {
            name: symbol.name()?.to_owned(),
            section,
            address: symbol.address(),
            size: symbol.size(),
            global: symbol.is_global(),
            frame: 0,
            calls: Vec::new(),
        });
    }
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let data = section.data()?;
        let relocations = relocations(&section);
        for index in 0..functions.len() {
            if functions[index].section != section.index() {
                continue;
            }
            let start = functions[index].address;
            let code = usize::try_from(start)
                .ok()
                .zip(usize::try_from(start + functions[index].size).ok())
                .and_then(|(start, end)| data.get(start..end))
                .with_context(|| format!("function {} leaves its section", functions[index].name))?;
            let scan = stack::scan(code);
            let targets =
                scan.calls.iter().map(|call| target(file, &functions, &by_symbol, &relocations, start, call));
            let calls = targets.collect::<Result<Vec<_>>>()?;
            functions[index].frame = scan.frame;
            functions[index].calls = calls;
        }
    }
    Ok(functions)
}

/// Offset in the section → symbol, for the relocations that name symbols.
fn relocations(section: &object::Section<'_, '_>) -> HashMap<u64, SymbolIndex> {
    let named = section.relocations().filter_map(|(offset, relocation)| match relocation.target() {
        RelocationTarget::Symbol(symbol) => Some((offset, symbol)),
        _ => None,
    });
    named.collect()
}

/// The function that a call reaches: by relocation to the function or to its section, else within the section.
fn target(
    file: &object::File<'_>,
    functions: &[Function],
    by_symbol: &HashMap<SymbolIndex, usize>,
    relocations: &HashMap<u64, SymbolIndex>,
    start: u64,
    call: &Call,
) -> Result<usize> {
    let at = start + call.offset;
    let (section, address) = match relocations.get(&at) {
        Some(symbol) => {
            if let Some(&function) = by_symbol.get(symbol) {
                return Ok(function);
            }
            let symbol = file.symbol_by_index(*symbol)?;
            let section = symbol.section_index().context("a call to a symbol outside the object")?;
            (section, i64::from(call.immediate) + 1)
        }
        None => {
            let caller = functions
                .iter()
                .find(|function| (function.address..function.address + function.size).contains(&at));
            let section = caller.context("a call outside any function")?.section;
            (section, i64::try_from(at / INSTRUCTION)? + i64::from(call.immediate) + 1)
        }
    };
    let address = u64::try_from(address)? * INSTRUCTION;
    functions
        .iter()
        .position(|function| function.section == section && function.address == address)
        .with_context(|| format!("a call at {at:#x} reaches no function"))
}

/// A program's figures.
fn program(functions: &[Function], entry: usize, section: &str) -> Program {
    let mut reached = Vec::new();
    let chain = deepest(functions, entry, &mut Vec::new(), &mut reached);
    Program {
        name: functions[entry].name.clone(),
        section: section.to_owned(),
        instructions: reached.iter().map(|&function| functions[function].size / INSTRUCTION).sum(),
        functions: reached.len(),
        chain: chain.iter().map(|&index| (functions[index].name.clone(), frame(&functions[index]))).collect(),
    }
}

/// Octets that the verifier counts for a function.
fn frame(function: &Function) -> u32 {
    function.frame.max(1).next_multiple_of(stack::ROUNDING)
}

/// The chain from `function` down that takes most stack, collecting the functions reached. Recursion, which the
/// verifier refuses, ends a chain.
fn deepest(
    functions: &[Function],
    function: usize,
    path: &mut Vec<usize>,
    reached: &mut Vec<usize>,
) -> Vec<usize> {
    if path.contains(&function) {
        return Vec::new();
    }
    if !reached.contains(&function) {
        reached.push(function);
    }
    path.push(function);
    let chains = functions[function].calls.iter().map(|&callee| deepest(functions, callee, path, reached));
    let sum = |chain: &Vec<usize>| chain.iter().map(|&index| frame(&functions[index])).sum::<u32>();
    let below = chains.max_by_key(sum).unwrap_or_default();
    path.pop();
    [vec![function], below].concat()
}

/// The object without DWARF, which nobody reads once BTF is made: four fifths of its octets, in every agent. Without lines of
/// source too: half of what is left, and aya has a copy of all of them for each function while it loads.
///
/// # Errors
/// It is not an ELF object, or its BTF is not as the kernel describes it.
pub fn without_debug_information(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut elf = object::build::elf::Builder::read(bytes)?;
    for section in &mut elf.sections {
        let name = section.name.to_vec();
        // What relocates BTF is done already; loaders take offsets as they stand.
        section.delete =
            [".debug_", ".rel.debug_", ".rel.BTF"].iter().any(|prefix| name.starts_with(prefix.as_bytes()));
        if let (b".BTF.ext", SectionData::Data(data)) = (&name[..], &mut section.data) {
            *data = without_lines(data)?.into();
        }
    }
    // LLVM keeps the names of sections and of symbols in one table; the writer wants two.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    elf.delete_orphans();
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// Section `.BTF.ext` (Documentation/bpf/btf.rst) with what it says of functions, and nothing of lines.
fn without_lines(data: &[u8]) -> Result<Vec<u8>> {
    // Octets where `struct btf_ext_header` has its fields, little-endian words all.
    const HEADER: usize = 4;
    const FUNCTIONS: usize = 8;
    const FUNCTIONS_LENGTH: usize = 12;
    const LINES: usize = 16;
    const LINES_LENGTH: usize = 20;
    const CORE: usize = 24;
    const CORE_LENGTH: usize = 28;
    let word = |at: usize| -> Result<u32> {
        let octets = data.get(at..at + 4).context("section .BTF.ext has no whole header")?;
        Ok(u32::from_le_bytes(octets.try_into()?))
    };
    let (header, functions) = (word(HEADER)?, word(FUNCTIONS_LENGTH)?);
    if word(FUNCTIONS)? != 0 || header as usize <= CORE_LENGTH || word(CORE_LENGTH)? != 0 {
        bail!("section .BTF.ext does not begin with functions, or has relocations for other kernels");
    }
    let mut kept = data.get(..(header + functions) as usize).context("section .BTF.ext is cut")?.to_vec();
    for (at, value) in [(LINES, functions), (LINES_LENGTH, 0), (CORE, functions)] {
        kept[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_btf_functions_stay_and_lines_go() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let with = words(&[0x1_eb9f, 32, 0, 8, 8, 12, 20, 0, 8, 77, 16, 1, 2]);
        let without = words(&[0x1_eb9f, 32, 0, 8, 8, 0, 8, 0, 8, 77]);
        assert_eq!(without_lines(&with).expect("a section"), without);
        let relocated = words(&[0x1_eb9f, 32, 0, 8, 8, 12, 20, 4, 8, 77, 16, 1, 2, 3]);
        assert!(without_lines(&relocated).is_err() && without_lines(&with[..20]).is_err());
    }

    fn function(name: &str, frame: u32, calls: &[usize]) -> Function {
        Function {
            name: name.into(),
            section: SectionIndex(1),
            address: 0,
            size: 10 * INSTRUCTION,
            global: true,
            frame,
            calls: calls.to_vec(),
        }
    }

    #[test]
    fn stack_is_that_of_the_deepest_chain_and_shared_functions_count_once() {
        let functions = [
            function("entry", 40, &[1, 2]),
            function("left", 200, &[3]),
            function("right", 8, &[3]),
            function("leaf", 0, &[]),
        ];
        let program = program(&functions, 0, "xdp");
        assert_eq!((program.instructions, program.functions, program.stack()), (40, 4, 64 + 224 + 32));
    }

    #[test]
    fn what_is_no_elf_object_is_refused() {
        assert!(programs(b"BC\xc0\xde bitcode").is_err());
    }
}
