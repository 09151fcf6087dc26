//! `Machine::reset` and `Machine::load`: nothing of an earlier run reaches the next one. `library.rs` tests the rest of
//! the library.

mod support;

use std::process::ExitCode;
use std::time::Duration;
use support::{Files, each_on_both, kernels, kvm_test, processor, watchdog};
use vmm::boot::Image;
use vmm::controller::VcpuState;
use vmm::device::Transport;
use vmm::exit::{Exit, Outcome, Stop};
use vmm::machine::Linux;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Builder, Error, ExitController, Machine, Output, Report};

fn main() -> ExitCode {
    watchdog();
    let mut tests = vec![
        kvm_test("queued_stores_do_not_reach_the_next_run", queued_stores),
        kvm_test("a_doorbell_s_thread_sleeps_in_every_run", doorbell_sleeps),
        kvm_test("a_reset_wakes_a_vcpu_that_waits_for_an_interrupt", waiting_vcpu),
        kvm_test("a_reset_puts_back_the_interrupt_controllers", interrupt_controllers),
        kvm_test("a_linux_machine_runs_once_and_is_not_reset", linux),
    ];
    // The software processor has no breakpoints.
    tests.push(kvm_test("a_reset_puts_back_debug_registers", debug_registers));
    tests.extend(each_on_both(&[
        ("a_string_read_is_completed_before_memory_is_put_back", string_read),
        ("an_access_is_completed_before_another_guest_is_loaded", load_after_access),
        ("a_string_instruction_with_two_device_operands_is_completed", two_operands),
        ("the_printer_keeps_its_registers_until_a_reset", printer),
        ("a_reset_puts_back_msrs", msrs),
    ]));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// A guest in `mode` at 0x1000.
fn image(mode: Mode, code: &[u8]) -> Image {
    Image::flat(code.to_vec(), mode, Gpa(0x1000)).expect("an image")
}

fn machine(mode: Mode, code: &[u8]) -> Builder {
    Machine::builder(image(mode, code)).processor(processor()).output(Output::captured().0)
}

fn halts(machine: &mut Machine) -> Report {
    let report = machine.run().expect("a run");
    assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
    report
}

/// Stops the machine at each read of a device.
struct StopsAtReads;

impl ExitController for StopsAtReads {
    fn handle(&mut self, exit: &Exit, _: &mut dyn VcpuState) -> Outcome {
        match exit {
            Exit::PioIn { .. } | Exit::MmioRead { .. } => Outcome::Stop(Stop::Exited(9)),
            _ => Outcome::Unclaimed,
        }
    }
}

fn stops_at_a_read(machine: &mut Machine) {
    let report = machine.run().expect("a run");
    assert!(matches!(report.stop, Stop::Exited(9)), "{}", report.stop);
}

/// mov cx, 16; mov di, 0x3000; mov dx, 0x42; rep insb; hlt
const READS: &[u8] = &[0xb9, 16, 0, 0xbf, 0, 0x30, 0xba, 0x42, 0, 0xf3, 0x6c, 0xf4];

fn assert_clear(machine: &Machine) {
    let mut bytes = [1; 16];
    assert!(machine.memory().read(Gpa(0x3000), &mut bytes));
    assert_eq!(bytes, [0; 16]);
}

fn string_read() {
    // mov esi, 0xd0000000; mov edi, 0x3000; mov ecx, 16; rep movsb; hlt
    let moves = [0xbe, 0, 0, 0, 0xd0, 0xbf, 0, 0x30, 0, 0, 0xb9, 16, 0, 0, 0, 0xf3, 0xa4, 0xf4];
    for (mode, code) in [(Mode::Real, READS), (Mode::Long, &moves)] {
        let mut machine = machine(mode, code).controller(|_| StopsAtReads).build().expect("the machine");
        for _ in 0..3 {
            stops_at_a_read(&mut machine);
            machine.reset().expect("a reset");
            assert_clear(&machine);
        }
    }
}

fn load_after_access() {
    let mut machine = machine(Mode::Real, READS).controller(|_| StopsAtReads).build().expect("the machine");
    for _ in 0..3 {
        stops_at_a_read(&mut machine);
        machine.load(image(Mode::Real, &[0xf4])).expect("it fits");
        assert_clear(&machine);
        halts(&mut machine);
        machine.load(image(Mode::Real, READS)).expect("it fits");
    }
}

fn two_operands() {
    // mov esi, 0xd0000000; mov edi, 0xd1000000; mov ecx, 1024; repe cmpsb; hlt
    let code = [0xbe, 0, 0, 0, 0xd0, 0xbf, 0, 0, 0, 0xd1, 0xb9, 0, 4, 0, 0, 0xf3, 0xa6, 0xf4];
    let mut machine = machine(Mode::Long, &code).controller(|_| StopsAtReads).build().expect("the machine");
    stops_at_a_read(&mut machine);
    machine.reset().expect("a reset");
}

fn queued_stores() {
    // mov ebx, TX head; mov dword [rbx], 0x7fff; mov dword [rbx], 0x7ffe; hlt
    let code = [0xbb, 0x10, 0, 0x10, 0, 0xc7, 3, 0xff, 0x7f, 0, 0, 0xc7, 3, 0xfe, 0x7f, 0, 0, 0xf4];
    let builder = machine(Mode::Long, &code).transport(Some(Transport::Coalesced));
    let mut machine = builder.build().expect("the machine");
    let report = machine.run().expect("a run");
    assert!(matches!(report.stop, Stop::ProtocolError(_)), "{}", report.stop);
    machine.load(image(Mode::Long, &[0xf4])).expect("it fits");
    halts(&mut machine);
}

fn doorbell_sleeps() {
    let builder = machine(Mode::Long, &[0xeb, 0xfe]).transport(Some(Transport::Doorbell));
    let mut machine = builder.timeout(Some(Duration::from_millis(300))).build().expect("the machine");
    for turn in 0..3 {
        let device = machine.run().expect("a run").simvirtio.expect("a device");
        let time = device.thread_time.expect("its thread");
        assert!(time < Duration::from_millis(20), "run {turn}: {time:?}");
        machine.reset().expect("a reset");
    }
}

fn printer() {
    // mov ebx, 0xcafe0000; mov qword [rbx], 0x1025; mov qword [rbx + 8], 3; hlt
    let mut code = vec![0xbb, 0, 0, 0xfe, 0xca, 0x48, 0xc7, 3, 0x25, 0x10, 0, 0];
    code.extend([0x48, 0xc7, 0x43, 8, 3, 0, 0, 0, 0xf4]);
    // mov dword [rbx + 16], 1; hlt; then the text
    code.extend([0xc7, 0x43, 16, 1, 0, 0, 0, 0xf4]);
    code.resize(0x25, 0);
    code.extend(b"abc");
    let (output, text) = Output::captured();
    let builder = Machine::builder(image(Mode::Long, &code)).kev(true).output(output);
    let mut machine = builder.build().expect("the machine");
    for _ in 0..2 {
        halts(&mut machine);
        halts(&mut machine);
        machine.reset().expect("a reset");
    }
    assert_eq!(text.bytes(), b"abcabc");
    // After a reset the length is 0: mov ebx, 0xcafe0000; mov dword [rbx + 16], 1; hlt
    halts(&mut machine);
    machine
        .load(image(Mode::Long, &[0xbb, 0, 0, 0xfe, 0xca, 0xc7, 0x43, 16, 1, 0, 0, 0, 0xf4]))
        .expect("it fits");
    halts(&mut machine);
    assert_eq!(text.bytes(), b"abcabc");
}

/// The first instruction would raise #DB in the second run, which has no handler.
fn debug_registers() {
    // nop; mov eax, 0x1000; mov dr0, rax; mov eax, 0x401; mov dr7, rax; hlt
    let code = [0x90, 0xb8, 0, 0x10, 0, 0, 0x0f, 0x23, 0xc0, 0xb8, 1, 4, 0, 0, 0x0f, 0x23, 0xf8, 0xf4];
    let mut machine = machine(Mode::Long, &code).build().expect("the machine");
    for _ in 0..3 {
        halts(&mut machine);
        machine.reset().expect("a reset");
    }
}

fn msrs() {
    // IA32_TSC_ADJUST, the first MTRR, and KVM's clock, which KVM writes to the guest's memory.
    for msr in [0x3b_u32, 0x200, 0x4b56_4d01] {
        // mov ecx, MSR; rdmsr; mov ebx, eax; mov eax, 0x2001; xor edx, edx; wrmsr; hlt
        let mut code = vec![0xb9];
        code.extend(msr.to_le_bytes());
        code.extend([0x0f, 0x32, 0x89, 0xc3, 0xb8, 1, 0x20, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xf4]);
        let mut machine = machine(Mode::Long, &code).cpuid(true).build().expect("the machine");
        for turn in 0..3 {
            // A host without the register ends the run with a triple fault.
            if matches!(machine.run().expect("a run").stop, Stop::Halted) {
                let regs = machine.vcpu(0).expect("vCPU 0").regs().expect("its registers");
                assert_eq!(regs.rbx, 0, "MSR {msr:#x}, run {turn}");
            }
            machine.reset().expect("a reset");
        }
    }
}

/// With in-kernel interrupt controllers a HLT waits in the kernel.
fn waiting_vcpu() {
    // out 0x42, al; hlt
    let builder = machine(Mode::Real, &[0xe6, 0x42, 0xf4]).irqchip(true);
    let mut machine = builder.timeout(Some(Duration::from_millis(50))).build().expect("the machine");
    for turn in 0..3 {
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Timeout(_)), "{}", report.stop);
        assert_eq!(report.profile.expect("exits are counted").total().exits, 1, "run {turn}");
        machine.reset().expect("a reset");
    }
}

