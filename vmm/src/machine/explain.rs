//! Why a guest died: the instruction, what it probably ran into, the registers, the stack, the mapping.
//!
//! KVM says only that a guest shut down, or that it could not emulate an instruction. What led there is read
//! off the vCPU's state: a suspicion, and called one.

use crate::controller::vcpu::Location;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::Mode;
use crate::x86::probe::{Probe, ProbeError};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind};
use kvm_bindings::{kvm_regs, kvm_sregs};
use std::fmt;

/// CR4: SSE is switched on.
const CR4_OSFXSR: u64 = 1 << 9;
/// Longest x86 instruction, in bytes.
const LONGEST: usize = 15;
/// How many words of the stack are shown.
const STACK_WORDS: usize = 4;

/// What is known of a guest at its death.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Where the instruction is, in words.
    mapping: String,
    /// Its bytes and text; empty where they cannot be read.
    instruction: String,
    /// What it probably ran into.
    suspicion: Option<&'static str>,
    /// Top of the stack, the lowest address first; `None` where it cannot be read.
    stack: Option<Vec<u64>>,
    mode: Mode,
    regs: kvm_regs,
    sregs: Box<kvm_sregs>,
}

impl Explanation {
    /// Explains the state of a vCPU; `None` where that state is lost.
    pub fn new(location: Location, regs: kvm_regs, sregs: kvm_sregs, memory: &GuestMemory) -> Option<Self> {
        let Location::At { mode, rip, .. } = location else { return None };
        let probe = Probe::new(memory.clone(), sregs);
        let place = find(&probe, memory, probe.linear(sregs.cs.base, rip));
        let bytes = place.gpa.map(|gpa| readable(memory, gpa)).unwrap_or_default();
        let instruction = decode(mode, rip, &bytes);
        let width = match mode {
            Mode::Real => 2,
            Mode::Protected => 4,
            Mode::Long | Mode::User => 8,
        };
        let stack_pointer = match mode {
            Mode::Real => regs.rsp & 0xffff,
            Mode::Protected => regs.rsp & 0xffff_ffff,
            Mode::Long | Mode::User => regs.rsp,
        };
        let stack = find(&probe, memory, probe.linear(sregs.ss.base, stack_pointer)).gpa;
        Some(Self {
            suspicion: suspect(&place, instruction.as_ref(), &bytes, &regs, &sregs, &probe),
            mapping: place.words,
            instruction: instruction.map(|instruction| show(&instruction, &bytes)).unwrap_or_default(),
            stack: stack.and_then(|gpa| words(memory, gpa, width)),
            mode,
            regs,
            sregs: Box::new(sregs),
        })
    }

    /// What the guest probably ran into, in a few words.
    pub fn suspicion(&self) -> Option<&'static str> {
        self.suspicion
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { regs, sregs, .. } = self;
        if !self.instruction.is_empty() {
            writeln!(f, "  instruction  {}", self.instruction)?;
        }
        writeln!(f, "  mapping      {}", self.mapping)?;
        let wide = matches!(self.mode, Mode::Long | Mode::User);
        let row = |f: &mut fmt::Formatter<'_>, names: [&str; 4], values: [u64; 4]| {
            for (name, value) in names.into_iter().zip(values) {
                if wide {
                    write!(f, "  {name:<3} {value:016x}")
                } else {
                    write!(f, "  {name:<3} {value:08x}")
                }?;
            }
            writeln!(f)
        };
        let names = |long, short| if wide { long } else { short };
        row(
            f,
            names(["rax", "rbx", "rcx", "rdx"], ["eax", "ebx", "ecx", "edx"]),
            [regs.rax, regs.rbx, regs.rcx, regs.rdx],
        )?;
        row(
            f,
            names(["rsi", "rdi", "rsp", "rbp"], ["esi", "edi", "esp", "ebp"]),
            [regs.rsi, regs.rdi, regs.rsp, regs.rbp],
        )?;
        if wide {
            row(f, ["r8", "r9", "r10", "r11"], [regs.r8, regs.r9, regs.r10, regs.r11])?;
            row(f, ["r12", "r13", "r14", "r15"], [regs.r12, regs.r13, regs.r14, regs.r15])?;
        }
        writeln!(
            f,
            "  rflags {:x}  cr0 {:x}  cr2 {:x}  cr3 {:x}  cr4 {:x}  efer {:x}",
            regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        )?;
        writeln!(
            f,
            "  cs {:04x}  ds {:04x}  es {:04x}  ss {:04x}  gdt {:x}+{:x}  idt {:x}+{:x}",
            sregs.cs.selector,
            sregs.ds.selector,
            sregs.es.selector,
            sregs.ss.selector,
            sregs.gdt.base,
            sregs.gdt.limit,
            sregs.idt.base,
            sregs.idt.limit
        )?;
        match &self.stack {
            Some(stack) => {
                write!(f, "  stack       ")?;
                stack.iter().try_for_each(|word| write!(f, " {word:x}"))?;
                writeln!(f)
            }
            None => writeln!(f, "  stack        no memory there"),
        }
    }
}

