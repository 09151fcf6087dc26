//! Vectors for a real-mode guest on a machine without a BIOS: they tell a fault, and a call that nothing answers.
//!
//! Without them, an exception or `int n` jumps to 0000:0000, and the guest runs through whatever is there. With them it halts
//! at once, at a place that tells the vector: the vectors lead to four HLT behind the BIOS's data area, vector `n` to the
//! HLT `n / 64` with the segment `n % 64`. The frame that the processor has pushed tells the instruction (Intel SDM volume 3,
//! section 22.1.4). They share their page with the result at 0x400, so they cost no page.
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
const HALTS: Range<u64> = 0x4f0..0x4f4;
/// The number of vectors for each HLT.
const SEGMENTS: u64 = 64;
/// The memory in which no image may be.
const PLACES: Range<u64> = 0..HALTS.end;
/// The offsets of the instruction pointer after one of the HLT.
const POINTERS: Range<u64> = HALTS.start + 1 - (SEGMENTS - 1) * 16..HALTS.end + 1;
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
    let segment = u64::from(vector) % SEGMENTS;
    let offset = HALTS.start + u64::from(vector) / SEGMENTS - segment * 16;
    let ([o0, o1], [s0, s1]) = ((offset as u16).to_le_bytes(), (segment as u16).to_le_bytes());
    [o0, o1, s0, s1]
}

/// The vector whose HLT a vCPU has executed. `None` if it is elsewhere, or if the guest has changed the vector.
fn vector(regs: &Regs, sregs: &Sregs, memory: &GuestMemory) -> Option<u8> {
    let segment = u64::from(sregs.cs.selector);
    let halt = sregs.cs.base.checked_add(regs.rip)?.checked_sub(1).filter(|halt| HALTS.contains(halt))?;
    if sregs.cr0 & CR0_PE != 0 || segment >= SEGMENTS {
        return None;
    }
    let vector = u8::try_from((halt - HALTS.start) * SEGMENTS + segment).ok()?;
    let mut now = [0; 4];
    (memory.read(Gpa(u64::from(vector) * 4), &mut now) && now == entry(vector)).then_some(vector)
}

/// A vCPU that has run into one of the vectors.
struct Trapped {
    vector: u8,
    /// The code segment and the offset in the frame.
    place: (u16, u16),
    /// `int n` has called the vector. Otherwise it is a fault.
    is_call: bool,
}

impl Machine {
    /// Looks for vCPUs that have run into a vector. A fault becomes the stop of the vCPU and of the machine. The vCPU is then at
    /// the instruction again, or behind `int n`. Returns the vector of a call, if there is one.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn trapped(
        &mut self,
        stop: &mut Stop,
        vcpus: &mut [(Stop, VcpuResult)],
    ) -> Result<Option<u8>, Error> {
        let mut call = None;
        if self.mode != Mode::Real || self.has_bios {
            return Ok(None);
        }
        for (vcpu, (own, _)) in self.processors.iter_mut().zip(vcpus) {
            if !matches!(own, Stop::Halted) || !POINTERS.contains(&vcpu.regs()?.rip) {
                continue;
            }
            let Some(trapped) = leave_vector(vcpu, &self.memory)? else { continue };
            let (cs, ip) = trapped.place;
            if trapped.is_call {
                call = call.or(Some(trapped.vector));
            } else {
                *own = Stop::RealModeFault { vector: trapped.vector, cs, ip };
                if matches!(stop, Stop::Halted) {
                    *stop = own.clone();
                }
            }
        }
        Ok(call)
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
    regs.rsp = regs.rsp & !0xffff | regs.rsp.wrapping_add(6) & 0xffff;
    (regs.rip, regs.rflags) = (ip.into(), flags.into());
    (sregs.cs.selector, sregs.cs.base) = (cs, base);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    Ok(Some(Trapped { vector, place: (cs, ip), is_call: is_read && before == [INT, vector] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{FakeVcpu, VcpuState};

    fn vcpu() -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x1_0000)]).unwrap();
        let image = Image::flat(&[HLT][..], Mode::Real, Gpa(0x1000)).unwrap();
        for (start, bytes) in memory(&image) {
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
            let [offset, segment] =
                [[entry[0], entry[1]], [entry[2], entry[3]]].map(|word| u16::from_le_bytes(word));
            let mut sregs = Sregs::default();
            (sregs.cs.selector, sregs.cs.base) = (segment, u64::from(segment) << 4);
            let rip = u64::from(offset) + 1;
            assert!(POINTERS.contains(&rip), "{number:#x}");
            let mut code = [0];
            assert!(vcpu.memory().read(Gpa(sregs.cs.base + u64::from(offset)), &mut code) && code == [HLT]);
            assert_eq!(vector(&Regs { rip, ..Default::default() }, &sregs, vcpu.memory()), Some(number));
        }
    }

    #[test]
    fn a_vector_that_the_guest_has_changed_tells_nothing() {
        let vcpu = vcpu();
        let regs = Regs { rip: 0x4f1, ..Default::default() };
        assert_eq!(vector(&regs, &Sregs::default(), vcpu.memory()), Some(0));
        vcpu.memory().write(Gpa(0), &[0xf1]).unwrap();
        assert_eq!(vector(&regs, &Sregs::default(), vcpu.memory()), None);
        assert_eq!(vector(&Regs::default(), &Sregs::default(), vcpu.memory()), None);
    }

    #[test]
    fn an_image_over_the_vectors_keeps_its_bytes() {
        for (start, has) in [(0, false), (0x3ff, false), (0x4f0, false), (0x500, true), (0x7c00, true)] {
            let image = Image::flat(vec![HLT; 4], Mode::Real, Gpa(start)).unwrap();
            assert_eq!(!memory(&image).is_empty(), has, "{start:#x}");
        }
        let image = Image::flat(vec![HLT; 4], Mode::Long, Gpa(0x1000)).unwrap();
        assert!(memory(&image).is_empty());
    }
}
