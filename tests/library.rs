//! The library as its users see it: machines that run more than once, and whose memory and registers are read and
//! changed.

mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{machine_test, watchdog};
use vmm::boot::Image;
use vmm::device::{Device, DeviceName, Transport};
use vmm::exit::{Reason, Stop};
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Builder, Error, Input, Machine, Output};

fn main() -> ExitCode {
    watchdog();
    let tests = vec![
        machine_test("the_examples_of_the_crate_s_page_run", examples),
        machine_test("a_run_goes_on_where_the_last_one_stopped", goes_on),
        machine_test("a_run_goes_on_after_a_timeout", goes_on_after_timeout),
        machine_test("a_reset_puts_back_memory_and_registers", reset),
        machine_test("a_reset_after_each_kind_of_end_gives_the_same_run", reset_after_each_end),
        machine_test("a_reset_completes_the_last_access_first", reset_after_access),
        machine_test("a_reset_puts_back_what_the_host_has_written", host_writes),
        machine_test("a_reset_powers_simvirtio_on_again_over_every_transport", simvirtio),
        machine_test("a_reset_reaches_the_caller_s_devices", devices),
        machine_test("a_reset_clears_sse_state_and_msrs", sse_and_msrs),
        machine_test("another_image_can_be_loaded", load),
        machine_test("an_image_that_does_not_fit_leaves_the_guest_as_it_was", load_refused),
        machine_test("several_vcpus_run_again", several_vcpus),
        machine_test("the_output_limit_holds_for_each_run", output_limit),
        machine_test("a_controller_lives_through_all_runs", controllers),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// The load address and entry point of flat guests.
const START: Gpa = Gpa(0x1000);

fn real(code: &[u8]) -> Image {
    Image::flat(code.to_vec(), Mode::Real, START).expect("an image")
}

fn quiet(image: Image) -> Builder {
    Machine::builder(image).output(Output::captured().0)
}

fn word(machine: &Machine, at: u64) -> u16 {
    let mut bytes = [0; 2];
    assert!(machine.memory().read(Gpa(at), &mut bytes));
    u16::from_le_bytes(bytes)
}

fn rax(machine: &mut Machine) -> u64 {
    machine.vcpu(0).expect("vCPU 0").regs().expect("its registers").rax
}

fn examples() {
    for (name, output) in [
        ("controller", "vCPU 0 reads twice 21\nexited with code 42\n"),
        ("thousand_runs", "1000 runs: 2000 exits, all results right\n"),
    ] {
        let ran = support::example(name);
        assert_eq!(ran.text(), output, "{}", ran.stderr);
    }
}

/// inc ax; hlt; inc ax; hlt; jmp to the first
const COUNTS: &[u8] = &[0x40, 0xf4, 0x40, 0xf4, 0xeb, 0xfa];

fn goes_on() {
    let mut machine = quiet(real(COUNTS)).build().expect("the machine");
    for count in 1..=5 {
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
        assert_eq!(rax(&mut machine), count);
        let profile = report.profile.expect("exits are counted");
        assert_eq!(profile.total().exits, 1, "each run counts its own exits");
    }
    // Registers can be changed in between.
    let vcpu = machine.vcpu(0).expect("vCPU 0");
    let regs = vcpu.regs().expect("its registers");
    vcpu.set_regs(&vmm_regs(regs, 100)).expect("KVM takes them");
    machine.run().expect("a run");
    assert_eq!(rax(&mut machine), 101);
    assert!(machine.vcpu(1).is_none() && machine.vcpu_count() == 1);
}

fn vmm_regs(regs: vmm::x86::Regs, rax: u64) -> vmm::x86::Regs {
    vmm::x86::Regs { rax, ..regs }
}

/// inc word [0x500]; jmp to the first
const SPINS: &[u8] = &[0xff, 0x06, 0x00, 0x05, 0xeb, 0xfa];

fn goes_on_after_timeout() {
    let mut machine =
        quiet(real(SPINS)).timeout(Some(Duration::from_millis(30))).build().expect("the machine");
    let mut counts = Vec::new();
    for _ in 0..3 {
        assert!(matches!(machine.run().expect("a run").stop, Stop::Timeout(_)));
        let regs = machine.vcpu(0).expect("vCPU 0").regs().expect("its registers");
        assert!([0x1000, 0x1004].contains(&regs.rip), "{:#x}", regs.rip);
        counts.push(word(&machine, 0x500));
    }
    assert!(counts[0] != counts[1] && counts[1] != counts[2], "{counts:?}");
}

/// mov ax, [0x500]; inc ax; mov [0x500], ax; mov [0x8000], ax; mov [0x1000], al; mov bx, 7; mov ds, bx; hlt
const CHANGES: &[u8] = &[
    0xa1, 0x00, 0x05, 0x40, 0xa3, 0x00, 0x05, 0xa3, 0x00, 0x80, 0xa2, 0x00, 0x10, 0xbb, 0x07, 0x00, 0x8e,
    0xdb, 0xf4,
];

fn reset() {
    let mut machine = quiet(real(CHANGES)).build().expect("the machine");
    for turn in 0..5 {
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Halted), "{turn}: {}", report.stop);
        assert_eq!((word(&machine, 0x500), word(&machine, 0x8000)), (1, 1), "{turn}");
        assert_eq!(word(&machine, 0x1000) & 0xff, 1, "it changes its own code, too");
        machine.reset().expect("a reset");
        assert_eq!((word(&machine, 0x500), word(&machine, 0x8000), word(&machine, 0x1000)), (0, 0, 0x00a1));
        let vcpu = machine.vcpu(0).expect("vCPU 0");
        let (regs, sregs) = (vcpu.regs().expect("registers"), vcpu.sregs().expect("registers"));
        assert_eq!((regs.rax, regs.rbx, regs.rip, sregs.ds.selector), (0, 0, 0x1000, 0));
    }
}

