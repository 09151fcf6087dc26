use crate::exit::Exit;
use crate::memory::VecMemory;
use crate::state::{cr4, flag};
use crate::testing::{finish, in_mode, long_mode, protected_mode, vector};
use crate::{Cpu, State};

const IOPL_3: u64 = flag::IOPL;

/// Runs one instruction.
fn step(mut cpu: Cpu<VecMemory>, change: impl FnOnce(&mut State)) -> Result<State, (u8, Option<u32>)> {
    change(&mut cpu.state);
    match cpu.run(1) {
        Exit::SliceEnd => Ok(cpu.state.clone()),
        _ => Err(vector_of(&cpu)),
    }
}

fn vector_of(cpu: &Cpu<VecMemory>) -> (u8, Option<u32>) {
    let fault = cpu.death().unwrap().faults[0];
    (fault.vector, fault.error)
}

#[test]
fn the_interrupt_flag_needs_privilege() {
    for ring in [0, 3] {
        for iopl in 0..4 {
            let allowed = ring <= iopl;
            let set = |state: &mut State| state.rflags = 2 | u64::from(iopl) << 12;
            let state = step(protected_mode(&[0xfb], ring), set);
            assert_eq!(state.is_ok_and(|state| state.has(flag::IF)), allowed, "sti {ring} {iopl}");
            let state = step(protected_mode(&[0xfa], ring), |state| {
                state.rflags = 2 | flag::IF | u64::from(iopl) << 12;
            });
            assert_eq!(state.is_ok_and(|state| !state.has(flag::IF)), allowed, "cli {ring} {iopl}");
        }
    }
}

/// Protected-mode virtual interrupts: ring 3 changes VIF instead.
#[test]
fn the_virtual_interrupt_flag() {
    let pvi = |flags: u64| move |state: &mut State| (state.cr4, state.rflags) = (cr4::PVI, 2 | flags);
    let state = step(protected_mode(&[0xfb], 3), pvi(0)).unwrap();
    assert_eq!(state.rflags, 2 | flag::VIF);
    let state = step(protected_mode(&[0xfa], 3), pvi(flag::VIF | flag::IF)).unwrap();
    assert_eq!(state.rflags, 2 | flag::IF);
    assert_eq!(step(protected_mode(&[0xfb], 3), pvi(flag::VIP)), Err((13, Some(0))));
}

fn pop(bits: u32, code: &[u8], ring: u16, old: u64, new: u64) -> u64 {
    let cpu = match (bits, ring) {
        (64, _) => long_mode(code, ring),
        (32, _) => protected_mode(code, ring),
        _ => in_mode(bits, code),
    };
    let pointer = cpu.state.gpr[4];
    cpu.memory().write(pointer as usize, &new.to_le_bytes());
    let state = step(cpu, |state| state.rflags = old).unwrap();
    assert!(state.gpr[4] > pointer);
    state.rflags
}

#[test]
fn popf_changes_what_the_ring_may() {
    // Without TF, which traps after POPF.
    let all = 0x3f_7ed5;
    let popf = [0x9d];
    assert_eq!(pop(64, &popf, 0, 2, u64::MAX), 0x24_7fd7);
    assert_eq!(pop(32, &popf, 0, 2, u64::MAX), 0x24_7fd7);
    assert_eq!(pop(16, &popf, 0, 2, u64::MAX), 0x7fd7);
    assert_eq!(pop(64, &popf, 3, 2, u64::MAX), 0x24_4dd7);
    assert_eq!(pop(64, &popf, 3, 2 | IOPL_3, u64::MAX), 0x24_7fd7);
    // VIF and VIP stay.
    assert_eq!(pop(64, &popf, 3, all & !flag::VM | 2, 0), 0x18_3002);
    assert_eq!(pop(64, &popf, 3, IOPL_3 | flag::IF | 2, 0), 0x3002);
    assert_eq!(pop(32, &popf, 0, all & !flag::VM | 2, 0), 0x18_0002);
    // 16 bits leave the rest.
    assert_eq!(pop(32, &[0x66, 0x9d], 0, flag::AC | flag::ID | 2, 0xffff), 0x24_7fd7);
}

#[test]
fn pushf_stores_all_but_rf_and_vm() {
    for (bits, code, size) in
        [(64, &[0x9c][..], 8), (64, &[0x66, 0x9c], 2), (32, &[0x9c], 4), (16, &[0x9c], 2)]
    {
        let mut cpu = in_mode(bits, code);
        let pointer = cpu.state.gpr[4];
        cpu.memory().write(pointer as usize - 8, &[0xee; 8]);
        cpu.state.rflags = flag::AC | flag::ID | flag::RF | flag::CF | 2;
        cpu.run(1);
        assert_eq!(cpu.state.gpr[4], pointer - size);
        let bytes = cpu.memory().read((pointer - size) as usize, size as usize);
        let want = 0x24_0003u64.to_le_bytes();
        assert_eq!(bytes, want[..size as usize]);
        assert_eq!(cpu.memory().read((pointer - size) as usize - 1, 1), if size == 8 { [0] } else { [0xee] });
    }
}

#[test]
fn the_flags_of_ring_3_reach_the_stack() {
    let mut cpu = long_mode(&[0x9c, 0x58, 0xf4], 3);
    cpu.state.rflags = 0x3a97;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    assert_eq!(cpu.state.gpr[0], 0x3a97);
    let mut cpu = long_mode(&[0x9c, 0x58, 0xf4], 0);
    assert_eq!(finish(&mut cpu), Exit::Halted);
}