/// Where a linear address leads.
struct Place {
    /// The guest physical address, if it is mapped and there is memory.
    gpa: Option<Gpa>,
    words: String,
    /// What an access to it causes, as far as that is known.
    fault: Option<Fault>,
}

/// The exception for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// #PF.
    NotMapped,
    /// #GP.
    NotCanonical,
}

/// Follows a linear address, in words.
fn find(probe: &Probe, memory: &GuestMemory, linear: u64) -> Place {
    let mapping = match probe.translate_linear(linear) {
        Ok(mapping) => mapping,
        Err(error) => {
            let canonical = !matches!(error, ProbeError::NotCanonical { .. });
            let fault = if canonical { Fault::NotMapped } else { Fault::NotCanonical };
            return Place { gpa: None, words: error.to_string(), fault: Some(fault) };
        }
    };
    let gpa = mapping.gpa.0;
    let mut words = match mapping.page {
        None => format!("{linear:#x} is physical (paging is off)"),
        Some(size) => {
            let size =
                if size < 1 << 20 { format!("{} KiB", size >> 10) } else { format!("{} MiB", size >> 20) };
            let access = if mapping.writable { "writable" } else { "read-only" };
            format!("{linear:#x} maps to {gpa:#x} ({size} page, {access})")
        }
    };
    let there = memory.read(mapping.gpa, &mut [0]);
    if !there {
        words += ", where there is no memory";
    }
    Place { gpa: there.then_some(mapping.gpa), words, fault: None }
}

/// As much of an instruction as there is memory for.
fn readable(memory: &GuestMemory, gpa: Gpa) -> Vec<u8> {
    let byte = |offset: u64| {
        let mut byte = [0];
        memory.read(Gpa(gpa.0.checked_add(offset)?), &mut byte).then_some(byte[0])
    };
    (0..LONGEST as u64).map_while(byte).collect()
}

/// The top of the stack, as far as there is memory.
fn words(memory: &GuestMemory, gpa: Gpa, width: usize) -> Option<Vec<u64>> {
    let word = |index: usize| {
        let mut word = [0; 8];
        let at = gpa.0.checked_add((index * width) as u64)?;
        memory.read(Gpa(at), word.get_mut(..width)?).then(|| u64::from_le_bytes(word))
    };
    let words: Vec<u64> = (0..STACK_WORDS).map_while(word).collect();
    (!words.is_empty()).then_some(words)
}

fn decode(mode: Mode, rip: u64, bytes: &[u8]) -> Option<Instruction> {
    let bits = match mode {
        Mode::Real => 16,
        Mode::Protected => 32,
        Mode::Long | Mode::User => 64,
    };
    (!bytes.is_empty()).then(|| Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode())
}

fn show(instruction: &Instruction, bytes: &[u8]) -> String {
    let mut text = String::new();
    NasmFormatter::new().format(instruction, &mut text);
    let len = if instruction.is_invalid() { 4 } else { instruction.len() };
    let hex: Vec<_> = bytes.iter().take(len).map(|byte| format!("{byte:02x}")).collect();
    format!("{}  {text}", hex.join(" "))
}

