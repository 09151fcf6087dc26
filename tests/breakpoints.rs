//! Breakpoints that are an `out` in the guest's memory, for KVM hosts that have nothing better. Here, both processors use them.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use support::{Files, each_on_both, is_soft, watchdog};
use vmm::boot::{ElfCode, Image};
use vmm::exit::Stop;
use vmm::machine::Processor;
use vmm::machine::debug::{DebugGuest, Debugger, Facilities, GuestStatus, Method, Plan, Planted, Waker, Why};
use vmm::memory::Gpa;
use vmm::x86::{Mode, linear_rip};
use vmm::{Machine, Output};

fn main() -> ExitCode {
    watchdog();
    let tests = each_on_both(&[
        ("each_breakpoint_stops_each_time_and_the_guest_has_its_own_code", loops),
        ("code_of_all_modes_stops", modes),
        ("the_second_instruction_below_a_breakpoint_can_be_a_target", target_inside),
        ("neighbours_share_their_bytes", neighbours),
        ("an_out_of_the_guest_reaches_its_devices", own_outputs),
        ("code_that_is_mapped_twice_stops_at_the_breakpoint_only", mapped_twice),
        ("code_that_is_not_mapped_yet_is_found_by_the_guest_s_file", mapped_later),
        ("where_an_out_cannot_be_the_guest_is_stepped", stepped),
        ("two_vcpus_pass_a_breakpoint", two_vcpus),
    ]);
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The address of flat guests.
const START: u64 = 0x1000;
const OUTPUT: Facilities = Facilities {
    unlimited: false,
    steps: true,
    breakpoints: false,
    watchpoints: false,
    software: false,
    output: true,
};

/// A debugger that notes each stop, and lets the guest go on.
struct Notes {
    plan: Plan,
    woken: (SyncSender<()>, Receiver<()>),
    /// The linear address, the reason, the way in which the guest has run, and its code.
    stops: Vec<(u64, Why, Option<Method>, Vec<u8>)>,
    exits: u64,
    place: Gpa,
    len: usize,
}

impl Debugger for Notes {
    fn stops_at_start(&self) -> bool {
        true
    }

    fn waker(&self) -> Waker {
        let sender = self.woken.0.clone();
        Box::new(move || {
            let _ = sender.try_send(());
        })
    }

    fn serve(&mut self, guest: &dyn DebugGuest) {
        loop {
            let _ = self.woken.1.recv_timeout(Duration::from_millis(5));
            match guest.status() {
                GuestStatus::Running => {}
                GuestStatus::Ended => {
                    self.exits = guest.exits().1;
                    return;
                }
                GuestStatus::Stopped(index, why) => {
                    let (mut rip, mut code) = (0, vec![0; self.len]);
                    guest.with_vcpu(index, &mut |vcpu| {
                        rip = linear_rip(&vcpu.regs().unwrap(), &vcpu.sregs().unwrap());
                    });
                    assert!(guest.memory().read(self.place, &mut code));
                    self.stops.push((rip, why, guest.method(), code));
                    guest.resume(self.plan.clone());
                }
            }
        }
    }
}

/// The stops of a run after the start, and the number of exits that reached the controllers.
struct Seen {
    stops: Vec<u64>,
    exits: u64,
    output: Vec<u8>,
}

/// A guest and the way in which its breakpoints are found.
struct Run {
    image: Image,
    place: Gpa,
    code: Vec<u8>,
    method: Method,
    cpus: u32,
    file: Option<ElfCode>,
}

impl Run {
    fn flat(mode: Mode, code: &[u8]) -> Self {
        let image = Image::flat(code.to_vec(), mode, Gpa(START)).unwrap();
        let method = Method::Patches(Planted::Out);
        Self { image, place: Gpa(START), code: code.to_vec(), method, cpus: 1, file: None }
    }

    /// Runs the guest, which must halt, and must have its own code at each stop and at the end.
    fn stops(self, breakpoints: &[u64]) -> Seen {
        let Self { image, place, code, method, cpus, file } = self;
        let plan = Plan {
            breakpoints: breakpoints.to_vec(),
            facilities: OUTPUT,
            file: file.map(Into::into),
            ..Plan::default()
        };
        let mut notes =
            Notes { plan, woken: sync_channel(1), stops: Vec::new(), exits: 0, place, len: code.len() };
        let (output, captured) = Output::captured();
        let processor = if is_soft() { Processor::Soft } else { Processor::Kvm };
        let builder = Machine::builder(image).processor(Some(processor)).output(output).cpus(cpus);
        let mut machine = builder.timeout(Some(Duration::from_secs(20))).build().unwrap();
        let report = machine.run_debugged(&mut notes).unwrap();
        assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
        let mut after = vec![0; code.len()];
        assert!(machine.memory().read(place, &mut after));
        assert_eq!(after, code, "the guest has its own code at the end");
        let mut stops = Vec::new();
        for (rip, why, used, seen) in notes.stops.into_iter().skip(1) {
            assert_eq!((why, used), (Why::Breakpoint, Some(method)), "at {rip:#x}");
            assert_eq!(seen, code, "a stopped guest has its own code");
            stops.push(rip);
        }
        Seen { stops, exits: notes.exits, output: captured.bytes().to_vec() }
    }
}

/// mov cx, 3; again: inc ax; dec cx; jnz again; nop; hlt
const LOOP: &[u8] = &[0xb9, 3, 0, 0x40, 0x49, 0x75, 0xfc, 0x90, 0xf4];

fn loops() {
    let stops = |breakpoints: &[u64]| Run::flat(Mode::Real, LOOP).stops(breakpoints).stops;
    assert!(
        stops(&[0x1000]).is_empty(),
        "a breakpoint at the instruction where the guest is stopped is passed"
    );
    assert_eq!(stops(&[0x1003]), [0x1003; 3]);
    assert_eq!(stops(&[0x1008]), [0x1008], "at the HLT");
    let seen = Run::flat(Mode::Real, LOOP).stops(&[0x1003, 0x1005]);
    assert_eq!(seen.stops, [0x1003, 0x1005].repeat(3));
    assert_eq!(seen.exits, 1, "only the HLT is an exit of the guest");
}

fn modes() {
    // mov ecx, 3; again: lea eax, [rax + 1]; loop again; hlt
    let code = [0xb9, 3, 0, 0, 0, 0x8d, 0x40, 1, 0xe2, 0xfb, 0xf4];
    for mode in [Mode::Protected, Mode::Long] {
        let seen = Run::flat(mode, &code).stops(&[0x1005, 0x100a]);
        assert_eq!(seen.stops, [0x1005, 0x1005, 0x1005, 0x100a], "{mode}");
    }
}

fn target_inside() {
    // mov cx, 3; jmp 0x1006; 0x1005: inc ax; 0x1006: dec cx; jnz 0x1005; hlt
    let code = [0xb9, 3, 0, 0xeb, 1, 0x40, 0x49, 0x75, 0xfc, 0xf4];
    let seen = Run::flat(Mode::Real, &code).stops(&[0x1005]);
    assert_eq!((seen.stops, seen.exits), (vec![0x1005, 0x1005], 1));
}

fn neighbours() {
    let all: Vec<u64> = vec![0x1003, 0x1004, 0x1005];
    let seen = Run::flat(Mode::Real, LOOP).stops(&all);
    assert_eq!((seen.stops, seen.exits), (all.repeat(3), 1));
}

fn own_outputs() {
    // mov al, 0x41; mov dx, 0xe9; out dx, al; 0x1006: out dx, al; inc ax; nop; out dx, al; 0x100a: out 0xe6, al; 0x100c: nop;
    // nop; nop; hlt
    let code = [0xb0, 0x41, 0xba, 0xe9, 0, 0xee, 0xee, 0x40, 0x90, 0xee, 0xe6, 0xe6, 0x90, 0x90, 0x90, 0xf4];
    let breakpoints = [0x1006, 0x100a, 0x100c];
    let seen = Run::flat(Mode::Real, &code).stops(&breakpoints);
    assert_eq!((seen.stops.as_slice(), seen.output.as_slice()), (&breakpoints[..], &b"AAB"[..]));
    // Three to the debug console, one to the port 0xe6, and the HLT.
    assert_eq!(seen.exits, 5);
}

/// Maps the first 512 GiB also at this address (PML4 entry 511).
const HIGH: u64 = 0xffff_ff80_0000_0000;
/// mov rax, cr3; mov rbx, [rax]; mov [rax + 0xff8], rbx; mov rax, HIGH + 0x11040; jmp rax
const TO_HIGH: &[u8] = &[
    0x0f, 0x20, 0xd8, 0x48, 0x8b, 0x18, 0x48, 0x89, 0x98, 0xf8, 0x0f, 0, 0, 0x48, 0xb8, 0x40, 0x10, 1, 0,
    0x80, 0xff, 0xff, 0xff, 0xff, 0xe0,
];

/// A guest that continues at its high address. There, it goes back to the low address once.
fn high_guest() -> Vec<u8> {
    let mut code = vec![0; 0x40];
    code[..TO_HIGH.len()].copy_from_slice(TO_HIGH);
    // nop; nop; nop; mov eax, 0x11040; inc ecx; cmp ecx, 2; jae to the hlt; jmp rax; hlt
    code.extend([
        0x90, 0x90, 0x90, 0xb8, 0x40, 0x10, 1, 0, 0xff, 0xc1, 0x83, 0xf9, 2, 0x73, 2, 0xff, 0xe0, 0xf4,
    ]);
    code
}

/// An ELF64 file with one segment, at 0x11000 in memory and at `HIGH + 0x11000`.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = support::elf_entered_at(0x11000, HIGH + 0x11000, code);
    // The virtual address of the segment (p_vaddr).
    file[64 + 16..64 + 24].copy_from_slice(&(HIGH + 0x11000).to_le_bytes());
    file
}

