//! Differences that are due to KVM or to the host, and not to the processor.

use crate::layout;
use crate::outcome::{Access, End, Outcome};
use crate::program::{Config, Program};
use iced_x86::Mnemonic;
use softcpu::flag;

/// The reason why two results that differ need not be equal.
pub fn allowed(program: &Program, kvm: &Outcome, soft: &Outcome) -> Option<&'static str> {
    let vector = |outcome: &Outcome| layout::vector_of(outcome.state.rip);
    let (kvm_vector, soft_vector) = (vector(kvm), vector(soft));
    let has = |list: &[Mnemonic]| program.mnemonics().iter().any(|mnemonic| list.contains(mnemonic));
    let (first, rest) = kvm.accesses.split_at(soft.accesses.len().min(kvm.accesses.len()));
    let is_input = |access: &Access| access.kind == 'i';
    if kvm_vector == soft_vector
        && matches!(kvm_vector, Some(12..=14))
        && first == soft.accesses
        && !rest.is_empty()
        && rest.iter().all(is_input)
    {
        return Some("KVM reads a port before INS faults");
    }
    if kvm_vector == Some(6) && has(&[Mnemonic::Movbe]) {
        return Some("KVM's emulator does not know MOVBE");
    }
    if program.id.config != Config::User && kvm.end == End::Shutdown {
        return Some("KVM cannot deliver an exception to memory-mapped I/O, or ends otherwise at a triple fault");
    }
    if program.id.config == Config::User {
        return emulated(program, kvm, soft_vector, &has);
    }
    None
}

/// The reasons in ring 3. A host without hardware virtualization emulates the instructions that raise #GP or #UD there, or
/// that access memory-mapped I/O, and its emulator is not exact.
fn emulated(
    program: &Program,
    kvm: &Outcome,
    soft_vector: Option<u8>,
    has: &impl Fn(&[Mnemonic]) -> bool,
) -> Option<&'static str> {
    use Mnemonic::{Call, Clflush, Insb, Insd, Insw, Lzcnt, Maskmovdqu, Outsb, Outsd, Outsw, Tzcnt};
    const SEGMENTS: [u8; 4] = [0x26, 0x2e, 0x36, 0x3e];
    let kvm_vector = layout::vector_of(kvm.state.rip);
    let is_protection = matches!(soft_vector, Some(12 | 13));
    if kvm_vector == Some(6) && is_protection {
        return Some("KVM emulates what raises #GP in ring 3, and does not know the instruction");
    }
    let is_canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
    if kvm_vector == Some(14) && !is_canonical(kvm.state.cr2) && is_protection {
        return Some("KVM's emulator checks only the first byte for a canonical address");
    }
    if kvm_vector == Some(14) && soft_vector == Some(14) && kvm.state.cr2 >> 47 != 0 {
        return Some("KVM's error code shows the page tables of the host for the upper half of the addresses");
    }
    if is_protection && program.has_prefix(&SEGMENTS) {
        return Some("KVM's emulator uses segment prefixes that 64-bit mode ignores");
    }
    if soft_vector == Some(6) && has(&[Mnemonic::INVALID]) {
        return Some("KVM emulates what raises #UD in ring 3, and does not check its prefixes");
    }
    let is_mapped_io = kvm.accesses.iter().any(|access| matches!(access.kind, 'r' | 'w'));
    if is_mapped_io && has(&[Tzcnt, Lzcnt]) {
        return Some("KVM's emulator takes TZCNT and LZCNT for BSF and BSR");
    }
    if is_mapped_io && has(&[Call]) {
        return Some("KVM's emulator checks the target of CALL before the stack");
    }
    if is_mapped_io && has(&[Insb, Insw, Insd]) {
        return Some("KVM writes the elements of REP INS together");
    }
    if is_mapped_io && has(&[Mnemonic::Movsxd]) {
        return Some("KVM's emulator reads 4 bytes for MOVSXD");
    }
    if is_mapped_io && has(&[Clflush]) {
        return Some("KVM's emulator reads what CLFLUSH flushes");
    }
    let changes_flags = program.state.rflags & flag::AC != 0 || has(&[Mnemonic::Popf, Mnemonic::Popfq]);
    if soft_vector == Some(17) && changes_flags && has(&[Insb, Insw, Insd, Outsb, Outsw, Outsd]) {
        return Some("KVM's emulator does not check the alignment of string I/O");
    }
    if soft_vector == Some(1) && !kvm.accesses.is_empty() {
        return Some("KVM does not trap after an instruction that it emulates");
    }
    if has(&[Maskmovdqu]) && matches!(kvm_vector, Some(14 | 17)) {
        return Some("MASKMOVDQU may fault for bytes that it does not store");
    }
    None
}