fn interrupt_controllers() {
    // in al, 0x21; mov ah, al; mov al, 0x5a; out 0x21, al; then the spurious-interrupt register of the local APIC:
    // mov ebx, 0xfee000f0; mov ecx, [rbx]; mov dword [rbx], 0x1ff; out 0xf4, al
    let code = [
        0xe4, 0x21, 0x88, 0xc4, 0xb0, 0x5a, 0xe6, 0x21, 0xbb, 0xf0, 0, 0xe0, 0xfe, 0x8b, 0x0b, 0xc7, 3, 0xff,
        1, 0, 0, 0xe6, 0xf4,
    ];
    let mut machine = machine(Mode::Long, &code).irqchip(true).build().expect("the machine");
    let mut first = None;
    for turn in 0..3 {
        machine.run().expect("a run");
        let regs = machine.vcpu(0).expect("vCPU 0").regs().expect("its registers");
        let seen = (regs.rax, regs.rcx);
        assert_eq!(*first.get_or_insert(seen), seen, "run {turn}");
        machine.reset().expect("a reset");
    }
    assert_ne!(first.map(|(rax, _)| rax >> 8), Some(0x5a));
}

fn linux() {
    let files = Files::new();
    let kernel = kernels::kernel(&files, &[kernels::POWER_OFF]);
    let linux = Linux::open(kernel.as_ref()).expect("a kernel");
    let mut machine = Machine::linux(linux).output(Output::captured().0).build().expect("the machine");
    machine.run().expect("a run");
    for turn in 0..2 {
        let answers = [machine.run().map(drop), machine.reset(), machine.load(image(Mode::Real, &[0xf4]))];
        for answer in answers {
            let Err(Error::Config(message)) = answer else { panic!("{turn}: {answer:?}") };
            assert!(message.contains("build a new machine"), "{message}");
        }
    }
}
