//! The registers of the software processor, in the shape in which all vCPUs have them.

use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::{CR0_PG, CR4_PAE, EFER_LMA};
use crate::x86::registers::{DescriptorTable, Regs, Segment, Sregs};
use softcpu::{State, Table, seg};

/// The general registers, RIP and RFLAGS.
pub(super) fn regs(state: &State) -> Regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// Sets the general registers, RIP and RFLAGS.
pub(super) fn set_regs(state: &mut State, regs: &Regs) {
    let Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        *regs;
    state.gpr = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    state.rip = rip;
    // Bit 1 is always one.
    state.rflags = rflags | softcpu::flag::ONE;
}

/// The segment and control registers.
pub(super) fn sregs(state: &State) -> Sregs {
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(segment);
    Sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment(&state.tr),
        ldt: segment(&state.ldtr),
        gdt: DescriptorTable { base: state.gdtr.base, limit: state.gdtr.limit },
        idt: DescriptorTable { base: state.idtr.base, limit: state.idtr.limit },
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// Sets the segment and control registers. With PAE paging, loads the page-directory pointers from `memory`, as the
/// processor does when it loads CR3 (SDM volume 3, section 4.4.1).
pub(super) fn set_sregs(state: &mut State, sregs: &Sregs, memory: &GuestMemory) {
    for (index, from) in [
        (seg::ES, &sregs.es),
        (seg::CS, &sregs.cs),
        (seg::SS, &sregs.ss),
        (seg::DS, &sregs.ds),
        (seg::FS, &sregs.fs),
        (seg::GS, &sregs.gs),
    ] {
        state.segments[index] = hidden(from);
    }
    (state.tr, state.ldtr) = (hidden(&sregs.tr), hidden(&sregs.ldt));
    state.gdtr = Table { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = Table { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3) = (sregs.cr0, sregs.cr2, sregs.cr3);
    (state.cr4, state.cr8, state.efer) = (sregs.cr4, sregs.cr8, sregs.efer);
    state.apic_base = sregs.apic_base;
    if state.cr0 & CR0_PG != 0 && state.cr4 & CR4_PAE != 0 && state.efer & EFER_LMA == 0 {
        state.pdptrs = directory_pointers(memory, state.cr3);
    }
}

/// The page-directory pointers at CR3. An address without memory reads as all ones.
fn directory_pointers(memory: &GuestMemory, cr3: u64) -> [u64; 4] {
    let mut bytes = [u8::MAX; 32];
    memory.read(Gpa(cr3 & 0xffff_ffe0), &mut bytes);
    let mut pointers = [0; 4];
    for (pointer, word) in pointers.iter_mut().zip(bytes.chunks_exact(8)) {
        *pointer = word.try_into().map_or(0, u64::from_le_bytes);
    }
    pointers
}

fn segment(from: &softcpu::Segment) -> Segment {
    Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind,
        present: from.present.into(),
        dpl: from.dpl,
        db: from.big.into(),
        s: from.code_or_data.into(),
        l: from.long.into(),
        g: from.pages.into(),
        avl: from.available.into(),
        unusable: from.unusable.into(),
    }
}

fn hidden(from: &Segment) -> softcpu::Segment {
    softcpu::Segment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        kind: from.type_ & 0xf,
        code_or_data: from.s != 0,
        dpl: from.dpl & 3,
        present: from.present != 0,
        available: from.avl != 0,
        long: from.l != 0,
        big: from.db != 0,
        pages: from.g != 0,
        unusable: from.unusable != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{TABLES, TABLES_SIZE};
    use crate::x86::modes::{self, Mode, VcpuIndex};

    #[test]
    fn registers_survive_the_conversion() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x1000), (TABLES, TABLES_SIZE)]).unwrap();
        for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
            let mut state = State::default();
            let place = VcpuIndex { index: 1, of: 2, id: 7 };
            let wanted = modes::sregs(mode, sregs(&state), TABLES, place);
            set_sregs(&mut state, &wanted, &memory);
            assert_eq!(sregs(&state), wanted, "{mode}");
            let mut registers = modes::regs(mode, Gpa(0x1000), place);
            (registers.rbx, registers.r15, registers.rsp) = (1, 2, 3);
            set_regs(&mut state, &registers);
            assert_eq!(regs(&state), registers);
            assert_eq!(
                (state.is_64(), state.cpl()),
                match mode {
                    Mode::Long => (true, 0),
                    Mode::User => (true, 3),
                    _ => (false, 0),
                }
            );
        }
    }

    #[test]
    fn pae_paging_loads_the_page_directory_pointers() {
        let memory = GuestMemory::new(&[(Gpa(0), 0x1000)]).unwrap();
        memory.write(Gpa(0x28), &0x5001u64.to_le_bytes()).unwrap();
        let mut state = State::default();
        let pae = Sregs { cr0: CR0_PG | 1, cr4: CR4_PAE, cr3: 0x20, ..sregs(&state) };
        set_sregs(&mut state, &pae, &memory);
        assert_eq!(state.pdptrs, [0, 0x5001, 0, 0]);
    }
}
