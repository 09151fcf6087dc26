//! Descriptors of the GDT and the LDT, and the loads of segment registers (SDM volume 3, sections 3.4 and 3.5).

use crate::cpu::Cpu;
use crate::linear::is_canonical;
use crate::memory::{Memory, PAGE};
use crate::state::{Segment, seg};
use crate::trap::{GP, NP, SS, Trap};

/// The types of system segments and gates (SDM volume 3, table 3-2).
pub(crate) mod system {
    pub(crate) const TSS_16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const BUSY_TSS_16: u8 = 3;
    pub(crate) const CALL_16: u8 = 4;
    pub(crate) const TASK: u8 = 5;
    pub(crate) const INTERRUPT_16: u8 = 6;
    pub(crate) const TRAP_16: u8 = 7;
    pub(crate) const TSS_32: u8 = 9;
    pub(crate) const BUSY_TSS_32: u8 = 11;
    pub(crate) const CALL_32: u8 = 12;
    pub(crate) const INTERRUPT_32: u8 = 14;
    pub(crate) const TRAP_32: u8 = 15;
}

/// The requested privilege level of a selector.
pub(crate) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// True for a null selector.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// The error code that names a selector, without the bit EXT.
pub(crate) const fn error_code(selector: u16) -> u32 {
    (selector & 0xfffc) as u32
}

/// #GP that names a selector.
pub(crate) const fn gp(selector: u16) -> Trap {
    Trap::coded(GP, error_code(selector))
}

/// The first 8 bytes of a descriptor, and their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The linear address.
    pub(crate) address: u64,
    pub(crate) raw: u64,
}

impl Descriptor {
    pub(crate) const fn kind(&self) -> u8 {
        (self.raw >> 40 & 15) as u8
    }

    pub(crate) const fn is_code_or_data(&self) -> bool {
        self.raw >> 44 & 1 != 0
    }

    pub(crate) const fn is_code(&self) -> bool {
        self.is_code_or_data() && self.kind() & 8 != 0
    }

    pub(crate) const fn is_conforming(&self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    pub(crate) const fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    pub(crate) const fn is_present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }

    /// True for 64-bit code.
    pub(crate) const fn is_long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }

    pub(crate) const fn is_big(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }

    /// The segment, for a register that holds `selector`.
    pub(crate) const fn segment(&self, selector: u16) -> Segment {
        let raw = self.raw;
        let pages = raw >> 55 & 1 != 0;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if pages { limit << 12 | 0xfff } else { limit },
            kind: self.kind(),
            code_or_data: self.is_code_or_data(),
            dpl: self.dpl(),
            present: self.is_present(),
            available: raw >> 52 & 1 != 0,
            long: self.is_long(),
            big: self.is_big(),
            pages,
            unusable: false,
        }
    }
}

impl Segment {
    /// The register after a load of a null selector. It keeps its limit.
    pub(crate) const fn null(self, selector: u16, dpl: u8) -> Self {
        Self { selector, base: 0, dpl, present: false, unusable: true, ..self }
    }

    /// The register after a load in real mode, which changes only the base (SDM volume 3, section 22.1.1).
    const fn loaded_in_real_mode(self, selector: u16) -> Self {
        Self { selector, base: (selector as u64) << 4, present: true, unusable: false, ..self }
    }

    /// True for conforming code.
    pub(crate) const fn is_conforming(&self) -> bool {
        self.code_or_data && self.kind & 12 == 12
    }
}

impl<M: Memory> Cpu<M> {
    /// The linear address of the descriptor that a selector names. `None` if its `size` bytes are not within the limit of
    /// the table.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let (gdtr, ldtr) = (self.state.gdtr, self.state.ldtr);
        let (base, limit) = match selector & 4 {
            0 => (gdtr.base, u64::from(gdtr.limit)),
            _ if ldtr.unusable => return None,
            _ => (ldtr.base, u64::from(ldtr.limit)),
        };
        let offset = u64::from(selector & 0xfff8);
        (offset + size - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// Reads a descriptor. `None` if it is not within its table.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) fn read_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        let Some(address) = self.descriptor_address(selector, 8) else { return Ok(None) };
        Ok(Some(Descriptor { address, raw: self.load_system(address, 8)? }))
    }

    /// Reads the upper 8 bytes of a descriptor of 16 bytes. `None` if they are not within the table, or are not zero where
    /// a type must be zero.
    ///
    /// # Errors
    /// As [`read_descriptor`](Self::read_descriptor).
    pub(crate) fn read_upper_descriptor(&mut self, selector: u16) -> Result<Option<u64>, Trap> {
        let Some(address) = self.descriptor_address(selector, 16) else { return Ok(None) };
        let upper = self.load_system(address.wrapping_add(8), 8)?;
        Ok((upper >> 40 & 0x1f == 0).then_some(upper))
    }

    /// Reads `size` bytes, 1 to 8, of a descriptor table or a TSS, with the rights of ring 0.
    ///
    /// # Errors
    /// #PF; #GP(0) for an address that is not canonical.
    pub(crate) fn load_system(&mut self, address: u64, size: u8) -> Result<u64, Trap> {
        let address = self.system_address(address)?;
        if (address & (PAGE - 1)) + u64::from(size) <= PAGE {
            return self.load_linear(address, size, false);
        }
        let mut value = 0;
        for at in 0..size {
            let byte = self.system_address(address.wrapping_add(at.into()))?;
            value |= self.load_linear(byte, 1, false)? << (8 * at);
        }
        Ok(value)
    }

