//! The stack of a vCPU: the address of its instruction, and those to which its functions return.

use super::Unwinder;
use crate::controller::VcpuState;
use crate::machine::explain::{frame, mode_of};
use crate::memory::ReadMemory;
use crate::profile::MAX_DEPTH;
use crate::x86::modes::Mode;
use crate::x86::probe::Probe;
use crate::x86::registers::{Regs, Sregs};

/// The longest call instruction, in bytes.
const MAX_CALL: usize = 7;
/// The longest function without a frame that is recognised, in bytes.
const MAX_LEAF: u64 = 4096;

/// The linear address of the next instruction, and then those to which the functions on the stack return, the innermost first.
/// `None` if the host does not give the registers.
pub(super) fn addresses(
    vcpu: &mut dyn VcpuState,
    unwinder: Option<&mut (dyn Unwinder + 'static)>,
) -> Option<Vec<u64>> {
    let (regs, sregs) = (vcpu.regs().ok()?, vcpu.sregs().ok()?);
    let probe = Probe::new(vcpu.memory() as &dyn ReadMemory, sregs);
    let mode = mode_of(&sregs);
    let mut addresses = vec![probe.linear(sregs.cs.base, regs.rip)];
    // Callers of 16-bit code are not searched: return addresses there are relative to segments.
    let is_16_bit = mode == Mode::Real || mode == Mode::Protected && sregs.cs.db == 0;
    if is_16_bit {
        return Some(addresses);
    }
    match unwinder {
        Some(unwinder) => {
            let frame = frame::of(mode, &regs, &sregs, &probe);
            addresses.extend(unwinder.callers(&frame).into_iter().take(MAX_DEPTH));
        }
        None => addresses.extend(callers(mode, &regs, &sregs, &probe)),
    }
    Some(addresses)
}

/// Follows the chain of frame pointers. Each frame is above the one before, and each return address is behind a call.
fn callers(mode: Mode, regs: &Regs, sregs: &Sregs, probe: &Probe<&dyn ReadMemory>) -> Vec<u64> {
    let (width, mask) = if mode == Mode::Protected { (4usize, 0xffff_ffff) } else { (8, u64::MAX) };
    let mut found = Vec::new();
    found.extend(leaf(regs, sregs, probe, width, mask));
    let mut lowest = regs.rsp & mask;
    let mut at = regs.rbp & mask;
    while found.len() < MAX_DEPTH && at >= lowest {
        let mut words = [0; 16];
        let Some(pair) = words.get_mut(..width.saturating_mul(2)) else { break };
        if !probe.read_range(probe.linear(sregs.ss.base, at), pair) {
            break;
        }
        let (saved, returns_to) = pair.split_at(width);
        let returns_to = probe.linear(sregs.cs.base, word(returns_to));
        if !follows_call(returns_to, probe) {
            break;
        }
        found.push(returns_to);
        let Some(above) = at.checked_add(1) else { break };
        (lowest, at) = (above, word(saved));
    }
    found
}

/// The caller of a function without a frame of its own: the word on top of the stack returns behind a call of an address just
/// before this one.
fn leaf(regs: &Regs, sregs: &Sregs, probe: &Probe<&dyn ReadMemory>, width: usize, mask: u64) -> Option<u64> {
    let mut top = [0; 8];
    let top = top.get_mut(..width)?;
    if !probe.read_range(probe.linear(sregs.ss.base, regs.rsp & mask), top) {
        return None;
    }
    let returns_to = word(top);
    let mut call = [0; 5];
    if !probe.read_range(probe.linear(sregs.cs.base, returns_to.wrapping_sub(5)), &mut call) {
        return None;
    }
    let [0xe8, distance @ ..] = call else { return None };
    let target = returns_to.wrapping_add_signed(i32::from_le_bytes(distance).into()) & mask;
    let offset = regs.rip.checked_sub(target)?;
    (offset < MAX_LEAF).then(|| probe.linear(sregs.cs.base, returns_to))
}

/// The number in at most 8 bytes.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// True if the bytes before an address may be a call (Intel SDM volume 2A, "CALL": E8 with an offset of 4 bytes, or FF /2).
fn follows_call(address: u64, probe: &Probe<&dyn ReadMemory>) -> bool {
    let mut code = [0; MAX_CALL];
    let start = address.wrapping_sub(MAX_CALL as u64);
    if !probe.read_range(start, &mut code) {
        return false;
    }
    let near = code.get(2) == Some(&0xe8);
    near || code.windows(2).any(|pair| matches!(pair, [0xff, modrm] if modrm >> 3 & 7 == 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::vcpu::FakeVcpu;
    use crate::memory::{Gpa, GuestMemory};
    use crate::x86::modes;

    /// A vCPU in 32-bit mode without paging, with these words at 0x8000 and a call before each address of 0x2000 to 0x20ff.
    fn vcpu(ebp: u64, esp: u64, words: &[u32]) -> FakeVcpu {
        let memory = GuestMemory::new(&[(Gpa(0), 0x10000)]).unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(Gpa(0x8000), &bytes).unwrap();
        // FF D0 is `call eax`.
        memory.write(Gpa(0x2000), &[0xff, 0xd0].repeat(128)).unwrap();
        let mut vcpu = FakeVcpu { memory, ..FakeVcpu::default() };
        vcpu.sregs.cr0 = modes::CR0_PE;
        vcpu.sregs.cs.db = 1;
        vcpu.regs = Regs { rip: 0x1234, rbp: ebp, rsp: esp, ..Regs::default() };
        vcpu
    }

    fn found(vcpu: &mut FakeVcpu) -> Vec<u64> {
        addresses(vcpu, None).unwrap()
    }

    #[test]
    fn frame_pointers_lead_to_the_callers() {
        let mut vcpu = vcpu(0x8000, 0x7ff0, &[0x8008, 0x2010, 0x8010, 0x2020, 0, 0]);
        assert_eq!(found(&mut vcpu), [0x1234, 0x2010, 0x2020]);
    }

    #[test]
    fn a_function_without_a_frame_has_its_caller() {
        // `call 0x1230` before 0x3005, and RIP is 0x1234.
        let mut vcpu = vcpu(0x8008, 0x8000, &[0x3005, 0, 0x8010, 0x2010]);
        let distance = 0x1230u32.wrapping_sub(0x3005);
        vcpu.memory.write(Gpa(0x3000), &[&[0xe8], &distance.to_le_bytes()[..]].concat()).unwrap();
        assert_eq!(found(&mut vcpu), [0x1234, 0x3005, 0x2010]);
        vcpu.regs.rip = 0x122f;
        assert_eq!(found(&mut vcpu), [0x122f, 0x2010]);
    }

    #[test]
    fn a_stack_that_loops_or_is_missing_ends_the_walk() {
        // A frame that points to itself, one below the stack pointer, none, and one at the end of memory and of addresses.
        assert_eq!(found(&mut vcpu(0x8000, 0x7ff0, &[0x8000, 0x2010])), [0x1234, 0x2010]);
        assert_eq!(found(&mut vcpu(0x8000, 0x9000, &[0x8008, 0x2010])), [0x1234]);
        for rbp in [0, 0xfffc, 0x20000, 0xffff_fffc, u64::MAX] {
            assert_eq!(found(&mut vcpu(rbp, 0, &[])), [0x1234], "{rbp:#x}");
        }
        // The return address is not behind a call.
        assert_eq!(found(&mut vcpu(0x8000, 0x7ff0, &[0x8008, 0x3000])), [0x1234]);
    }

    #[test]
    fn the_depth_is_limited() {
        let words: Vec<u32> = (1..1000u32).flat_map(|frame| [0x8000 + frame * 8, 0x2010]).collect();
        assert_eq!(found(&mut vcpu(0x8000, 0x7ff0, &words)).len(), 1 + MAX_DEPTH);
    }

    #[test]
    fn code_of_16_bits_has_its_linear_address_and_no_callers() {
        let mut vcpu = vcpu(0x8000, 0x7ff0, &[0x8008, 0x2010]);
        vcpu.sregs.cr0 = 0;
        vcpu.sregs.cs.base = 0x10_0000;
        assert_eq!(found(&mut vcpu), [0x10_1234]);
    }
}
