//! Vectors for a real-mode guest on a machine without a BIOS: they tell a fault, and a call that nothing answers.
//!
//! Without them, an exception or `int n` jumps to 0000:0000, and the guest runs through whatever is there. With them it halts
//! at once, at a place that tells the vector: vector `n` leads to the HLT at 0000:0408 + `n`, where a PC has the data of its BIOS.
//! The last vectors share a HLT, because memory from 0x500 on belongs to the guest. The frame that the processor has
//! pushed tells the instruction (Intel SDM volume 3, section 22.1.4). All segments are 0, because a guest may set only the
//! offset of a vector. They share their page with the result at 0x400, so they cost no page.
//!
//! An image that covers these places has none of this.

use super::Machine;
use super::processors::MachineVcpu;
use super::vcpu_run::VcpuResult;
use crate::boot::Image;
use crate::error::Error;
use crate::exit::Stop;
use crate::memory::{Gpa, GuestMemory};
use crate::x86::modes::{CR0_PE, Mode};
use crate::x86::registers::{Regs, Sregs};
use simvirtio::abi;
use std::ops::Range;

/// The addresses of the HLT.
const HALTS: Range<u64> = 0x408..0x500;
/// The first of the vectors that share the last HLT. No exception has such a vector, so only `int n` leads there.
const SHARED: u8 = (HALTS.end - HALTS.start - 1) as u8;
/// The memory in which no image may be.
const PLACES: Range<u64> = 0..HALTS.end;
/// The values of the instruction pointer after one of the HLT.
const POINTERS: Range<u64> = HALTS.start + 1..HALTS.end + 1;
/// The bits of the flags that are always the same, and their values (Intel SDM volume 1, section 3.4.3).
const FIXED_FLAGS: (u16, u16) = (0x802a, 0x0002);
/// `hlt`
const HLT: u8 = 0xf4;
/// The first byte of `int n`.
const INT: u8 = 0xcd;
// The result is between them.
const _: () = assert!(abi::RESULT + 8 <= HALTS.start && HALTS.end <= abi::DEVICE_TABLE);

/// The vectors and the HLT, as addresses and bytes. Empty for an image that covers these places or does not start in real mode.
pub(super) fn memory(image: &Image) -> Vec<(Gpa, Vec<u8>)> {
    if image.mode() != Mode::Real || image.overlaps(PLACES.start, PLACES.end) {
        return Vec::new();
    }
    let vectors = (0..=u8::MAX).flat_map(entry).collect();
    vec![(Gpa(0), vectors), (Gpa(HALTS.start), vec![HLT; (HALTS.end - HALTS.start) as usize])]
}

/// The entry of a vector: offset and segment.
fn entry(vector: u8) -> [u8; 4] {
    let [low, high] = (HALTS.start as u16 + u16::from(vector.min(SHARED))).to_le_bytes();
    [low, high, 0, 0]
}

/// The vector whose HLT a vCPU has executed, or [`SHARED`] for one of those that share it. `None` if it is elsewhere, or if the guest has changed the vector.
fn vector(regs: &Regs, sregs: &Sregs, memory: &GuestMemory) -> Option<u8> {
    if sregs.cr0 & CR0_PE != 0 || sregs.cs.base != 0 || !POINTERS.contains(&regs.rip) {
        return None;
    }
    let vector = u8::try_from(regs.rip - POINTERS.start).ok()?;
    let mut now = [0; 4];
    (memory.read(Gpa(u64::from(vector) * 4), &mut now) && now == entry(vector)).then_some(vector)
}

/// The reason why a guest is at one of the HLT, if it is no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    /// A call of this vector.
    Call(u8),
    /// The entry point returned: `ret` has taken the offset of vector 0 from the empty stack, which starts at 0000:0000.
    Return,
}

/// A vCPU that has run into one of the vectors.
struct Trapped {
    vector: u8,
    /// The code segment and the offset in the frame.
    place: (u16, u16),
    /// `int n` has called the vector.
    is_call: bool,
    /// The stack has the frame of an interrupt.
    has_frame: bool,
}

