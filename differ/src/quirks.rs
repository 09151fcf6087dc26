//! Differences that are due to KVM or to the host, and not to the processor.

use crate::layout;
use crate::outcome::{Access, Outcome};
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
    if program.id.config == Config::User {
        return emulated(program, kvm, soft_vector, &has);
    }
    None
}

/// The reasons in ring 3. A host without hardware virtualization emulates the instructions that raise #GP there, or that
/// access memory-mapped I/O, and its emulator is not exact.
fn emulated(
    program: &Program,
    kvm: &Outcome,
    soft_vector: Option<u8>,
    has: &impl Fn(&[Mnemonic]) -> bool,
) -> Option<&'static str> {
    use Mnemonic::{Call, Insb, Insd, Insw, Lzcnt, Maskmovdqu, Outsb, Outsd, Outsw, Tzcnt};
    let kvm_vector = layout::vector_of(kvm.state.rip);
    let is_protection = matches!(soft_vector, Some(12 | 13));
    if kvm_vector == Some(6) && is_protection {
        return Some("KVM emulates what raises #GP in ring 3, and does not know the instruction");
    }
    let is_canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
    if kvm_vector == Some(14) && !is_canonical(kvm.state.cr2) && is_protection {
        return Some("KVM's emulator checks only the first byte for a canonical address");
    }
    let is_mapped_io = kvm.accesses.iter().any(|access| matches!(access.kind, 'r' | 'w'));
    if is_mapped_io && has(&[Tzcnt, Lzcnt]) {
        return Some("KVM's emulator takes TZCNT and LZCNT for BSF and BSR");
    }
    if is_mapped_io && has(&[Call]) {
        return Some("KVM's emulator checks the target of CALL before the stack");
    }
    if soft_vector == Some(17)
        && program.state.rflags & flag::AC != 0
        && has(&[Insb, Insw, Insd, Outsb, Outsw, Outsd])
    {
        return Some("KVM's emulator does not check the alignment of string I/O");
    }
    if has(&[Maskmovdqu]) && kvm_vector == Some(14) {
        return Some("MASKMOVDQU may fault for bytes that it does not store");
    }
    None
}