/// The same guest gives the same report each time, however it ends.
fn reset_after_each_end() {
    // Halt; exit port; a triple fault in long mode; an emulated MMIO store that never ends; an unclaimed port.
    let ends: [(&str, Image); 5] = [
        ("halted", real(&[0xb0, 5, 0xf4])),
        ("exited with code 7", real(&[0xb0, 7, 0xe6, 0xf4, 0xf4])),
        ("triple fault", Image::flat(&[0x0f, 0x0b][..], Mode::Long, START).expect("an image")),
        ("timeout", real(&[0xeb, 0xfe])),
        ("halted", real(&[0xe4, 0x42, 0xe6, 0x43, 0xf4])),
    ];
    for (ending, image) in ends {
        let mut machine = quiet(image).timeout(Some(Duration::from_millis(60))).build().expect("the machine");
        let mut first = None;
        for turn in 0..4 {
            let report = machine.run().expect("a run");
            assert!(report.stop.to_string().starts_with(ending), "{ending}, run {turn}: {}", report.stop);
            let profile = report.profile.expect("exits are counted");
            let seen =
                (profile.total(), rax(&mut machine), report.location.map(|location| location.to_string()));
            // A spinning guest is interrupted somewhere.
            if ending != "timeout" {
                assert_eq!(*first.get_or_insert(seen.clone()), seen, "{ending}, run {turn}");
            }
            machine.reset().expect("a reset");
        }
    }
}

/// KVM completes an access at the next entry: a read into AL must not change the AL of the next run.
fn reset_after_access() {
    // mov bl, al; in al, 0x42 (the controller stops here); hlt
    let image = real(&[0x88, 0xc3, 0xe4, 0x42, 0xf4]);
    let stops = |_| {
        |exit: &vmm::exit::Exit, _: &mut dyn vmm::controller::VcpuState| match exit {
            vmm::exit::Exit::PioIn { port: 0x42, .. } => vmm::exit::Outcome::Stop(Stop::Exited(9)),
            _ => vmm::exit::Outcome::Unclaimed,
        }
    };
    let mut machine = quiet(image).controller(move |id| By(stops(id))).build().expect("the machine");
    for turn in 0..3 {
        assert!(matches!(machine.run().expect("a run").stop, Stop::Exited(9)));
        let regs = machine.vcpu(0).expect("vCPU 0").regs().expect("its registers");
        assert_eq!((regs.rax, regs.rbx), (0, 0), "run {turn}");
        machine.reset().expect("a reset");
    }
}

/// A controller that is a closure.
struct By<F>(F);

impl<F> vmm::ExitController for By<F>
where
    F: FnMut(&vmm::exit::Exit, &mut dyn vmm::controller::VcpuState) -> vmm::exit::Outcome,
{
    fn handle(
        &mut self,
        exit: &vmm::exit::Exit,
        vcpu: &mut dyn vmm::controller::VcpuState,
    ) -> vmm::exit::Outcome {
        (self.0)(exit, vcpu)
    }
}

