//! GDTR, IDTR, LDTR and TR (SDM volume 3, section 2.8.3).

use crate::cpu::Cpu;
use crate::descriptors::{Descriptor, error_code, gp, is_null, system};
use crate::linear::is_canonical;
use crate::memory::Memory;
use crate::op::{Handler, Op};
use crate::paging::Access;
use crate::state::{Segment, Table};
use crate::trap::{NP, Trap};
use iced_x86::{Code, Instruction, Mnemonic};

pub(super) fn handler<M: Memory>(insn: &Instruction) -> Option<Handler<M>> {
    Some(match insn.mnemonic() {
        Mnemonic::Lgdt => lgdt,
        Mnemonic::Lidt => lidt,
        Mnemonic::Sgdt => sgdt,
        Mnemonic::Sidt => sidt,
        Mnemonic::Lldt => lldt,
        Mnemonic::Ltr => ltr,
        Mnemonic::Sldt => sldt,
        Mnemonic::Str => str,
        _ => return None,
    })
}

/// The size of the base address in memory.
fn base_size<M: Memory>(op: &Op<M>) -> u8 {
    match op.insn.code() {
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    }
}

impl<M: Memory> Cpu<M> {
    /// Reads the memory operand of LGDT or LIDT.
    fn load_table(&mut self, op: &Op<M>) -> Result<Table, Trap> {
        if self.state.cpl() != 0 {
            return Err(Trap::gp());
        }
        let (segment, start) = (op.address.segment.into(), self.effective_address(op));
        let limit = self.load(segment, start, 2)? as u16;
        let base = self.load(segment, start.wrapping_add(2), base_size(op))?;
        let is_16 = matches!(op.insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
        let base = if is_16 { base & 0xff_ffff } else { base };
        if self.state.is_64() && !is_canonical(base) {
            return Err(Trap::gp());
        }
        Ok(Table { base, limit })
    }

    /// Writes the memory operand of SGDT or SIDT. The base is stored whole for each operand size.
    fn store_table(&mut self, op: &Op<M>, table: Table) -> Result<(), Trap> {
        let (segment, start) = (op.address.segment.into(), self.effective_address(op));
        let size = base_size(op);
        let linear = self.linear(segment, start, u64::from(size) + 2, Access::Write)?;
        self.check_write(linear, u64::from(size) + 2, self.is_user())?;
        self.store(segment, start, 2, table.limit.into())?;
        self.store(segment, start.wrapping_add(2), size, table.base)
    }

    /// The selector of LLDT or LTR, which is operand 0.
    fn system_selector(&mut self, op: &Op<M>) -> Result<u16, Trap> {
        if !self.state.is_protected() {
            return Err(Trap::ud());
        }
        if self.state.cpl() != 0 {
            return Err(Trap::gp());
        }
        Ok(self.get(op, 0)? as u16)
    }

    /// Reads the descriptor of an LDT or TSS, whose type must be one of `kinds`. Its second part is the segment.
    ///
    /// # Errors
    /// #GP or #NP.
    fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<(Descriptor, Segment), Trap> {
        if selector & 4 != 0 {
            return Err(gp(selector));
        }
        let descriptor = self.read_descriptor(selector)?.ok_or(gp(selector))?;
        if descriptor.is_code_or_data() || !kinds.contains(&descriptor.kind()) {
            return Err(gp(selector));
        }
        let mut segment = descriptor.segment(selector);
        if self.state.is_64() {
            let upper = self.read_upper_descriptor(selector)?.ok_or(gp(selector))?;
            segment.base |= upper << 32;
        }
        if !segment.present {
            return Err(Trap::coded(NP, error_code(selector)));
        }
        if !is_canonical(segment.base) {
            return Err(gp(selector));
        }
        Ok((descriptor, segment))
    }
}

fn lgdt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.state.gdtr = cpu.load_table(op)?;
    Ok(())
}

fn lidt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.state.idtr = cpu.load_table(op)?;
    Ok(())
}

fn sgdt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.store_table(op, cpu.state.gdtr)
}

fn sidt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    cpu.store_table(op, cpu.state.idtr)
}

fn lldt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.system_selector(op)?;
    cpu.state.ldtr = match is_null(selector) {
        true => cpu.state.ldtr.null(selector, 0),
        false => cpu.system_segment(selector, &[system::LDT])?.1,
    };
    Ok(())
}

fn ltr<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    let selector = cpu.system_selector(op)?;
    if is_null(selector) {
        return Err(Trap::gp());
    }
    let kinds: &[u8] = match cpu.state.is_long() {
        true => &[system::TSS_32],
        false => &[system::TSS_16, system::TSS_32],
    };
    let (descriptor, segment) = cpu.system_segment(selector, kinds)?;
    let kind = cpu.set_busy(descriptor)?.kind();
    cpu.state.tr = Segment { kind, ..segment };
    Ok(())
}

fn sldt<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    store_selector(cpu, op, cpu.state.ldtr.selector)
}

fn str<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>) -> Result<(), Trap> {
    store_selector(cpu, op, cpu.state.tr.selector)
}

fn store_selector<M: Memory>(cpu: &mut Cpu<M>, op: &Op<M>, selector: u16) -> Result<(), Trap> {
    if !cpu.state.is_protected() {
        return Err(Trap::ud());
    }
    cpu.set(op, 0, selector.into())
}
