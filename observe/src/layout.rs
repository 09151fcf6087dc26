//! The layout of KVM's structures (`linux/kvm.h`; Linux `Documentation/virt/kvm/api.rst`, section 4).

use vmm::x86::{DescriptorTable, Regs, Segment, Sregs};

/// The size of `kvm_regs` in bytes.
pub(crate) const REGS: usize = 144;
/// The size of `kvm_sregs` in bytes.
pub(crate) const SREGS: usize = 312;

/// Reads the words of a structure one after the other. Past its end, all are 0.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn take<const SIZE: usize>(&mut self) -> [u8; SIZE] {
        let (first, rest) = self.0.split_at_checked(SIZE).unwrap_or_default();
        self.0 = rest;
        first.try_into().unwrap_or([0; SIZE])
    }

    fn byte(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }

    fn short(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn half(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

/// Reads a `kvm_regs`. Returns `None` if it is too short.
pub(crate) fn regs(bytes: &[u8]) -> Option<Regs> {
    let mut words = Words(bytes.get(..REGS)?);
    // Rust evaluates the members in the order in which they are written here.
    Some(Regs {
        rax: words.long(),
        rbx: words.long(),
        rcx: words.long(),
        rdx: words.long(),
        rsi: words.long(),
        rdi: words.long(),
        rsp: words.long(),
        rbp: words.long(),
        r8: words.long(),
        r9: words.long(),
        r10: words.long(),
        r11: words.long(),
        r12: words.long(),
        r13: words.long(),
        r14: words.long(),
        r15: words.long(),
        rip: words.long(),
        rflags: words.long(),
    })
}

/// Reads a `kvm_sregs`, or the same part of a `kvm_sregs2`. Returns `None` if it is too short for the control registers.
pub(crate) fn sregs(bytes: &[u8]) -> Option<Sregs> {
    let mut words = Words(bytes.get(..280)?);
    let mut sregs = Sregs {
        cs: segment(&mut words),
        ds: segment(&mut words),
        es: segment(&mut words),
        fs: segment(&mut words),
        gs: segment(&mut words),
        ss: segment(&mut words),
        tr: segment(&mut words),
        ldt: segment(&mut words),
        gdt: table(&mut words),
        idt: table(&mut words),
        cr0: words.long(),
        cr2: words.long(),
        cr3: words.long(),
        cr4: words.long(),
        cr8: words.long(),
        efer: words.long(),
        apic_base: words.long(),
        interrupt_bitmap: [0; 4],
    };
    let mut words = Words(bytes.get(280..SREGS).unwrap_or_default());
    sregs.interrupt_bitmap = std::array::from_fn(|_| words.long());
    Some(sregs)
}

fn segment(words: &mut Words<'_>) -> Segment {
    let segment = Segment {
        base: words.long(),
        limit: words.half(),
        selector: words.short(),
        type_: words.byte(),
        present: words.byte(),
        dpl: words.byte(),
        db: words.byte(),
        s: words.byte(),
        l: words.byte(),
        g: words.byte(),
        avl: words.byte(),
        unusable: words.byte(),
    };
    words.byte();
    segment
}

fn table(words: &mut Words<'_>) -> DescriptorTable {
    let table = DescriptorTable { base: words.long(), limit: words.short() };
    words.take::<6>();
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_at_the_places_of_the_kernel() {
        let mut bytes: Vec<u8> = (0..18u64).flat_map(u64::to_ne_bytes).collect();
        let read = regs(&bytes).unwrap();
        assert_eq!((read.rax, read.rsp, read.r8, read.r15, read.rip, read.rflags), (0, 6, 8, 15, 16, 17));
        bytes.pop();
        assert!(regs(&bytes).is_none());
    }

    #[test]
    fn segments_and_tables_are_at_the_places_of_the_kernel() {
        let mut bytes = vec![0; SREGS];
        bytes[22] = 1;
        bytes[7 * 24..7 * 24 + 8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[7 * 24 + 12..7 * 24 + 14].copy_from_slice(&0x28u16.to_ne_bytes());
        bytes[192 + 8] = 0xff;
        bytes[208] = 0x50;
        bytes[224] = 0x11;
        bytes[240] = 0x33;
        bytes[264] = 0x55;
        bytes[272] = 0x66;
        bytes[304] = 0x77;
        let read = sregs(&bytes).unwrap();
        assert_eq!((read.cs.unusable, read.ldt.base, read.ldt.selector), (1, 7, 0x28));
        assert_eq!((read.gdt.limit, read.idt.base, read.cr0, read.cr3), (0xff, 0x50, 0x11, 0x33));
        assert_eq!((read.efer, read.apic_base, read.interrupt_bitmap[3]), (0x55, 0x66, 0x77));
        assert!(sregs(&bytes[..279]).is_none());
        // `kvm_sregs2` has no interrupt bitmap there.
        assert_eq!(sregs(&bytes[..280]).unwrap().interrupt_bitmap, [0; 4]);
    }
}