fn host_writes() {
    let mut machine = quiet(real(&[0xf4])).build().expect("the machine");
    for turn in 0..3 {
        machine.memory().write(Gpa(0x2ffe), &[1, 2, 3, 4]).expect("memory");
        machine.run().expect("a run");
        machine.reset().expect("a reset");
        assert_eq!((word(&machine, 0x2ffe), word(&machine, 0x3000)), (0, 0), "{turn}");
        assert_eq!(word(&machine, 0x1000), 0x00f4, "the code stays");
    }
}

fn simvirtio() {
    let guest = guest::find("simvirtio").expect("a built-in guest");
    for transport in Transport::ALL {
        let image = Image::flat(guest.image, guest.mode, Gpa(guest.load_at)).expect("an image");
        let (output, text) = Output::captured();
        let mut machine = Machine::builder(image)
            .transport(Some(transport))
            .verify(true)
            .output(output)
            .input(Input::bytes(b""))
            .build()
            .expect("the machine");
        let mut first = None;
        for turn in 0..4 {
            let report = machine.run().expect("a run");
            assert!(
                report.verdict.is_some_and(|verdict| verdict.passed()),
                "{transport}, run {turn}: {}",
                report.stop
            );
            let device = report.simvirtio.expect("a device");
            assert_eq!((device.history.received, device.message.as_slice()), (12, &b"Ana are mere"[..]));
            let exits = report.profile.expect("exits are counted").total();
            assert_eq!(*first.get_or_insert(exits), exits, "{transport}, run {turn}");
            machine.reset().expect("a reset");
        }
        assert_eq!(text.bytes(), b"Ana are mere".repeat(4));
    }
}

/// Counts its writes, and how often it was reset.
#[derive(Default)]
struct Meter {
    writes: u32,
    resets: u32,
}

impl Device for Meter {
    fn read(&mut self, _: u64, _: u8) -> std::ops::ControlFlow<Stop, u64> {
        std::ops::ControlFlow::Continue(self.writes.into())
    }
    fn write(&mut self, _: u64, _: u8, _: u64) -> std::ops::ControlFlow<Stop> {
        self.writes += 1;
        std::ops::ControlFlow::Continue(())
    }
    fn name(&self, _: u64) -> DeviceName {
        DeviceName::device("meter")
    }
    fn reset(&mut self) {
        (self.writes, self.resets) = (0, self.resets + 1);
    }
}

fn devices() {
    let meter: Arc<Mutex<Meter>> = Arc::default();
    // out 0x42, al; in al, 0x42; hlt
    let builder = quiet(real(&[0xe6, 0x42, 0xe4, 0x42, 0xf4]));
    let mut machine =
        builder.port_device(0x42, 1, meter.clone()).expect("a place").build().expect("the machine");
    for turn in 0..3 {
        let report = machine.run().expect("a run");
        assert_eq!(rax(&mut machine), 1, "run {turn}");
        let reasons = report.profile.expect("exits are counted").reasons();
        assert!(reasons.iter().any(|(reason, count)| *reason == Reason::PioIn && count.exits == 1));
        machine.reset().expect("a reset");
    }
    assert_eq!(meter.lock().expect("no panic").resets, 3);
}

fn sse_and_msrs() {
    // movdqu xmm0 to 0x8000; then load xmm0 with ones from 0x9000; then read and change IA32_LSTAR; hlt
    const CODE: &[u8] = &[
        0xf3, 0x0f, 0x7f, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // movdqu [0x8000], xmm0
        0xf3, 0x0f, 0x6f, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, // movdqu xmm0, [0x9000]
        0xb9, 0x82, 0x00, 0x00, 0xc0, // mov ecx, IA32_LSTAR
        0x0f, 0x32, // rdmsr
        0x89, 0xc3, // mov ebx, eax
        0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
        0x31, 0xd2, // xor edx, edx
        0x0f, 0x30, // wrmsr
        0xf4, // hlt
    ];
    let image = Image::flat(CODE, Mode::Long, START).expect("an image");
    let mut machine = quiet(image).cpuid(true).build().expect("the machine");
    // CR4.OSFXSR, so that SSE instructions run.
    const OSFXSR: u64 = 1 << 9;
    for turn in 0..3 {
        machine.memory().write(Gpa(0x9000), &[0xff; 16]).expect("memory");
        let vcpu = machine.vcpu(0).expect("vCPU 0");
        let mut sregs = vcpu.sregs().expect("registers");
        assert_eq!(sregs.cr4 & OSFXSR, 0, "run {turn}: the reset puts CR4 back");
        sregs.cr4 |= OSFXSR;
        vcpu.set_sregs(&sregs).expect("KVM takes it");
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Halted), "run {turn}: {}", report.stop);
        let mut xmm0 = [9; 16];
        assert!(machine.memory().read(Gpa(0x8000), &mut xmm0));
        assert_eq!(xmm0, [0; 16], "run {turn}");
        let regs = machine.vcpu(0).expect("vCPU 0").regs().expect("registers");
        assert_eq!(regs.rbx, 0, "run {turn}: IA32_LSTAR");
        machine.reset().expect("a reset");
    }
}