impl Machine {
    /// Looks for vCPUs that have run into a vector. A fault becomes the stop of the vCPU and of the machine. The vCPU is then at
    /// the instruction again, or behind `int n`. Returns what is no fault, if there is any.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn trapped(
        &mut self,
        stop: &mut Stop,
        vcpus: &mut [(Stop, VcpuResult)],
    ) -> Result<Option<Trap>, Error> {
        let mut found = None;
        if self.mode != Mode::Real || self.has_bios {
            return Ok(None);
        }
        for (vcpu, (own, _)) in self.processors.iter_mut().zip(vcpus) {
            if !matches!(own, Stop::Halted) || !POINTERS.contains(&vcpu.regs()?.rip) {
                continue;
            }
            let start = vcpu.start_of_stack().map(|(_, pointer)| pointer.wrapping_add(2) & 0xffff);
            let returned = start == Some(vcpu.regs()?.rsp & 0xffff);
            let Some(trapped) = leave_vector(vcpu, &self.memory)? else { continue };
            let (cs, ip) = trapped.place;
            match trapped.vector {
                0 if !trapped.has_frame && returned => found = found.or(Some(Trap::Return)),
                _ if !trapped.has_frame => {}
                vector if trapped.is_call => found = found.or(Some(Trap::Call(vector))),
                vector => {
                    *own = Stop::RealModeFault { vector, cs, ip };
                    if matches!(stop, Stop::Halted) {
                        *stop = own.clone();
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Puts a vCPU that has run into a vector back to the place in the frame. `None` if it is not in one.
fn leave_vector(vcpu: &mut dyn MachineVcpu, memory: &GuestMemory) -> Result<Option<Trapped>, Error> {
    let (mut regs, mut sregs) = (vcpu.regs()?, vcpu.sregs()?);
    let Some(vector) = vector(&regs, &sregs, memory) else { return Ok(None) };
    let word = |offset: u64| {
        let bytes = [0, 1].map(|byte| {
            let pointer = regs.rsp.wrapping_add(offset).wrapping_add(byte) & 0xffff;
            let mut value = [0];
            memory.read(Gpa(sregs.ss.base.wrapping_add(pointer)), &mut value);
            value[0]
        });
        u16::from_le_bytes(bytes)
    };
    let (ip, cs, flags) = (word(0), word(2), word(4));
    let base = u64::from(cs) << 4;
    let mut before = [0; 2];
    let is_read = memory.read(Gpa(base.wrapping_add(ip.wrapping_sub(2).into())), &mut before);
    let called = Some(before[1]).filter(|_| is_read && before[0] == INT);
    let vector = called.filter(|number| vector == SHARED && *number > SHARED).unwrap_or(vector);
    let is_call = called == Some(vector);
    let trapped =
        Trapped { vector, place: (cs, ip), is_call, has_frame: flags & FIXED_FLAGS.0 == FIXED_FLAGS.1 };
    if !trapped.has_frame {
        return Ok(Some(trapped));
    }
    regs.rsp = regs.rsp & !0xffff | regs.rsp.wrapping_add(6) & 0xffff;
    (regs.rip, regs.rflags) = (ip.into(), flags.into());
    (sregs.cs.selector, sregs.cs.base) = (cs, base);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    Ok(Some(trapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{FakeVcpu, VcpuState};

    fn vcpu() -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x1_0000)]).unwrap();
        let image = Image::flat(&[HLT][..], Mode::Real, Gpa(0x1000)).unwrap();
        for (start, bytes) in super::memory(&image) {
            memory.write(start, &bytes).unwrap();
        }
        FakeVcpu { memory, ..Default::default() }
    }

    #[test]
    fn each_vector_leads_to_a_halt_that_tells_it() {
        let vcpu = vcpu();
        for number in 0..=u8::MAX {
            let mut entry = [0; 4];
            assert!(vcpu.memory().read(Gpa(u64::from(number) * 4), &mut entry));
            let [o0, o1, 0, 0] = entry else { panic!("{entry:x?}") };
            let offset = u64::from(u16::from_le_bytes([o0, o1]));
            let mut code = [0];
            assert!(vcpu.memory().read(Gpa(offset), &mut code) && code == [HLT]);
            let regs = Regs { rip: offset + 1, ..Default::default() };
            assert_eq!(vector(&regs, &Sregs::default(), vcpu.memory()), Some(number.min(SHARED)));
        }
    }

    #[test]
    fn a_vector_that_the_guest_has_changed_tells_nothing() {
        let vcpu = vcpu();
        let regs = Regs { rip: HALTS.start + 1, ..Default::default() };
        assert_eq!(vector(&regs, &Sregs::default(), vcpu.memory()), Some(0));
        vcpu.memory().write(Gpa(0), &[0x01]).unwrap();
        assert_eq!(vector(&regs, &Sregs::default(), vcpu.memory()), None);
        assert_eq!(vector(&Regs::default(), &Sregs::default(), vcpu.memory()), None);
    }

    #[test]
    fn an_image_over_the_vectors_keeps_its_bytes() {
        for (start, has) in [(0, false), (0x3ff, false), (0x4ff, false), (0x500, true), (0x7c00, true)] {
            let image = Image::flat(vec![HLT; 4], Mode::Real, Gpa(start)).unwrap();
            assert_eq!(!memory(&image).is_empty(), has, "{start:#x}");
        }
        let image = Image::flat(vec![HLT; 4], Mode::Long, Gpa(0x1000)).unwrap();
        assert!(memory(&image).is_empty());
    }
}