/// What an instruction probably ran into.
fn suspect(
    place: &Place,
    instruction: Option<&Instruction>,
    bytes: &[u8],
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    probe: &Probe,
) -> Option<&'static str> {
    match place.fault {
        Some(Fault::NotMapped) => {
            return Some("#PF: a jump to a wrong address, or page tables that no longer map it");
        }
        Some(Fault::NotCanonical) => return Some("#GP: a jump to an address that is not canonical"),
        None => {}
    }
    let Some(instruction) = instruction else {
        return Some("a jump to a wrong address, where there is no memory");
    };
    let operand = memory_operand(instruction).and_then(|operand| {
        instruction.virtual_address(operand, 0, |register, _, _| register_value(register, regs))
    });
    let uses_memory = !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Prefetcht0);
    let fault = operand.filter(|_| uses_memory).and_then(|address| probe.translate_linear(address).err());
    match instruction.mnemonic() {
        Mnemonic::Add if bytes.iter().take(4).all(|byte| *byte == 0) => Some(
            "no code at all: these are zeroes, so the guest ran past its end or jumped to a wrong address",
        ),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID => {
            Some("#UD: an undefined instruction")
        }
        mnemonic if sregs.cs.selector & 3 == 3 && is_for_ring_0(mnemonic, instruction) => Some(
            "#GP: an instruction for ring 0, and the guest is in ring 3 (where it ends by port 0xf4, not by hlt)",
        ),
        _ if uses_vectors(instruction) && sregs.cr4 & CR4_OSFXSR == 0 => {
            Some("#UD: SSE is not switched on (cr4.OSFXSR is 0); compile the guest with -mgeneral-regs-only")
        }
        _ if matches!(fault, Some(ProbeError::NotCanonical { .. })) => {
            Some("#GP: the address of its operand is not canonical")
        }
        _ if fault.is_some() => Some("#PF: the address of its operand is not mapped"),
        Mnemonic::Div | Mnemonic::Idiv => Some("#DE: a division by zero, or one whose result does not fit"),
        Mnemonic::Int | Mnemonic::Int3 => Some("a software interrupt that has no handler"),
        _ => None,
    }
}

/// Whether an instruction is not for ring 3. Ports are: the task state allows them all.
fn is_for_ring_0(mnemonic: Mnemonic, instruction: &Instruction) -> bool {
    let port = [
        Mnemonic::In,
        Mnemonic::Out,
        Mnemonic::Insb,
        Mnemonic::Insw,
        Mnemonic::Insd,
        Mnemonic::Outsb,
        Mnemonic::Outsw,
        Mnemonic::Outsd,
    ];
    instruction.is_privileged() && !port.contains(&mnemonic)
}

/// Whether an instruction works on vector registers, which needs SSE.
fn uses_vectors(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_kind(operand) == OpKind::Register;
        register && instruction.op_register(operand).is_vector_register()
    })
}

/// Which operand is in memory.
fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|operand| instruction.op_kind(*operand) == OpKind::Memory)
}