fn high_run(with_file: bool) -> Run {
    let (files, code) = (Files::new(), high_guest());
    let bytes = elf(&code);
    let path = files.write("high.elf", &bytes);
    let file = with_file.then(|| ElfCode::open(path.as_ref()).unwrap());
    let method = if with_file { Method::Patches(Planted::Out) } else { Method::Compare };
    Run { image: Image::elf(bytes).unwrap(), place: Gpa(0x11000), code, method, cpus: 1, file }
}

fn mapped_later() {
    let at = HIGH + 0x11041;
    assert_eq!(high_run(true).stops(&[at]).stops, [at], "at the high address, and not at the low one");
    assert_eq!(high_run(false).stops(&[at]).stops, [at], "without the file, the guest is stepped");
}

fn mapped_twice() {
    let at = 0x11041;
    let seen = high_run(true).stops(&[at]);
    assert_eq!((seen.stops, seen.exits), (vec![at], 1));
}

fn stepped() {
    let stops = |mode, code: &[u8], breakpoints: &[u64]| {
        Run { method: Method::Compare, ..Run::flat(mode, code) }.stops(breakpoints).stops
    };
    // No memory is at the second address.
    assert_eq!(stops(Mode::Real, LOOP, &[0x1007, 0x8000_0000]), [0x1007]);
    // nop; 0x1001: nop; cmp al, 0x20; hlt: the byte behind the breakpoint would be the port of the interrupt controller.
    assert_eq!(stops(Mode::Real, &[0x90, 0x90, 0x3c, 0x20, 0xf4], &[0x1002, 0x1001]), [0x1001, 0x1002]);
    // mov cx, 1; mov si, sp; nop; nop; rep outsb; hlt
    let code = [0xb9, 1, 0, 0x89, 0xe6, 0x90, 0x90, 0xf3, 0x6e, 0xf4];
    assert_eq!(stops(Mode::Real, &code, &[0x1005]), [0x1005]);
}

fn two_vcpus() {
    // mov ecx, 20; again: lock inc dword [0x3000]; loop again; hlt
    let code = [0xb9, 20, 0, 0, 0, 0xf0, 0xff, 0x04, 0x25, 0, 0x30, 0, 0, 0xe2, 0xf6, 0xf4];
    let run = Run { cpus: 2, ..Run::flat(Mode::Long, &code) };
    let seen = run.stops(&[0x1005]);
    // A vCPU does not stop while the other one passes the breakpoint.
    assert!((20..=40).contains(&seen.stops.len()), "{}", seen.stops.len());
    assert_eq!(seen.exits, 2, "each vCPU halts");
}