    /// The address of a byte of a system table: of 64 bits in long mode, else of 32.
    pub(crate) fn system_address(&self, address: u64) -> Result<u64, Trap> {
        if !self.state.is_long() {
            return Ok(address & 0xffff_ffff);
        }
        if is_canonical(address) { Ok(address) } else { Err(Trap::gp()) }
    }

    /// Sets bits of the byte that holds the type of a descriptor.
    fn set_kind(&mut self, descriptor: Descriptor, bits: u8) -> Result<Descriptor, Trap> {
        let raw = descriptor.raw | u64::from(bits) << 40;
        if raw != descriptor.raw {
            let address = self.system_address(descriptor.address.wrapping_add(5))?;
            self.store_linear(address, 1, raw >> 40 & 0xff, false)?;
        }
        Ok(Descriptor { raw, ..descriptor })
    }

    /// Sets the accessed bit of a code or data segment. Returns its descriptor with the bit.
    ///
    /// # Errors
    /// The descriptor cannot be written.
    pub(crate) fn set_accessed(&mut self, descriptor: Descriptor) -> Result<Descriptor, Trap> {
        self.set_kind(descriptor, 1)
    }

    /// Sets the busy bit of a TSS. Returns its descriptor with the bit.
    ///
    /// # Errors
    /// The descriptor cannot be written.
    pub(crate) fn set_busy(&mut self, descriptor: Descriptor) -> Result<Descriptor, Trap> {
        self.set_kind(descriptor, 2)
    }

    /// Loads ES, SS, DS, FS or GS.
    ///
    /// # Errors
    /// As [`segment_for`](Self::segment_for).
    pub(crate) fn load_segment(&mut self, index: usize, selector: u16) -> Result<(), Trap> {
        self.state.segments[index % 6] = self.segment_for(index, selector)?;
        Ok(())
    }

    /// The value that ES, SS, DS, FS or GS has after a load of a selector (SDM volume 2, MOV).
    ///
    /// # Errors
    /// #GP, #NP or #SS for a selector that must not be loaded; the descriptor table cannot be read.
    pub(crate) fn segment_for(&mut self, index: usize, selector: u16) -> Result<Segment, Trap> {
        let old = self.state.segments[index % 6];
        if !self.state.is_protected() {
            return Ok(old.loaded_in_real_mode(selector));
        }
        let cpl = self.state.cpl();
        if index == seg::SS {
            if !is_null(selector) {
                return self.stack_segment(selector, cpl, GP, 0);
            }
            let allowed = self.state.is_64() && cpl < 3 && rpl(selector) == cpl;
            return if allowed { Ok(old.null(selector, cpl)) } else { Err(Trap::gp()) };
        }
        if is_null(selector) {
            return Ok(old.null(selector, 0));
        }
        let descriptor = self.read_descriptor(selector)?.ok_or(gp(selector))?;
        let segment = descriptor.segment(selector);
        let too_low = !segment.is_conforming() && rpl(selector).max(cpl) > segment.dpl;
        if !segment.is_readable() || too_low {
            return Err(gp(selector));
        }
        if !segment.present {
            return Err(Trap::coded(NP, error_code(selector)));
        }
        Ok(self.set_accessed(descriptor)?.segment(selector))
    }

    /// The segment of a stack for the privilege `cpl`. The selector is not null.
    ///
    /// # Errors
    /// The exception `vector` for a selector that must not be loaded, or #SS if the segment is not present. `external` is
    /// the bit EXT of the error code.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
        external: u32,
    ) -> Result<Segment, Trap> {
        let error = error_code(selector) | external;
        let descriptor = self.read_descriptor(selector)?.ok_or(Trap::coded(vector, error))?;
        let segment = descriptor.segment(selector);
        if rpl(selector) != cpl || segment.dpl != cpl || !segment.is_writable() {
            return Err(Trap::coded(vector, error));
        }
        if !segment.present {
            return Err(Trap::coded(SS, error));
        }
        Ok(self.set_accessed(descriptor)?.segment(selector))
    }

    /// The value of CS after a load of a code segment that was checked. Its selector gets the privilege `cpl`.
    ///
    /// # Errors
    /// The descriptor cannot be written.
    pub(crate) fn code_segment(
        &mut self,
        descriptor: Descriptor,
        selector: u16,
        cpl: u8,
    ) -> Result<Segment, Trap> {
        let selector = selector & 0xfffc | u16::from(cpl);
        Ok(self.set_accessed(descriptor)?.segment(selector))
    }

    /// The value of CS after a load in real mode.
    pub(crate) fn real_code_segment(&self, selector: u16) -> Segment {
        self.state.segments[seg::CS].loaded_in_real_mode(selector)
    }

    /// Checks that an instruction at `offset` of a code segment can be reached.
    ///
    /// # Errors
    /// #GP with this error code.
    pub(crate) fn check_target(&self, code: &Segment, offset: u64, error: u32) -> Result<(), Trap> {
        let valid = match self.state.is_long() && code.long {
            true => is_canonical(offset),
            false => offset <= code.limit.into(),
        };
        if valid { Ok(()) } else { Err(Trap::coded(GP, error)) }
    }
}