/// The value of a general register, of which smaller ones are the low part; zero for a segment's base.
fn register_value(register: iced_x86::Register, regs: &kvm_regs) -> Option<u64> {
    use iced_x86::Register;
    let value = match register.full_register() {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RSP => regs.rsp,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ if register.is_segment_register() => 0,
        _ => return None,
    };
    Some(match register.size() {
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ => value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PAGE, TABLES, TABLES_SIZE};
    use crate::x86::modes;

    /// A guest in long mode with `code` at 0x1000, its identity map in place.
    fn long(code: &[u8], regs: kvm_regs) -> Explanation {
        let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
        let tables = Gpa(TABLES.0 + PAGE);
        let words: Vec<u8> = modes::identity_map(tables).iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(tables, &words).unwrap();
        memory.write(Gpa(0x1000), code).unwrap();
        let sregs = modes::sregs(Mode::Long, kvm_sregs::default(), TABLES, modes::VcpuIndex::ALONE);
        let location = Location::At { mode: Mode::Long, cs: 8, rip: regs.rip };
        Explanation::new(location, regs, sregs, &memory).unwrap()
    }

    fn at_code() -> kvm_regs {
        kvm_regs { rip: 0x1000, rsp: 0xf_fff0, ..Default::default() }
    }

    fn suspicion(code: &[u8]) -> &'static str {
        long(code, at_code()).suspicion().unwrap_or("none")
    }

    #[test]
    fn the_usual_faults_are_suspected() {
        assert!(suspicion(&[0x0f, 0x0b]).starts_with("#UD: an undefined"));
        assert!(suspicion(&[0x48, 0xf7, 0xf1]).starts_with("#DE"));
        assert!(suspicion(&[0x0f, 0x57, 0xc0]).contains("SSE is not switched on"));
        assert!(suspicion(&[0xcd, 0x80]).contains("software interrupt"));
        assert!(suspicion(&[0; 8]).contains("these are zeroes"));
        assert_eq!(suspicion(&[0x90]), "none");
        // mov eax, [rbx], with rbx beyond the identity map
        let regs = kvm_regs { rbx: 1 << 40, ..at_code() };
        assert!(long(&[0x8b, 0x03], regs).suspicion().unwrap().contains("operand is not mapped"));
        assert_eq!(long(&[0x8b, 0x03], at_code()).suspicion(), None);
        // div qword [rbx] and movnti [rbx], eax there: the address is what is wrong
        for code in [&[0x48, 0xf7, 0x33][..], &[0x0f, 0xc3, 0x03]] {
            assert!(long(code, regs).suspicion().unwrap().contains("operand is not mapped"));
        }
        let regs = kvm_regs { rbx: 1 << 62, ..at_code() };
        assert!(long(&[0x8b, 0x03], regs).suspicion().unwrap().starts_with("#GP"));
        assert_eq!(suspicion(&[0x0f, 0xae, 0xe8]), "none", "lfence needs no SSE state");
    }

    #[test]
    fn in_ring_3_what_is_for_ring_0_is_suspected() {
        let suspicion = |code: &[u8], mode| {
            let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
            let tables = Gpa(TABLES.0 + PAGE);
            memory.write(tables, &modes::bytes(&modes::user_identity_map(tables))).unwrap();
            memory.write(Gpa(0x1000), code).unwrap();
            let sregs = modes::sregs(mode, kvm_sregs::default(), TABLES, modes::VcpuIndex::ALONE);
            let location = Location::At { mode, cs: sregs.cs.selector, rip: 0x1000 };
            Explanation::new(location, at_code(), sregs, &memory).unwrap().suspicion()
        };
        // hlt; cli; mov cr3, rax
        for code in [&[0xf4][..], &[0xfa], &[0x0f, 0x22, 0xd8]] {
            assert!(suspicion(code, Mode::User).unwrap().contains("for ring 0"), "{code:x?}");
            assert_eq!(suspicion(code, Mode::Long), None);
        }
        // out 0xf4, al; outsb
        for code in [&[0xe6, 0xf4][..], &[0x6e]] {
            assert_eq!(suspicion(code, Mode::User), None, "{code:x?}");
        }
    }

    #[test]
    fn an_address_is_followed_through_the_page_tables() {
        let mapping = |rip| long(&[0x90], kvm_regs { rip, ..at_code() }).mapping;
        assert_eq!(mapping(0x1000), "0x1000 maps to 0x1000 (2 MiB page, writable)");
        assert_eq!(
            mapping(0x8000_0000),
            "0x80000000 maps to 0x80000000 (2 MiB page, writable), where there is no memory"
        );
        assert!(mapping(1 << 39).contains("is not mapped: its PML4 entry"));
        assert!(mapping(1 << 32).contains("is not mapped: its PDPT entry"));
        assert!(mapping(1 << 62).contains("is not canonical"));
    }

    #[test]
    fn page_tables_of_32_bits_are_followed_too() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x3000)]).unwrap();
        memory.write(Gpa(0x2004), &0x2003u32.to_le_bytes()).unwrap();
        let mut sregs = modes::sregs(Mode::Protected, kvm_sregs::default(), Gpa(0), modes::VcpuIndex::ALONE);
        (sregs.cr0, sregs.cr3) = (sregs.cr0 | modes::CR0_PG, 0x2000);
        let location = Location::At { mode: Mode::Protected, cs: 8, rip: 0x1000 };
        let explanation = Explanation::new(location, at_code(), sregs, &memory).unwrap();
        assert!(explanation.suspicion().unwrap().starts_with("#PF"), "{explanation}");
        assert_eq!(explanation.mapping, "0x1000 is not mapped: its PD entry at 0x2000 is 0x0");
    }

    #[test]
    fn it_fits_on_a_screen_and_names_the_instruction() {
        let text = long(&[0x0f, 0x0b], at_code()).to_string();
        assert!(text.contains("0f 0b  ud2") && text.contains("rsp 00000000000ffff0"), "{text}");
        assert!(text.contains("stack        0 0\n"), "{text}");
        assert!(text.lines().count() < 12, "{text}");
    }

    #[test]
    fn hostile_tables_and_registers_are_only_read() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x3000)]).unwrap();
        memory.write(Gpa(0), &[0xff; 0x3000]).unwrap();
        for cr3 in [0, 0x2000, 0x2ff8, u64::MAX] {
            for rip in [0, 0x2fff, u64::MAX, 1 << 47] {
                for mode in [Mode::Real, Mode::Protected, Mode::Long] {
                    let mut sregs = modes::sregs(mode, kvm_sregs::default(), Gpa(0), modes::VcpuIndex::ALONE);
                    sregs.cr3 = cr3;
                    (sregs.cs.base, sregs.ss.base) = (rip, u64::MAX);
                    let regs = kvm_regs { rip, rsp: u64::MAX, ..Default::default() };
                    let location = Location::At { mode, cs: 0xffff, rip };
                    let _ = Explanation::new(location, regs, sregs, &memory).unwrap().to_string();
                }
            }
        }
    }
}