fn load() {
    // mov eax, 5; hlt, in long mode. Then mov al, 9; hlt, in protected mode. Then in al, 0x42; hlt in real mode.
    let long = Image::flat(&[0xb8, 5, 0, 0, 0, 0xf4][..], Mode::Long, START).expect("an image");
    let protected = Image::flat(&[0xb0, 9, 0xf4][..], Mode::Protected, Gpa(0x2000)).expect("an image");
    let mut machine = quiet(long.clone()).build().expect("the machine");
    for (image, expected) in [
        (protected, 9),
        (real(&[0xe4, 0x42, 0xf4]), 0xff),
        (long.clone(), 5),
        (real(&[0xb0, 1, 0xf4]), 1),
        (long, 5),
    ] {
        let entry = image.entry();
        machine.load(image).expect("it fits");
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Halted), "{}", report.stop);
        assert_eq!(rax(&mut machine), expected);
        assert_eq!(report.image.first().map(|range| range.start), Some(entry.0));
        assert!(!report.left_its_image());
    }
    // Bytes of the image before are gone.
    assert_eq!(word(&machine, 0x2000), 0);
}

fn load_refused() {
    let mut machine = quiet(real(&[0xb0, 3, 0xf4])).verify(true).build().expect("the machine");
    let too_large = Image::flat(vec![0xf4; 0x10_0001], Mode::Real, Gpa(0)).expect("an image");
    let covers = Image::flat(vec![0xf4; 0x500], Mode::Real, Gpa(0)).expect("an image");
    let long = Image::flat(&[0xf4][..], Mode::Long, START).expect("an image");
    for (image, part) in [
        (too_large, "the image"),
        (covers, "where the result is verified"),
        (long, "built for a real-mode guest"),
    ] {
        match machine.load(image) {
            Err(error @ (Error::Config(_) | Error::Image(_))) => {
                assert!(error.to_string().contains(part), "{error}");
            }
            other => panic!("{other:?}"),
        }
        machine.reset().expect("a reset");
        machine.run().expect("a run");
        assert_eq!(rax(&mut machine), 3);
    }
}

fn several_vcpus() {
    // lock inc word [0x500]; hlt
    let mut machine =
        quiet(real(&[0xf0, 0xff, 0x06, 0x00, 0x05, 0xf4])).cpus(4).build().expect("the machine");
    for turn in 0..4 {
        let report = machine.run().expect("a run");
        assert!(matches!(report.stop, Stop::Halted), "run {turn}: {}", report.stop);
        assert_eq!((word(&machine, 0x500), report.vcpus.len()), (4, 4), "run {turn}");
        machine.reset().expect("a reset");
    }
}

fn output_limit() {
    // mov al, 'x'; out 0xe9, al; out 0xe9, al; hlt
    let (output, text) = Output::captured();
    let image = real(&[0xb0, b'x', 0xe6, 0xe9, 0xe6, 0xe9, 0xf4]);
    let mut machine =
        Machine::builder(image).output(output).output_limit(Some(2)).build().expect("the machine");
    for _ in 0..3 {
        assert!(matches!(machine.run().expect("a run").stop, Stop::Halted));
        machine.reset().expect("a reset");
    }
    assert_eq!(text.bytes(), b"xxxxxx");
}

fn controllers() {
    let seen: Arc<Mutex<u32>> = Arc::default();
    let counter = seen.clone();
    let make = move |_| {
        let counter = counter.clone();
        By(move |exit: &vmm::exit::Exit, _: &mut dyn vmm::controller::VcpuState| {
            if matches!(exit, vmm::exit::Exit::Hlt) {
                *counter.lock().expect("no panic") += 1;
            }
            vmm::exit::Outcome::Unclaimed
        })
    };
    let mut machine = quiet(real(&[0xf4])).controller(make).build().expect("the machine");
    for _ in 0..3 {
        machine.run().expect("a run");
        machine.reset().expect("a reset");
    }
    assert_eq!(*seen.lock().expect("no panic"), 3);
}
