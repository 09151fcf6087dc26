//! The notes of a core: the registers of the vCPUs.

use super::{Class, CoreCause, CoreVcpu};
use crate::x86::registers::{DescriptorTable, Regs, Segment, Sregs};

/// The general registers, as `ptrace` and debuggers know them.
const NT_PRSTATUS: u32 = 1;

/// The notes of all vCPUs: NT_PRSTATUS for each, then the control registers of each. That of a Linux kernel is the last one.
pub(super) fn of(vcpus: &[&CoreVcpu], class: Class, cause: &CoreCause<'_>) -> Vec<u8> {
    let mut notes = Vec::new();
    for (number, vcpu) in vcpus.iter().enumerate() {
        let signal = if number == 0 { cause.signal } else { 0 };
        let registers = match class {
            Class::X86_64 => status_64(vcpu, signal),
            Class::I386 => status_32(vcpu, signal),
        };
        add(&mut notes, "CORE", NT_PRSTATUS, &registers);
    }
    for vcpu in vcpus {
        add(&mut notes, "QEMU", 0, &qemu_state(vcpu));
    }
    for vcpu in vcpus {
        let Sregs { efer, cr8, apic_base, .. } = vcpu.sregs;
        let mut state = [1, vcpu.id].map(u32::to_le_bytes).concat();
        state.extend([efer, cr8, apic_base].map(u64::to_le_bytes).concat());
        add(&mut notes, "VMM", 1, &state);
    }
    if let Some(text) = cause.vmcoreinfo {
        add(&mut notes, "VMCOREINFO", 0, text);
    }
    notes
}

/// Adds a note. Its parts begin at multiples of 4 bytes.
fn add(notes: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    let name = [owner.as_bytes(), &[0]].concat();
    for word in [name.len() as u32, content.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    for part in [&name, content] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of x86-64.
fn status_64(vcpu: &CoreVcpu, signal: u8) -> Vec<u8> {
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut bytes = status_head(vcpu.id, signal, 112, 32);
    let selector = |segment: &Segment| u64::from(segment.selector);
    let Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        *regs;
    for word in [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        // The number of a system call: none.
        u64::MAX,
        rip,
        selector(&sregs.cs),
        rflags,
        rsp,
        selector(&sregs.ss),
        sregs.fs.base,
        sregs.gs.base,
        selector(&sregs.ds),
        selector(&sregs.es),
        selector(&sregs.fs),
        selector(&sregs.gs),
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(336, 0);
    bytes
}

/// `struct elf_prstatus` of i386. In real mode, EIP and ESP are linear addresses: debuggers know no segments.
fn status_32(vcpu: &CoreVcpu, signal: u8) -> Vec<u8> {
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut bytes = status_head(vcpu.id, signal, 72, 24);
    let selector = |segment: &Segment| u64::from(segment.selector);
    let linear = |segment: &Segment, offset: u64| segment.base.wrapping_add(offset);
    for word in [
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.rax,
        selector(&sregs.ds),
        selector(&sregs.es),
        selector(&sregs.fs),
        selector(&sregs.gs),
        u64::MAX,
        linear(&sregs.cs, regs.rip),
        selector(&sregs.cs),
        regs.rflags,
        linear(&sregs.ss, regs.rsp),
        selector(&sregs.ss),
    ] {
        bytes.extend((word as u32).to_le_bytes());
    }
    bytes.resize(144, 0);
    bytes
}

/// The start of `struct elf_prstatus`, `len` bytes: the signal, and at `process` the number of the process, which is that of
/// the vCPU plus 1.
fn status_head(id: u32, signal: u8, len: usize, process: usize) -> Vec<u8> {
    let mut bytes = vec![0; process];
    for at in [0, 12] {
        if let Some(place) = bytes.get_mut(at) {
            *place = signal;
        }
    }
    bytes.extend(id.saturating_add(1).to_le_bytes());
    bytes.resize(len, 0);
    bytes
}

/// `QEMUCPUState`, which QEMU writes with its command dump-guest-memory: crash and others read the control registers from it.
fn qemu_state(vcpu: &CoreVcpu) -> Vec<u8> {
    const VERSION: u32 = 1;
    const SIZE: u32 = 440;
    let (regs, sregs) = (&vcpu.regs, &vcpu.sregs);
    let mut bytes = [VERSION, SIZE].map(u32::to_le_bytes).concat();
    let Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        *regs;
    for word in [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] {
        bytes.extend(word.to_le_bytes());
    }
    for segment in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss, &sregs.ldt, &sregs.tr] {
        bytes.extend(qemu_segment(segment));
    }
    for table in [&sregs.gdt, &sregs.idt] {
        let DescriptorTable { base, limit } = *table;
        bytes.extend([0, limit.into(), 0, 0].map(u32::to_le_bytes).concat());
        bytes.extend(base.to_le_bytes());
    }
    for word in [sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4, vcpu.kernel_gs_base] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// `QEMUCPUSegment`: selector, limit, the second half of the descriptor, and the base.
fn qemu_segment(segment: &Segment) -> Vec<u8> {
    let bits = [
        (segment.type_, 8),
        (segment.s, 12),
        (segment.dpl, 13),
        (segment.present, 15),
        (segment.avl, 20),
        (segment.l, 21),
        (segment.db, 22),
        (segment.g, 23),
    ];
    let flags = bits.into_iter().fold(0, |flags, (value, bit)| flags | u32::from(value) << bit);
    let mut bytes = [segment.selector.into(), segment.limit, flags, 0].map(u32::to_le_bytes).concat();
    bytes.extend(segment.base.to_le_bytes());
    bytes
}
