//! Breakpoints that are an `int3` in memory, on the software processor: it stops at them, and the plans say that it has
//! nothing better. The KVM hosts of this project do not stop at `int3`. Those that are an `out` are in tests/breakpoints.rs.

use super::*;
use crate::boot::Image;
use crate::console::core_key::CoreKey;
use crate::console::output::Output;
use crate::machine::{Machine, Processor};
use crate::memory::Gpa;
use crate::x86::linear_rip;
use crate::x86::modes::Mode;
use std::time::Duration;

const FACILITIES: Facilities = Facilities {
    unlimited: false,
    steps: true,
    breakpoints: false,
    watchpoints: false,
    software: true,
    output: false,
};

/// A debugger that notes each stop, and lets the guest go on.
struct Notes {
    key: CoreKey,
    plan: Plan,
    /// The linear address, the reason, and the first bytes of the guest's code.
    stops: Vec<(u64, Why, [u8; 8])>,
}

impl Debugger for Notes {
    fn stops_at_start(&self) -> bool {
        true
    }

    fn waker(&self) -> Waker {
        let key = self.key.clone();
        Box::new(move || key.wake())
    }

    fn serve(&mut self, guest: &dyn DebugGuest) {
        loop {
            self.key.wait(Some(Duration::from_millis(20)));
            match guest.status() {
                GuestStatus::Running => {}
                GuestStatus::Ended => return,
                GuestStatus::Stopped(index, why) => {
                    let (mut rip, mut code) = (0, [0; 8]);
                    guest.with_vcpu(index, &mut |vcpu| {
                        rip = linear_rip(&vcpu.regs().unwrap(), &vcpu.sregs().unwrap());
                    });
                    assert!(guest.memory().read(Gpa(0x1000), &mut code));
                    self.stops.push((rip, why, code));
                    guest.resume(self.plan.clone());
                }
            }
        }
    }
}

/// Runs code at 0x1000 in real mode, with breakpoints. Returns the stops after the start. The memory must be as before.
fn stops(code: &[u8], breakpoints: &[u64], facilities: Facilities) -> Vec<(u64, Why)> {
    let plan = Plan { breakpoints: breakpoints.to_vec(), facilities, ..Plan::default() };
    let mut notes = Notes { key: CoreKey::default(), plan, stops: Vec::new() };
    let image = Image::flat(code.to_vec(), Mode::Real, Gpa(0x1000)).unwrap();
    let builder = Machine::builder(image).processor(Some(Processor::Soft)).output(Output::captured().0);
    let mut machine = builder.build().unwrap();
    let report = machine.run_debugged(&mut notes).unwrap();
    assert!(matches!(report.stop, crate::exit::Stop::Halted), "{}", report.stop);
    let mut after = vec![0; code.len()];
    assert!(machine.memory().read(Gpa(0x1000), &mut after));
    assert_eq!(after, code);
    for (_, _, seen) in &notes.stops {
        assert_eq!(seen[..], code[..8], "a stopped guest has its own code");
    }
    notes.stops.into_iter().skip(1).map(|(rip, why, _)| (rip, why)).collect()
}

/// mov cx, 3; again: inc ax; dec cx; jnz again; nop; hlt
const LOOP: &[u8] = &[0xb9, 3, 0, 0x40, 0x49, 0x75, 0xfc, 0x90, 0xf4];

#[test]
fn breakpoints_in_memory_stop_each_time_and_are_not_seen() {
    let at = |address| (address, Why::Breakpoint);
    let plan = Plan { breakpoints: vec![0x1003], facilities: FACILITIES, ..Plan::default() };
    assert_eq!(plan.method(), Method::Patches(Planted::Int3));
    assert_eq!(stops(LOOP, &[0x1003], FACILITIES), [at(0x1003); 3]);
    // Two in a row, on the entry, and on the HLT.
    let all = [0x1000, 0x1003, 0x1004, 0x1008].map(at);
    let expected = [&all[..3], &all[1..3], &all[1..]].concat();
    assert_eq!(stops(LOOP, &[0x1000, 0x1003, 0x1004, 0x1008], FACILITIES), expected[1..]);
    // An address without memory: the guest is stepped.
    assert_eq!(stops(LOOP, &[0x1007, 0x8000_0000], FACILITIES), [at(0x1007)]);
}

#[test]
fn an_int3_of_the_guest_reaches_the_guest() {
    // mov word [12], handler; mov word [14], 0; int3; nop; hlt; handler: inc ax; iret
    let code = [0xc7, 0x06, 12, 0, 0x0f, 0x10, 0xc7, 0x06, 14, 0, 0, 0, 0xcc, 0x90, 0xf4, 0x40, 0xcf];
    let at = |address| (address, Why::Breakpoint);
    assert_eq!(stops(&code, &[0x100d, 0x100f], FACILITIES), [at(0x100f), at(0x100d)]);
    // A breakpoint at the int3 itself.
    assert_eq!(stops(&code, &[0x100c, 0x100d], FACILITIES), [at(0x100c), at(0x100d)]);
}
